"""`export_training_graph`: a PyTorch module and its loss as one ONNX training graph.

PyTorch is imported when the function is called, and by nothing else in this package.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import warnings
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Sequence

from ._binary import VeloraError

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

    from ._options import StrPath

# Above this, weights are written beside the model: a protobuf message holds 2 GB.
LARGEST_FILE = 1 << 30
NEEDED = ("torch", "onnx", "onnxscript", "numpy")


def export_training_graph(
    module: torch.nn.Module,
    args: Sequence[Any],
    path: Optional[StrPath] = None,
    *,
    loss: Optional[Callable[[Any, Any], Any]] = None,
    dynamic_axes: Optional[Sequence[Optional[Mapping[int, str]]]] = None,
    opset: int = 18,
    param_values: bool = True,
    labels_name: str = "y",
    logits: bool = False,
    sgd: Optional[Mapping[str, float]] = None,
) -> ModelProto:
    """Export forward, loss and backward of a module as one ONNX graph of standard operators.

    Needs torch, onnx and onnxscript (``pip install velora-opt[torch]``); tried with torch 2.15 on the CPU. Attention
    must be written out (matmul, softmax, matmul), since the fused kernels' backward has no ONNX form; BatchNorm in
    training mode changes a buffer, which tracing refuses; buffers become constants of the graph.

    Args:
        module: its parameters, trainable or frozen, become inputs of the graph named as in
            ``module.named_parameters()``; a tied one appears once. Put it in the mode (train or eval) to be exported.
        args: an example batch: the inputs, and last the labels, ``(x, y)`` or ``(x0, x1, y)``. Give sizes
            of 2 or more along open axes: the tracer specialises on 1. What the tensors hold does not matter.
        path: where to write the model; not written where absent. Weights of more than 1 GiB go to ``<path>.data``.
        loss: ``loss(output, y)``, a scalar; without it, ``module(*inputs, y)`` returns the loss itself.
        dynamic_axes: one ``{axis: name}`` for each tensor of the batch, labels last. None leaves the first axis of
            each open, as ``batch``; an empty sequence means that all sizes are those of the example.
        opset: the operator set of the result.
        param_values: also store the current values of parameters, as defaults of the inputs. Without, the file has
            no weights.
        labels_name: the name of the labels' input; those of the others are ``x``, or ``x0``, ``x1``, ...
        logits: make what the module returns an output ``logits``, behind the loss. Needs ``loss``.
        sgd: ``{"lr": ..., "momentum": ...}`` puts the optimiser into the graph: inputs ``momentum.<name>``, and
            outputs ``updated.<name>`` and ``updated.momentum.<name>`` instead of gradients.

    Returns:
        The model: outputs ``loss``, ``logits`` where asked for, and ``grad.<name>`` for each trainable parameter.

    Raises:
        VeloraError: a package is missing.
        ValueError: nothing is trainable, an operator outside the standard domain is left, or an axis that was to be
            open became a number.
    """
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise VeloraError(f"export_training_graph needs {name} ({error}): pip install velora-opt[torch]") from error
    if logits and loss is None:
        raise ValueError("logits needs a loss: without one, the module returns the loss alone")
    from . import _torch_export

    *inputs, labels = args
    x = inputs[0] if len(inputs) == 1 else tuple(inputs)
    with warnings.catch_warnings():
        # That the module is in training mode, and more that is as it should be.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.|velora_opt\._torch_export")
        model = _torch_export.training_graph(
            module, loss, (x, labels), dynamic_axes=dynamic_axes, opset=opset, param_values=param_values,
            labels_name=labels_name, logits=logits, sgd=sgd,
        )
    if path is not None:
        _write(model, os.fspath(path))
    return model


def _write(model: ModelProto, path: str) -> None:
    """Write a model, whole or not at all, unless its weights lie beside it."""
    import onnx

    if model.ByteSize() > LARGEST_FILE:
        # Of a copy: saving puts references into the model.
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        data = os.path.basename(path) + ".data"
        onnx.save_model(copy, path, save_as_external_data=True, all_tensors_to_one_file=True, location=data)
        return
    folder = os.path.dirname(path) or os.curdir
    handle, partial = tempfile.mkstemp(dir=folder, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(model.SerializeToString(deterministic=True))
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
