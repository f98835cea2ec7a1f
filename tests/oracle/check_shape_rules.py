#!/usr/bin/env python3
"""Check the rules of single operators against the node cases of the onnx package.

    cargo build --release -p velora-graph --example print_shapes
    python check_shape_rules.py target/release/examples/print_shapes

Each case is a model of one operator (or of its function body) with inputs and expected outputs. It is
inferred twice: with the inputs as constants, whose elements the rules may use, and as plain inputs of
the same shape. The declared types of outputs and inner values are taken away first. In neither may
inference report a contradiction, or a type, rank, size or element that the expected outputs refute.

Exit status 1 where one does. Also prints for which operators the shape stays open with constants.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnx.numpy_helper
from onnx.backend.test.case.node import collect_testcases

UNDEFINED = "⊤"


def bare(model, arrays=None):
    """The model without declared outputs and inner values; with `arrays` its inputs are constants."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    del graph.value_info[:]
    for output in graph.output:
        output.ClearField("type")
    if arrays is not None:
        graph.initializer.extend(
            onnx.numpy_helper.from_array(a, i.name) for i, a in zip(graph.input, arrays))
        del graph.input[:]
    return model


def number(text):
    return int(text) if text.lstrip("-").isdigit() else None


def refuted(found, array):
    """What inference says of an output that its expected value refutes."""
    dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    if found["dtype"] not in (None, dtype):
        yield f"element type {found['dtype']}, expected {dtype}"
    if found["dims"] is not None:
        if len(found["dims"]) != array.ndim:
            yield f"shape {found['dims']}, expected {list(array.shape)}"
        elif any(number(d) not in (None, s) for d, s in zip(found["dims"], array.shape)):
            yield f"shape {found['dims']}, expected {list(array.shape)}"
    if found["contents"] is not None:
        flat = array.ravel().tolist()
        if len(flat) != len(found["contents"]):
            yield f"{len(found['contents'])} elements followed, expected {len(flat)}"
        elif any(number(t) not in (None, v) for t, v in zip(found["contents"], flat)):
            yield f"elements {found['contents']}, expected {flat}"


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("binary")
    opt = cli.parse_args()
    failed, ran = 0, 0
    state = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "case.onnx")
        for case in collect_testcases(None):
            inputs, outputs = case.data_sets[0]
            tensors = all(isinstance(a, np.ndarray) for a in [*inputs, *outputs])
            if case.model is None or not tensors or len(inputs) != len(case.model.graph.input):
                state["(not tensors)"]["left out"] += 1
                continue
            op = case.model.graph.node[-1].op_type
            for constant in (True, False):
                path.write_bytes(bare(case.model, inputs if constant else None).SerializeToString())
                result = subprocess.run([opt.binary, path], capture_output=True, text=True)
                ran += 1
                problems = []
                if result.returncode:
                    problems.append(result.stderr.strip())
                    state[op]["error"] += 1
                elif result.stderr:
                    state[op]["no rule"] += 1
                values = {v["name"]: v for v in map(json.loads, result.stdout.splitlines())}
                for info, array in zip(case.model.graph.output, outputs) if values else ():
                    found = values[info.name]
                    problems += [f"{info.name}: {p}" for p in refuted(found, array)]
                    if constant and not result.stderr:
                        dims = found["dims"]
                        whole = found["dtype"] and dims is not None and all(number(d) is not None for d in dims)
                        state[op]["whole" if whole else "open"] += 1
                failed += len(problems)
                for problem in problems:
                    print(f"FAILED {case.name} ({'constants' if constant else 'inputs'}): {problem}")
    for label in ("no rule", "open", "left out"):
        print(f"{label}: {', '.join(sorted(op for op, c in state.items() if c[label]))}")
    whole = sum(c["whole"] for c in state.values())
    print(f"{ran} inferences, {whole} outputs known whole from constants, {failed} problems")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
