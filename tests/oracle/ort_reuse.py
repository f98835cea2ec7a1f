#!/usr/bin/env python3
"""Where ONNX Runtime's memory of one step goes: the order it chose, and its rules for buffers, one by one.

    python ort_reuse.py ../../models/aot/deep_mlp.onnx --dim batch=8192 [--order priority]

Runs the graph once with default session options and profiling; reads off the profile the order of the
optimised graph's nodes and the shapes of their outputs; then counts the bytes alive at each step by three
sets of rules, each of which adds one thing to the one before:

  in place   velora-opt's model (graph/src/analysis/lifetimes.rs), over the runtime's own order and nodes: views
             take no bytes, and an element-wise operator writes over an input that dies there
  kernels    the same, but only those operators write in place whose CPU kernels do (ort_in_place.py)
  reuse      the same, and the planner's rule of reuse: the buffer of a dead value goes to the next value
             with the same declared shape and element size, the one that died last first, and from then on
             it is held until the last value in it is dead, also while no value needs it

The last rule is `FindReusableTensor` in onnxruntime/core/framework/allocation_planner.cc; a shape that is
not declared or not inferred, and a scalar, is never reused. Outputs of the graph have buffers of their own.
Weights, inputs and what kernels allocate inside are not counted. Needs stock onnxruntime, onnx, numpy.
"""

import argparse
import collections
import json
import pathlib
import sys
import tempfile

import measure_memory
import numpy as np
import onnx

VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
# As in graph/src/analysis/lifetimes.rs.
ELEMENT_WISE = {"Abs", "Add", "And", "Ceil", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu", "LeakyRelu",
                "Log", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin",
                "Softmax", "LogSoftmax", "Softplus", "Sqrt", "Sub", "Sum", "Tanh", "Where"}
# As ort_in_place.py finds for onnxruntime 1.32.0.
IN_PLACE_KERNELS = {"Clip", "Elu", "LeakyRelu", "LogSoftmax", "Relu", "Sigmoid", "Softmax", "Softplus", "Tanh"}
BYTES = {"float": 4, "int64": 8, "int32": 4, "bool": 1, "double": 8, "float16": 2}
MIB = 2**20


def named(path):
    """The model with a name on every node, which is how a profile and a file are matched."""
    model = onnx.load(path)
    parts, number = [model.graph, *model.functions], 0
    while parts:
        for node in parts.pop().node:
            number += 1
            node.name = node.name or f"unnamed.{number}"
            parts.extend(a.g for a in node.attribute if a.HasField("g"))
    return model


def profile(path, dims, order):
    """The optimised model, and for each node that ran its name and the type and shape of its outputs."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "named.onnx"
        onnx.save(named(path), source)
        optimised = pathlib.Path(folder) / "optimised.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(optimised)
        options.enable_profiling = True
        options.profile_file_prefix = str(pathlib.Path(folder) / "profile")
        if order == "priority":
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        session = ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        session.run(None, measure_memory.feeds(session.get_inputs(), dims, 2, 0))
        with open(session.end_profiling(), encoding="utf-8") as file:
            events = json.load(file)
        model = onnx.load(optimised)
    suffix = "_kernel_time"
    ran = [(e["name"].removesuffix(suffix), [next(iter(o.items())) for o in e["args"]["output_type_shape"]])
           for e in events if e.get("cat") == "Node" and e["name"].endswith(suffix)]
    return model, ran


def declared_shapes(model):
    """By value: its declared axes (a number or a name, or None) where the rank is known."""
    shapes = {}
    for info in [*model.graph.value_info, *model.graph.output]:
        tensor = info.type.tensor_type
        if tensor.HasField("shape"):
            shapes[info.name] = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None
                                      for d in tensor.shape.dim)
    return shapes


def same_shape(a, b):
    """Whether the planner takes two declared shapes for equal; it never does where an axis is open."""
    return a is not None and b is not None and len(a) > 0 and None not in a and a == b


class Step:
    """One run of a graph: its nodes in order, the bytes of its values, and what its planner knows."""

    def __init__(self, model, ran):
        by_name = {n.name: n for n in model.graph.node}
        if len(by_name) < len(model.graph.node):
            raise SystemExit("two nodes of the optimised graph have one name: cannot match them with the profile")
        # Nodes of nested graphs are in the profile as well; their buffers are not followed.
        ran = [(name, results) for name, results in ran if name in by_name]
        missing = by_name.keys() - {name for name, _ in ran}
        if missing:
            raise SystemExit(f"not in the profile: {sorted(missing)[:5]}")
        self.nodes = [by_name[name] for name, _ in ran]
        self.outputs = {o.name for o in model.graph.output}
        self.declared = declared_shapes(model)
        self.bytes, self.unit, self.shape = {}, {}, {}
        for node, (_, results) in zip(self.nodes, ran):
            for value, (kind, shape) in zip([o for o in node.output if o], results):
                self.unit[value], self.shape[value] = BYTES[kind], tuple(shape)
                self.bytes[value] = int(np.prod(shape)) * BYTES[kind]

    def readers(self):
        """By value: how often it is read, and once more for an output of the graph."""
        count = collections.Counter(i for n in self.nodes for i in n.input if i)
        count.update(self.outputs)
        return count

    def buffers(self, in_place, reuse):
        """By buffer, called by the value that it was made for: the first and the last step that hold it,
        and by value its buffer. A view of an input or a weight has none."""
        reads, left = self.readers(), collections.Counter()
        buffer_of, first, last, free = {}, {}, {}, []
        for step, node in enumerate(self.nodes):
            for slot, value in enumerate(node.output):
                if not value:
                    continue
                buffer = None
                if value in self.outputs:
                    pass
                elif node.op_type in VIEWS and slot == 0:
                    buffer = buffer_of.get(node.input[0])
                    if buffer is None:
                        continue
                elif node.op_type in in_place and slot == 0:
                    buffer = next((buffer_of[i] for i in node.input if i in buffer_of and self.bytes.get(i) == self.bytes[value]
                                   and left[buffer_of[i]] == 1 and buffer_of[i] not in self.outputs), None)
                if buffer is None and reuse and value not in self.outputs:
                    buffer = next((f for f in free if same_shape(self.declared.get(f), self.declared.get(value))
                                   and self.unit[f] == self.unit[value]), None)
                    if buffer is not None:
                        free.remove(buffer)
                if buffer is None:
                    buffer = value
                    first[value] = step
                buffer_of[value] = buffer
                left[buffer] += reads[value]
                last[buffer] = step
            for value in node.input:
                if value in buffer_of:
                    buffer = buffer_of[value]
                    left[buffer] -= 1
                    last[buffer] = step
            for value in dict.fromkeys([*node.input, *node.output]):
                buffer = buffer_of.get(value)
                if buffer is not None and left[buffer] == 0 and buffer not in free and buffer not in self.outputs:
                    free.insert(0, buffer)
        for value in self.outputs & first.keys():
            last[value] = len(self.nodes)
        return first, last, buffer_of

    def peak(self, first, last):
        """The most bytes held at once, and the step."""
        change = [0] * (len(self.nodes) + 2)
        for buffer, step in first.items():
            change[step] += self.bytes[buffer]
            change[last[buffer] + 1] -= self.bytes[buffer]
        live = best = at = 0
        for step in range(len(self.nodes)):
            live += change[step]
            if live > best:
                best, at = live, step
        return best, at

    def held_but_dead(self, first, last, buffer_of, at):
        """Buffers held at a step though no value in them is needed then: (bytes, the value that died, the
        next one that takes the buffer)."""
        dies = {}
        for step, node in enumerate(self.nodes):
            dies.update({v: step for v in [*node.input, *node.output] if v in buffer_of})
        born = {v: step for step, n in enumerate(self.nodes) for v in n.output if v}
        values = collections.defaultdict(list)
        for value, buffer in buffer_of.items():
            values[buffer].append(value)
        for buffer, step in first.items():
            held = values[buffer]
            if step <= at <= last[buffer] and not any(born[v] <= at <= dies[v] for v in held) and buffer not in self.outputs:
                before = max((v for v in held if dies[v] < at), key=lambda v: dies[v])
                after = min((v for v in held if born[v] > at), key=lambda v: born[v])
                yield self.bytes[buffer], before, after


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("model")
    cli.add_argument("--dim", action="append", default=[], type=measure_memory.parse_dim, metavar="NAME=N")
    cli.add_argument("--order", choices=["default", "priority"], default="default")
    cli.add_argument("--top", type=int, default=10, help="buffers listed")
    opt = cli.parse_args()
    step = Step(*profile(opt.model, dict(opt.dim), opt.order))
    rules = [("in place", ELEMENT_WISE, False), ("kernels", IN_PLACE_KERNELS, False), ("reuse", IN_PLACE_KERNELS, True)]
    print(f"{opt.model}: {len(step.nodes)} nodes, {opt.order} order")
    for name, in_place, reuse in rules:
        first, last, buffer_of = step.buffers(in_place, reuse)
        best, at = step.peak(first, last)
        node = step.nodes[at]
        print(f"{name:9} peak {best / MIB:8.1f} MiB at step {at}, {node.op_type} -> {node.output[0]}")
    idle = sorted(step.held_but_dead(first, last, buffer_of, at), reverse=True)
    print(f"held but dead at the last of these: {sum(b for b, _, _ in idle) / MIB:.1f} MiB in {len(idle)} buffers")
    for size, before, after in idle[:opt.top]:
        print(f"  {size / MIB:7.1f} MiB {list(step.shape[after])}: after {before}, for {after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
