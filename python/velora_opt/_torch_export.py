"""The tracing behind `export_training_graph`; importing it needs torch and onnx.

1. `torch.func.functional_call` makes the module a pure function of its parameters, and
   `torch.func.grad_and_value` differentiates the loss.
2. `make_fx` traces that function to one ATen graph. A decomposition table removes the `*_backward` ATen operators,
   which have no ONNX translation. (Handing a module that calls `torch.func.grad` to `torch.onnx.export` directly fails
   in torch 2.15.)
3. `torch.onnx.export(dynamo=True)` translates the graph to standard operators.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import onnx
import torch
from torch._decomp import core_aten_decompositions
from torch.func import functional_call, grad_and_value
from torch.fx.experimental import _config as symbolic_config
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

# Tensors are Any: this file is checked where torch is not installed.
Loss = Optional[Callable[[Any, Any], Any]]
Axes = Optional[Sequence[Optional[Mapping[int, str]]]]

# Bounds of every symbolic axis as told to the exporter. They are not written to the graph; tables
# of a fixed length inside a model (positions, masks) may set a lower limit of their own.
AXIS_MIN, AXIS_MAX = 2, 4096


class TrainStep(torch.nn.Module):
    """forward(*state, *batch, labels) -> outputs, with no hidden state.

    The state, `names` and `values`, is every parameter. The outputs, `outputs`, are the loss, the
    logits where asked for, and the gradient of each trainable parameter.
    """

    def __init__(self, model: Any, loss: Loss, logits: bool = False) -> None:
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
    def outputs(self) -> List[str]:
        return [*self.heads, *(f"grad.{name}" for name in self.trainable)]

    def forward(self, *args: Any) -> Tuple[Any, ...]:
        state = dict(zip(self.names, args))
        *inputs, labels = args[len(self.names) :]
        params = {name: state[name] for name in self.params}

        def objective(trained: Dict[str, Any]) -> Tuple[Any, Any]:
            if self.loss is None:
                value = functional_call(self.model, {**params, **trained}, (*inputs, labels))
                return value, value
            output = functional_call(self.model, {**params, **trained}, tuple(inputs))
            return self.loss(output, labels), output

        step = grad_and_value(objective, has_aux=True)
        grads, heads = step({name: params[name] for name in self.trainable})
        return (*heads[: len(self.heads)], *self.results(grads, state))

    def results(self, grads: Dict[str, Any], _state: Dict[str, Any]) -> List[Any]:
        return [grads[name] for name in self.trainable]


class SgdStep(TrainStep):
    """The same with the optimiser inside: updated parameters and momenta instead of gradients.

    As `torch.optim.SGD(lr, momentum)` does it: m' = momentum m + gradient, p' = p - lr m'.
    """

    def __init__(self, model: Any, loss: Loss, logits: bool = False, *, lr: float, momentum: float) -> None:
        super().__init__(model, loss, logits)
        self.lr, self.momentum = lr, momentum
        values = dict(zip(self.names, self.values))
        self.names += [f"momentum.{name}" for name in self.trainable]
        self.values += [torch.zeros_like(values[name]) for name in self.trainable]

    @property
    def outputs(self) -> List[str]:
        updated = [f"{kind}{name}" for kind in ("", "momentum.") for name in self.trainable]
        return [*self.heads, *(f"updated.{name}" for name in updated)]

    def results(self, grads: Dict[str, Any], state: Dict[str, Any]) -> List[Any]:
        momenta = {
            name: self.momentum * state[f"momentum.{name}"] + grads[name] for name in self.trainable
        }
        params = (state[name] - self.lr * momenta[name] for name in self.trainable)
        return [*params, *momenta.values()]


def train_step(model: Any, loss: Loss, logits: bool, sgd: Optional[Mapping[str, float]]) -> TrainStep:
    """The step that is traced."""
    return SgdStep(model, loss, logits, **sgd) if sgd else TrainStep(model, loss, logits)


class FlatLinear(TorchFunctionMode):
    """Linear layers with a bias see rows, whatever the rank of their input.

    PyTorch flattens the leading axes itself, but asks for their sizes as numbers: with an input of
    rank 3, a symbolic batch becomes the size that is traced.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.linear:
            return func(*args, **kwargs)
        return self.rows(*args, **kwargs)

    @staticmethod
    def rows(input: Any, weight: Any, bias: Any = None) -> Any:
        if bias is None or input.dim() < 3:
            return torch.nn.functional.linear(input, weight, bias)
        flat = torch.nn.functional.linear(input.reshape(-1, input.shape[-1]), weight, bias)
        return flat.reshape(*input.shape[:-1], weight.shape[0])


def _silu_grad(dy: Any, x: Any) -> Any:
    s = torch.sigmoid(x)
    return dy * s * (1 + x * (1 - s))


def _empty_as_zeros(size: Any, *_args: Any, **kw: Any) -> Any:
    return torch.ops.aten.full.default(size, 0.0, dtype=kw.get("dtype"), device=kw.get("device"))


def _decompositions() -> Dict[Any, Any]:
    """The core ATen table and two more: SwiGLU's backward otherwise leaves
    `aten.empty_permuted`, which the exporter cannot translate."""
    table: Dict[Any, Any] = dict(core_aten_decompositions())
    table[torch.ops.aten.silu_backward.default] = _silu_grad
    table[torch.ops.aten.empty_permuted.default] = _empty_as_zeros
    return table


def batch_inputs(x: Any) -> Tuple[Any, ...]:
    """The batch inputs, of which one may stand alone."""
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def input_names(inputs: Sequence[Any]) -> List[str]:
    """What they are called in the graph."""
    return ["x"] if len(inputs) == 1 else [f"x{i}" for i in range(len(inputs))]


def _axes_of(dynamic_axes: Axes, inputs: Sequence[Any], labels: Any) -> List[Dict[int, str]]:
    """One {axis: name} per batch tensor, labels last."""
    tensors = (*inputs, labels)
    if dynamic_axes is None:
        return [{0: "batch"} if t.dim() else {} for t in tensors]
    axes = [dict(a or {}) for a in dynamic_axes] or [{} for _ in tensors]
    if len(axes) != len(tensors):
        raise ValueError(f"dynamic_axes has {len(axes)} entries for {len(tensors)} batch tensors")
    return axes


def _strip_stack_traces(proto: onnx.ModelProto) -> None:
    """Drop the exporter's stack traces: they hold paths of the machine that exported."""
    nodes = [*proto.graph.node, *(n for f in proto.functions for n in f.node)]
    for node in nodes:
        kept = [p for p in node.metadata_props if p.key != "pkg.torch.onnx.stack_trace"]
        if len(kept) != len(node.metadata_props):
            del node.metadata_props[:]
            node.metadata_props.extend(kept)


def training_graph(
    model: Any,
    loss: Loss,
    example_batch: Tuple[Any, Any],
    *,
    dynamic_axes: Axes = None,
    opset: int = 18,
    param_values: bool = False,
    labels_name: str = "y",
    logits: bool = False,
    sgd: Optional[Mapping[str, float]] = None,
) -> onnx.ModelProto:
    """What `velora_opt.export_training_graph` says, of a batch `(x, labels)` where `x` is a tensor or a tuple."""
    x, labels = example_batch
    inputs = batch_inputs(x)
    axes = _axes_of(dynamic_axes, inputs, labels)
    symbolic = any(axes)
    step = train_step(model, loss, logits, sgd)
    args = (*step.values, *inputs, labels)

    trace = make_fx(
        step.forward,
        decomposition_table=_decompositions(),
        tracing_mode="symbolic" if symbolic else "real",
        _allow_non_fake_inputs=True,  # closed-over buffers become constants
    )
    # Without the patch, sizes that are equal in the example are taken for one symbol: a batch as large
    # as any axis of a parameter would become that axis's number.
    with symbolic_config.patch(use_duck_shape=False), FlatLinear() if symbolic else nullcontext():
        graph = trace(*args)
    graph.graph.eliminate_dead_code()
    graph.recompile()

    shapes: Any = None
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
        input_names=[*step.names, *input_names(inputs), labels_name],
        output_names=step.outputs,
        dynamic_shapes=shapes,
    )
    proto: onnx.ModelProto = program.model_proto
    _strip_stack_traces(proto)
    foreign = sorted({f"{n.domain}::{n.op_type}" for n in proto.graph.node if n.domain})
    if foreign:
        raise ValueError(f"operators outside the standard domain: {', '.join(foreign)}")
    given = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.input}
    for name, spec in zip([*input_names(inputs), labels_name], axes):
        for axis, dim in spec.items():
            if name in given and given[name][axis].dim_param != dim:
                size = given[name][axis].dim_value
                raise ValueError(f"axis {axis} of {name} was to be {dim}, but became {size}")
    if param_values:
        for name, value in zip(step.names, step.values):
            array = value.cpu().numpy()
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto
