"""Export a whole PyTorch training step as one ONNX graph, and compare it with eager PyTorch.

The export itself is the Python package's (`python/velora_opt/export.py`; docs/python.md): here under the arguments
that the scripts of this folder give it, and beside it what checks its results.

    proto = export_training_graph(model, loss, (x, y), dynamic_axes=({0: "batch"}, {0: "batch"}))
"""

import copy
import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python"))
from velora_opt._torch_export import (  # noqa: E402
    batch_inputs,
    input_names,
    train_step,
    training_graph as export_training_graph,
)

__all__ = ["check_against_eager", "compare_outputs", "export_training_graph"]


def compare_outputs(names, got, eager, exact, *, factor=16):
    """Compare what a graph gave with eager PyTorch, output by output.

    The reference is `exact`, eager PyTorch in float64. An output passes when its error is at most
    `factor` times the larger of two rounding errors: the one that `eager`, eager PyTorch in
    float32, makes itself, and one float32 epsilon of the largest entry of the output. So a
    gradient that is zero in theory (an attention key bias), hence noise in both, passes, and a
    wrong gradient does not.

    Returns:
        `{"output", "error", "allowed"}` of the output closest to its limit; errors are absolute.

    Raises:
        AssertionError: an output is over its limit, not a number, or of another shape.
    """
    epsilon = np.finfo(np.float32).eps
    worst = None
    for name, ours, single, double in zip(names, got, eager, exact, strict=True):
        want = double.detach().numpy()
        assert ours.shape == want.shape, f"{name}: shape {ours.shape}, expected {want.shape}"
        error = float(np.abs(ours - want).max())
        rounding = float(np.abs(single.detach().numpy() - want).max())
        allowed = factor * max(rounding, float(epsilon * np.abs(want).max()))
        assert error <= allowed, f"{name}: error {error:.3g} exceeds {allowed:.3g}"
        if worst is None or error * worst["allowed"] > worst["error"] * allowed:
            worst = {"output": name, "error": error, "allowed": allowed}
    return worst


def check_against_eager(
    proto, model, loss, batch, *, labels_name="y", logits=False, sgd=None, factor=16, names=None, stored=None
):
    """Run `proto` in ONNX Runtime on `batch` and compare each output with eager PyTorch.

    `compare_outputs` says what passes and what is returned. Momenta are random here: with the
    zeros that training starts from, a graph that ignored them would pass.

    Args:
        names: what the graph calls its batch inputs, where they were renamed.
        stored: values of graph inputs that are no parameters of the model.

    Raises:
        AssertionError: an output is over its limit, or is missing.
    """
    import onnxruntime as ort

    x, labels = batch
    inputs = batch_inputs(x)
    step = train_step(model, loss, logits, sgd)
    exact_step = train_step(copy.deepcopy(model).double(), loss, logits, sgd)
    expected = step.outputs
    for i in range(len(step.params), len(step.names)):
        step.values[i] = torch.randn_like(step.values[i])
        exact_step.values[i] = step.values[i].double()
    eager = step(*step.values, *inputs, labels)
    wide = [t.double() if t.is_floating_point() else t for t in inputs]
    exact = exact_step(*exact_step.values, *wide, labels)

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = zip([*step.names, *(names or input_names(inputs)), labels_name], (*step.values, *inputs, labels))
    feed = {name: value.numpy() for name, value in given} | (stored or {})
    wanted = {i.name for i in [*session.get_inputs(), *session.get_overridable_initializers()]}
    outputs = [o.name for o in session.get_outputs()]
    assert outputs == expected, f"outputs are {outputs}, expected {expected}"
    got = session.run(None, {name: value for name, value in feed.items() if name in wanted})
    return compare_outputs(expected, got, eager, exact, factor=factor)
