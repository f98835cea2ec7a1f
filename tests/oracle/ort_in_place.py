#!/usr/bin/env python3
"""Which element-wise operators ONNX Runtime's CPU kernels write over their input.

    python ort_in_place.py [OPERATOR ...]

velora-opt's model of lifetimes lets every element-wise operator write over an input that dies there (see
`element_wise` in graph/src/analysis/lifetimes.rs). A runtime's kernel may not. For each operator this runs

    x (graph input) -> Neg -> OPERATOR -> ReduceSum

with a 64 MiB tensor, no arena, no memory pattern and no optimisation, and reads the peak of the resident
memory, each in a process of its own: one tensor of growth means in place, two mean a buffer of its own.
Exit status 0 always; the table is the result.
"""

import argparse
import pathlib
import sys
import tempfile

import measure_memory
import onnx

SIDE = 4096  # a square of float32: 64 MiB
BINARY = {"Add", "Sub", "Mul", "Div", "Pow", "Sum"}
UNARY = ["Abs", "Ceil", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "LeakyRelu", "Log", "LogSoftmax",
         "Neg", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softmax", "Softplus", "Sqrt", "Tanh"]


def model(op):
    """The graph for one operator; a binary one has a constant on its right."""
    right = ["one"] if op in BINARY else []
    nodes = [
        onnx.helper.make_node("Neg", ["x"], ["a"]),
        onnx.helper.make_node(op, ["a", *right], ["b"]),
        onnx.helper.make_node("ReduceSum", ["b"], ["y"], keepdims=0),
    ]
    value = lambda name, shape: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    one = onnx.helper.make_tensor("one", onnx.TensorProto.FLOAT, [], [1.0])
    graph = onnx.helper.make_graph(nodes, op, [value("x", [SIDE, SIDE])], [value("y", [])], [one])
    graph.value_info.extend(value(name, [SIDE, SIDE]) for name in "ab")
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def tensors(op, folder):
    """Growth of one run in tensors of 64 MiB."""
    path = pathlib.Path(folder) / f"{op}.onnx"
    onnx.save(model(op), path)
    job = {"model": str(path), "dims": {}, "seed": 0, "int_high": 2, "arena": False, "order": "default", "threads": 1,
           "optimise": False}
    run = measure_memory.measure_in_fresh_process(job)
    if "error" in run:
        raise SystemExit(f"{op}: {run['error']}")
    return run["growth_bytes"] / (4 * SIDE * SIDE)


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("operator", nargs="*", metavar="OPERATOR", help="default: all that lifetimes.rs lists but logic")
    opt = cli.parse_args()
    print("| operator | growth, tensors | in place |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for op in opt.operator or [*sorted(BINARY), *UNARY]:
            growth = tensors(op, folder)
            print(f"| {op} | {growth:.2f} | {'yes' if growth < 1.5 else 'no'} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
