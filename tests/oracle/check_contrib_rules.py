#!/usr/bin/env python3
"""Check the rules of `com.microsoft` operators that no graph in models/ holds (or not in that form).

    cargo build --release -p velora-graph --example print_shapes
    python check_contrib_rules.py target/release/examples/print_shapes

Each case is one node with constant inputs, run by onnxruntime-training and compared as in
check_shape_rules.py; besides, every output must be known whole. Operators without a CPU kernel are
listed as not run. Exit status 1 where something differs.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import json

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from check_shape_rules import bare, number, refuted


def f(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def i(*values):
    return np.array(values, dtype=np.int64)


TRUE, RATIO = np.array(True), np.array(0.5, np.float32)
# Operator, inputs (None: absent), number of outputs, attributes.
CASES = [
    ("FusedMatMul", [f(2, 3, 8, 5), f(8, 2, 3, 7)], 1, {"transA": 1, "transBatchB": 1}),
    ("FusedMatMul", [f(4, 2, 3, 8), f(2, 3, 8, 5)], 1, {"transBatchA": 1}),
    ("FusedMatMul", [f(2, 3, 4), f(6, 4)], 1, {"transB": 1}),
    ("FusedMatMul", [f(4, 2, 6), f(5, 2, 4)], 1, {"transA": 1, "transB": 1, "transBatchA": 1, "transBatchB": 1}),
    ("TransposeMatMul", [f(4, 3), f(4, 5)], 1, {"transA": 1}),
    ("BiasGelu", [f(2, 3, 4), f(4)], 1, {}),
    ("FastGelu", [f(2, 3, 4), f(4)], 1, {}),
    ("QuickGelu", [f(2, 3)], 1, {}),
    ("Gelu", [f(2, 3)], 1, {}),
    ("BiasGeluGrad_dX", [f(2, 4), f(2, 4), f(4)], 1, {}),
    ("BiasFastGeluGrad_dX", [f(2, 4), f(2, 4), f(4)], 1, {}),
    ("FastGeluGrad", [f(2, 4), f(2, 4)], 1, {}),
    ("GeluGrad", [f(2, 4), f(2, 4)], 1, {}),
    ("SigmoidGrad", [f(2, 4), f(2, 4)], 1, {}),
    ("LeakyReluGrad", [f(2, 4), f(2, 4)], 1, {"alpha": 0.1}),
    ("SoftmaxGrad_13", [f(2, 4), f(2, 4)], 1, {"axis": 1}),
    ("LogSoftmaxGrad_13", [f(2, 4), f(2, 4)], 1, {"axis": 1}),
    ("SoftmaxGrad", [f(2, 4), f(2, 4)], 1, {"axis": 1}),
    ("LogSoftmaxGrad", [f(2, 4), f(2, 4)], 1, {"axis": 1}),
    ("DropoutGrad", [f(2, 4), np.ones((2, 4), bool), RATIO, TRUE], 1, {}),
    ("BitmaskDropout", [f(5, 20), RATIO, TRUE], 2, {}),
    ("BitmaskDropoutGrad", [f(5, 20), np.zeros(4, np.uint32), RATIO, TRUE], 1, {}),
    ("BiasDropout", [f(5, 20), f(20), f(5, 20), RATIO, TRUE], 2, {}),
    ("BiasSoftmax", [f(2, 3, 4), f(2, 3, 4)], 1, {"axis": 2, "is_inner_broadcast": 1}),
    ("SkipLayerNormalization", [f(2, 3, 8), f(2, 3, 8), f(8), f(8), f(8)], 1, {}),
    ("SkipSimplifiedLayerNormalization", [f(2, 3, 8), f(2, 3, 8), f(8)], 1, {}),
    ("InvertibleLayerNormalizationGrad", [f(2, 3, 8), f(2, 3, 8), f(8), f(8), f(2, 3, 1)], 3, {"axis": -1}),
    ("LayerNormalizationGrad", [f(2, 3, 8), f(2, 3, 8), f(8), f(2, 3, 1), f(2, 3, 1)], 3, {"axis": -1}),
    ("SimplifiedLayerNormalizationGrad", [f(2, 3, 8), f(2, 3, 8), f(8), f(2, 3, 1)], 2, {"axis": -1}),
    ("SoftmaxCrossEntropyLossInternal", [f(6, 5), i(0, 1, 2, 3, 4, 0)], 2, {"reduction": "mean"}),
    ("SoftmaxCrossEntropyLossInternal", [f(6, 5), i(0, 1, 2, 3, 4, 0)], 2, {"reduction": "none"}),
    ("SoftmaxCrossEntropyLossInternalGrad", [f(), f(6, 5), i(0, 1, 2, 3, 4, 0)], 1, {"reduction": "mean"}),
    ("GatherGrad", [i(7, 4), i(0, 3), f(2, 4)], 1, {"axis": 0}),
    ("GatherNDGrad", [i(7, 4), i(0, 3).reshape(2, 1), f(2, 4)], 1, {"batch_dims": 0}),
    ("GatherElementsGrad", [f(2, 3), i(5, 3), np.zeros((2, 3), np.int64)], 1, {"axis": 0}),
    ("SliceGrad", [f(2, 4), i(7, 4), i(1), i(3), i(0), i(1)], 1, {}),
    ("ConcatTraining", [f(2, 3), f(2, 5), f(2, 1)], 2, {"axis": 1}),
    ("SplitTraining", [f(2, 9), i(3, 5, 1)], 3, {"axis": 1}),
    ("ReduceSumTraining", [f(2, 3, 4), i(0, 2)], 1, {"keepdims": 0}),
    ("ReduceSumTraining", [f(2, 3, 4), i(1)], 1, {"keepdims": 1}),
    ("InPlaceAccumulator", [f(2, 3), f(2, 3)], 1, {}),
    ("InPlaceAccumulatorV2", [f(2, 3), f(2, 3), np.array([True])], 2, {}),
    ("Scale", [f(2, 3), np.array(3.0, np.float32)], 1, {"scale_down": 1}),
    ("ConvGrad", [f(2, 6, 4, 4), f(2, 4, 4, 4), f(6, 2, 3, 3)], 3, {"group": 2, "pads": [1, 1, 1, 1]}),
    ("ConvTransposeGrad", [f(2, 6, 6, 6), f(2, 4, 4, 4), f(4, 3, 3, 3)], 3, {"group": 2}),
    ("LSTMTraining", [f(5, 2, 3), f(1, 16, 3), f(1, 16, 4), f(1, 32)], 5, {"hidden_size": 4}),
    ("GRUTraining", [f(5, 2, 3), f(1, 12, 3), f(1, 12, 4), f(1, 24)], 3, {"hidden_size": 4, "linear_before_reset": 1}),
    ("BatchNormInternal", [f(2, 3, 4), f(3), f(3), f(3), abs(f(3))], 5, {"training_mode": 1}),
    ("BroadcastGradientArgs", [i(2, 3), i(3)], 2, {}),
    ("ReduceAllL2", [f(2, 3), f(4)], 1, {}),
    ("IsAllFinite", [f(2, 3), f(4)], 1, {}),
    ("ZeroGradient", [f(2, 3), np.array([True])], 1, {}),
    ("RotaryEmbedding", [f(2, 3, 8), np.zeros((2, 3), np.int64), f(6, 2), f(6, 2)], 1, {"num_heads": 2}),
    ("Inverse", [np.eye(3, dtype=np.float32)], 1, {}),
]
# Their sizes depend on the data or are not followed.
OPEN = {"BroadcastGradientArgs"}


def model_of(op, inputs, outputs, attributes):
    names = ["" if a is None else f"x{k}" for k, a in enumerate(inputs)]
    made = [f"y{k}" for k in range(outputs)]
    node = helper.make_node(op, names, made, domain="com.microsoft", name="node", **attributes)
    infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
             for n, a in zip(names, inputs) if n]
    graph = helper.make_graph([node], "case", infos, [onnx.ValueInfoProto(name=n) for n in made])
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("binary")
    opt = cli.parse_args()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    failed, ran, missing = 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "case.onnx")
        for op, inputs, outputs, attributes in CASES:
            model = model_of(op, inputs, outputs, attributes)
            try:
                session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
                actual = session.run(None, {f"x{k}": a for k, a in enumerate(inputs) if a is not None})
            except Exception as error:
                missing.append(f"{op} ({str(error).splitlines()[0][:110]})")
                continue
            ran += 1
            path.write_bytes(bare(model, [a for a in inputs if a is not None]).SerializeToString())
            result = subprocess.run([opt.binary, path], capture_output=True, text=True)
            problems = [result.stderr.strip()] if result.returncode or result.stderr else []
            values = {v["name"]: v for v in map(json.loads, result.stdout.splitlines())}
            for name, array in zip((o.name for o in model.graph.output), actual) if values else ():
                found = values[name]
                problems += [f"{name}: {p}" for p in refuted(found, np.asarray(array))]
                whole = found["dtype"] and found["dims"] is not None and all(number(d) is not None for d in found["dims"])
                if not whole and op not in OPEN:
                    problems.append(f"{name}: left open: {found}")
            failed += len(problems)
            for problem in problems:
                print(f"FAILED {op} {attributes}: {problem}")
    print("not run:", *missing, sep="\n  ")
    print(f"{ran} of {len(CASES)} cases ran, {failed} problems")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
