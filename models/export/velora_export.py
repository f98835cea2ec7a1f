"""Export a whole PyTorch training step (forward and backward) as one ONNX graph.

    from velora_export import export_training_graph

    proto = export_training_graph(model, loss, (x, y), dynamic_axes=({0: "batch"}, {0: "batch"}))
    onnx.save(proto, "step.onnx")

How it works:

1. `torch.func.functional_call` makes the model a pure function of its parameters, and
   `torch.func.grad_and_value` differentiates the loss.
2. `make_fx` traces that function to one ATen graph. A decomposition table removes the
   `*_backward` ATen operators, which have no ONNX translation. (Handing a module that calls
   `torch.func.grad` to `torch.onnx.export` directly fails in torch 2.15.)
3. `torch.onnx.export(dynamo=True)` translates the graph to standard operators.

Known limits: attention must be written out (matmul, softmax, matmul), since the fused kernels'
backward has no ONNX form; BatchNorm in training mode mutates a buffer, which `make_fx` refuses;
buffers become constants of the graph. Tried with torch 2.15.0 on the CPU only.
"""

import copy
from contextlib import nullcontext

import numpy as np
import onnx
import torch
from torch._decomp import core_aten_decompositions
from torch.func import functional_call, grad_and_value
from torch.fx.experimental import _config as symbolic_config
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

# Bounds of every symbolic axis as told to the exporter. They are not written to the graph; tables
# of a fixed length inside a model (positions, masks) may set a lower limit of their own.
AXIS_MIN, AXIS_MAX = 2, 4096


class _TrainStep(torch.nn.Module):
    """forward(*state, *batch, labels) -> outputs, with no hidden state.

    The state, `names` and `values`, is every parameter. The outputs, `outputs`, are the loss, the
    logits where asked for, and the gradient of each trainable parameter.
    """

    def __init__(self, model, loss, logits=False):
        super().__init__()
        named = list(model.named_parameters())
        self.params = [name for name, _ in named]
        self.names = list(self.params)
        self.values = [param.detach().clone() for _, param in named]
        self.trainable = [name for name, param in named if param.requires_grad]
        if not self.trainable:
            raise ValueError("the model has no parameter that requires a gradient")
        self.heads = ["loss", "logits"] if logits else ["loss"]
        # Not registered as submodules: their parameters are inputs of the graph, not state.
        self.__dict__["model"] = model
        self.__dict__["loss"] = loss

    @property
    def outputs(self):
        return [*self.heads, *(f"grad.{name}" for name in self.trainable)]

    def forward(self, *args):
        state = dict(zip(self.names, args))
        *inputs, labels = args[len(self.names) :]
        params = {name: state[name] for name in self.params}

        def objective(trained):
            output = functional_call(self.model, {**params, **trained}, tuple(inputs))
            return self.loss(output, labels), output

        step = grad_and_value(objective, has_aux=True)
        grads, heads = step({name: params[name] for name in self.trainable})
        return (*heads[: len(self.heads)], *self.results(grads, state))

    def results(self, grads, _state):
        return [grads[name] for name in self.trainable]


class _SgdStep(_TrainStep):
    """The same with the optimiser inside: updated parameters and momenta instead of gradients.

    As `torch.optim.SGD(lr, momentum)` does it: m' = momentum m + gradient, p' = p - lr m'.
    """

    def __init__(self, model, loss, logits=False, *, lr, momentum):
        super().__init__(model, loss, logits)
        self.lr, self.momentum = lr, momentum
        values = dict(zip(self.names, self.values))
        self.names += [f"momentum.{name}" for name in self.trainable]
        self.values += [torch.zeros_like(values[name]) for name in self.trainable]

    @property
    def outputs(self):
        updated = [f"{kind}{name}" for kind in ("", "momentum.") for name in self.trainable]
        return [*self.heads, *(f"updated.{name}" for name in updated)]

    def results(self, grads, state):
        momenta = {
            name: self.momentum * state[f"momentum.{name}"] + grads[name] for name in self.trainable
        }
        params = (state[name] - self.lr * momenta[name] for name in self.trainable)
        return [*params, *momenta.values()]


def _train_step(model, loss, logits, sgd):
    return _SgdStep(model, loss, logits, **sgd) if sgd else _TrainStep(model, loss, logits)


class _FlatLinear(TorchFunctionMode):
    """Linear layers with a bias see rows, whatever the rank of their input.

    PyTorch flattens the leading axes itself, but asks for their sizes as numbers: with an input of
    rank 3, a symbolic batch becomes the size that is traced.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not torch.nn.functional.linear:
            return func(*args, **kwargs)
        return self.rows(*args, **kwargs)

    @staticmethod
    def rows(input, weight, bias=None):
        if bias is None or input.dim() < 3:
            return torch.nn.functional.linear(input, weight, bias)
        flat = torch.nn.functional.linear(input.reshape(-1, input.shape[-1]), weight, bias)
        return flat.reshape(*input.shape[:-1], weight.shape[0])


def _silu_grad(dy, x):
    s = torch.sigmoid(x)
    return dy * s * (1 + x * (1 - s))


def _empty_as_zeros(size, *_args, **kw):
    return torch.ops.aten.full.default(size, 0.0, dtype=kw.get("dtype"), device=kw.get("device"))


def _decompositions():
    """The core ATen table and two more: SwiGLU's backward otherwise leaves
    `aten.empty_permuted`, which the exporter cannot translate."""
    table = dict(core_aten_decompositions())
    table[torch.ops.aten.silu_backward.default] = _silu_grad
    table[torch.ops.aten.empty_permuted.default] = _empty_as_zeros
    return table


def _batch_inputs(x):
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def _input_names(inputs):
    return ["x"] if len(inputs) == 1 else [f"x{i}" for i in range(len(inputs))]


def _axes_of(dynamic_axes, inputs, labels):
    """One {axis: name} per batch tensor, labels last."""
    tensors = (*inputs, labels)
    if dynamic_axes is None:
        return [{0: "batch"} if t.dim() else {} for t in tensors]
    axes = [dict(a or {}) for a in dynamic_axes] or [{} for _ in tensors]
    if len(axes) != len(tensors):
        raise ValueError(f"dynamic_axes has {len(axes)} entries for {len(tensors)} batch tensors")
    return axes


def _strip_stack_traces(proto):
    """Drop the exporter's stack traces: they hold paths of the machine that exported."""
    nodes = [*proto.graph.node, *(n for f in proto.functions for n in f.node)]
    for node in nodes:
        kept = [p for p in node.metadata_props if p.key != "pkg.torch.onnx.stack_trace"]
        if len(kept) != len(node.metadata_props):
            del node.metadata_props[:]
            node.metadata_props.extend(kept)


def export_training_graph(
    model,
    loss,
    example_batch,
    *,
    dynamic_axes=None,
    opset=18,
    param_values=False,
    labels_name="y",
    logits=False,
    sgd=None,
):
    """Export forward, loss and backward of `model` as one ONNX graph of standard operators.

    Args:
        model: `nn.Module` whose forward takes the batch inputs. Every parameter, trainable or
            frozen, becomes a graph input named as in `model.named_parameters()`; a tied
            parameter appears once. Put the model in the mode (train or eval) to be exported.
        loss: callable `(output, labels) -> scalar`.
        example_batch: `(x, y)`; `x` is a tensor or a tuple of tensors. The inputs are named `x`
            (or `x0`, `x1`, ...) and `y` (`labels_name`). Give sizes of 2 or more along symbolic axes: the tracer
            specialises on 1.
        dynamic_axes: one `{axis: name}` for each batch tensor, labels last, for example
            `({0: "batch", 1: "seq"}, {0: "batch", 1: "seq"})`. None means axis 0 of each is
            `batch`; an empty tuple means static shapes.
        opset: the ONNX opset of the result.
        param_values: also store the current parameter values, as initializers with the names of
            the inputs (that is, their defaults). Otherwise the file holds no weights.
        labels_name: the name of the labels' input.
        logits: make what the model returns an output `logits`, behind the loss.
        sgd: `{"lr": ..., "momentum": ...}` puts the optimiser into the graph: each trainable
            parameter has another input, `momentum.<name>`, and instead of its gradient the
            outputs `updated.<name>` and `updated.momentum.<name>`. The two numbers are constants.

    Returns:
        An `onnx.ModelProto` with outputs `loss`, `logits` if asked for, and, for each trainable
        parameter, `grad.<name>`.

    Raises:
        ValueError: nothing is trainable, an operator outside the standard domain is left, or an
            axis that was to be symbolic became a number.
    """
    x, labels = example_batch
    inputs = _batch_inputs(x)
    axes = _axes_of(dynamic_axes, inputs, labels)
    symbolic = any(axes)
    step = _train_step(model, loss, logits, sgd)
    args = (*step.values, *inputs, labels)

    trace = make_fx(
        step.forward,
        decomposition_table=_decompositions(),
        tracing_mode="symbolic" if symbolic else "real",
        _allow_non_fake_inputs=True,  # closed-over buffers become constants
    )
    # Without the patch, sizes that are equal in the example are taken for one symbol: a batch as large
    # as any axis of a parameter would become that axis's number.
    with symbolic_config.patch(use_duck_shape=False), _FlatLinear() if symbolic else nullcontext():
        graph = trace(*args)
    graph.graph.eliminate_dead_code()
    graph.recompile()

    shapes = None
    if symbolic:
        dims = {
            name: torch.export.Dim(name, min=AXIS_MIN, max=AXIS_MAX)
            for name in dict.fromkeys(name for spec in axes for name in spec.values())
        }
        named = ({axis: dims[name] for axis, name in spec.items()} for spec in axes)
        shapes = (*(None for _ in step.values), *named)

    program = torch.onnx.export(
        graph,
        args,
        dynamo=True,
        opset_version=opset,
        optimize=True,
        verbose=False,
        input_names=[*step.names, *_input_names(inputs), labels_name],
        output_names=step.outputs,
        dynamic_shapes=shapes,
    )
    proto = program.model_proto
    _strip_stack_traces(proto)
    foreign = sorted({f"{n.domain}::{n.op_type}" for n in proto.graph.node if n.domain})
    if foreign:
        raise ValueError(f"operators outside the standard domain: {', '.join(foreign)}")
    given = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.input}
    for name, spec in zip([*_input_names(inputs), labels_name], axes):
        for axis, dim in spec.items():
            if name in given and given[name][axis].dim_param != dim:
                size = given[name][axis].dim_value
                raise ValueError(f"axis {axis} of {name} was to be {dim}, but became {size}")
    if param_values:
        for name, value in zip(step.names, step.values):
            array = value.cpu().numpy()
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


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
    proto, model, loss, batch, *, labels_name="y", logits=False, sgd=None, factor=16
):
    """Run `proto` in ONNX Runtime on `batch` and compare each output with eager PyTorch.

    `compare_outputs` says what passes and what is returned. Momenta are random here: with the
    zeros that training starts from, a graph that ignored them would pass.

    Raises:
        AssertionError: an output is over its limit, or is missing.
    """
    import onnxruntime as ort

    x, labels = batch
    inputs = _batch_inputs(x)
    step = _train_step(model, loss, logits, sgd)
    exact_step = _train_step(copy.deepcopy(model).double(), loss, logits, sgd)
    names = step.outputs
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
    given = zip([*step.names, *_input_names(inputs), labels_name], (*step.values, *inputs, labels))
    feed = {name: value.numpy() for name, value in given}
    wanted = {i.name for i in [*session.get_inputs(), *session.get_overridable_initializers()]}
    outputs = [o.name for o in session.get_outputs()]
    assert outputs == names, f"outputs are {outputs}, expected {names}"
    got = session.run(None, {name: value for name, value in feed.items() if name in wanted})
    return compare_outputs(names, got, eager, exact, factor=factor)
