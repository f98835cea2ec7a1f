"""`optimize` and `inspect`."""

from __future__ import annotations

import os
import tempfile
import warnings
from typing import TYPE_CHECKING, Any, Optional, Tuple, Union, overload

from ._binary import AlreadyRewritten, Outcome, VeloraError, VeloraWarning, run
from ._options import INSPECT, OPTIMIZE, arguments, path_argument
from .report import Report

if TYPE_CHECKING:
    from onnx import ModelProto
    from typing_extensions import Unpack

    from ._options import InspectOptions, OptimizeOptions, StrPath

# What a protobuf message may have.
LARGEST_MESSAGE = 2**31 - 1


@overload
def optimize(model: StrPath, output: StrPath, **options: Unpack[OptimizeOptions]) -> Report: ...


@overload
def optimize(
    model: ModelProto, output: None = None, **options: Unpack[OptimizeOptions]
) -> Tuple[ModelProto, Report]: ...


@overload
def optimize(model: ModelProto, output: StrPath, **options: Unpack[OptimizeOptions]) -> Report: ...


def optimize(
    model: Union[StrPath, ModelProto], output: Optional[StrPath] = None, **options: Any
) -> Union[Report, Tuple[ModelProto, Report]]:
    """Rewrite a training graph so that its linear layers save compressed activations.

    ``optimize("model.onnx", "out.onnx")`` writes a file and returns the report; ``optimize(proto)`` returns a new
    ``onnx.ModelProto`` and the report, and leaves ``proto`` as it is; ``optimize(proto, "out.onnx")`` writes a file.

    Args:
        model: the path of an ONNX file, or an ``onnx.ModelProto`` (needs the onnx package). Weights that are stored
            beside a file stay there and are not read; a ModelProto must hold all that it has.
        output: where to write. With ``external_data="keep"``, the default, in the model's folder where the model has
            external data. It may be the model's own path.
        **options: the options of the command (``velora-opt --help``), as `OptimizeOptions` lists them, among them
            ``groups`` or ``sub_token_size``, ``init``, ``select``, ``include``, ``exclude``, ``dims``. What is absent
            or None is left to the command.

    Returns:
        The report, and the rewritten model where there is no ``output``. Where nothing can be rewritten, the model
        comes out unchanged, and the report's layers say why.

    Raises:
        VeloraError: the command refused the model or an option; nothing was written.
        AlreadyRewritten: the model is rewritten already. An ``output`` was written, unchanged.
        TypeError: an unknown option, or a model that is neither a path nor a ModelProto.
    """
    words, chatty = arguments("optimize", OPTIMIZE, options)
    if not _is_proto(model):
        if output is None:
            raise TypeError("optimize() needs an output where the model is a path")
        source, data = path_argument(model), None
    else:
        source, data = "-", _serialised(model)
    if output is not None:
        return _report(run([*words, f"--output={path_argument(output)}", "--json=-", "--", source], data, chatty=chatty))
    import onnx

    # The report takes standard output; the model a file.
    with tempfile.TemporaryDirectory(prefix="velora-opt-") as folder:
        file = os.path.join(folder, "model.onnx")
        report = _report(run([*words, f"--output={file}", "--json=-", "--", source], data, chatty=chatty))
        with open(file, "rb") as stream:
            return onnx.ModelProto.FromString(stream.read()), report


def inspect(model: Union[StrPath, ModelProto], **options: Unpack[InspectOptions]) -> Report:
    """Where a training graph's memory goes, what could be freed, and what keeps it alive.

    Args:
        model: as for `optimize`.
        **options: the options of ``velora-opt inspect``, as `InspectOptions` lists them, among them ``groups``,
            ``dims``, ``sweep`` and ``data``.

    Returns:
        The report of what `optimize` would do, and beside it ``presets``, and ``sweep`` where it was asked for.

    Raises:
        VeloraError: the command refused the model or an option.
        TypeError: an unknown option, or a model that is neither a path nor a ModelProto.
    """
    words, chatty = arguments("inspect", INSPECT, options)
    words = ["inspect", *words, "--json=-", "--"]
    if _is_proto(model):
        return _report(run([*words, "-"], _serialised(model), chatty=chatty))
    return _report(run([*words, path_argument(model)], chatty=chatty))


def _report(outcome: Outcome) -> Report:
    """The report of a run; what the command said beside it becomes warnings."""
    if not outcome.output.strip():
        raise AlreadyRewritten(" ".join(outcome.said) or "there is no report")
    for line in outcome.said:
        # The reader of the warning called optimize or inspect, which called this.
        warnings.warn(line, VeloraWarning, stacklevel=3)
    return Report.from_json(outcome.output)


def _is_proto(model: Any) -> bool:
    """Whether it is a ModelProto; told without the onnx package, which a path does not need."""
    if isinstance(model, (str, os.PathLike)):
        return False
    if type(model).__name__ == "ModelProto" and hasattr(model, "SerializeToString"):
        return True
    raise TypeError(f"expected a path or an onnx.ModelProto, found {type(model).__name__}")


def _serialised(model: Any) -> bytes:
    """The message; what one message cannot hold is refused here, in words that say what to do."""
    import onnx

    outside = [t.name for t in _tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise VeloraError(
            f"the model's tensor {outside[0]!r} is stored in another file, and a ModelProto does not say where that "
            "is: pass the model's path, or load it with its data (onnx.load does)"
        )
    too_large = VeloraError(
        "the model does not fit one message of 2 GB: save it with its weights in another file "
        "(onnx.save(..., save_as_external_data=True)) and pass the path"
    )
    try:
        data: bytes = model.SerializeToString()
    except Exception as error:  # protobuf's implementations raise different ones
        raise too_large from error
    if len(data) > LARGEST_MESSAGE:
        raise too_large
    return data


def _tensors(model: Any) -> Any:
    """Tensors of the main graph and its nodes, which are those that exporters store elsewhere."""
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
