#!/usr/bin/env python3
"""`ReluGrad (dY, Y)` and `ReluGrad (dY, Cast (Greater (Y, 0)))` give the same bits in ONNX Runtime.

    python check_relu_grad.py

Needs onnxruntime-training. All pairs of special numbers (zeros, subnormal numbers, infinities, NaNs of both
signs), and pairs of random bit patterns. That the comparison can fail is shown by `Where (Y > 0, dY, 0)`,
which differs there: a dY of -0 becomes 0.
"""

import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

SPECIAL = [0x00000000, 0x00000001, 0x007FFFFF, 0x00800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001,
           0x7FC00000, 0x7FC01234]


def model():
    own = "com.microsoft"
    nodes = [
        helper.make_node("ReluGrad", ["dy", "y"], ["whole"], domain=own),
        helper.make_node("Greater", ["y", "zero"], ["mask"]),
        helper.make_node("Cast", ["mask"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("ReluGrad", ["dy", "number"], ["masked"], domain=own),
        helper.make_node("Where", ["mask", "dy", "zero"], ["selected"]),
    ]
    floats = lambda names: [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in names]
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    graph = helper.make_graph(nodes, "g", floats(["dy", "y"]), floats(["whole", "masked", "selected"]), [zero])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(own, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def main():
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    special = np.array([*SPECIAL, *(b | 0x80000000 for b in SPECIAL)], np.uint32)
    dy, y = (a.ravel() for a in np.meshgrid(special, special))
    random = np.random.default_rng(0).integers(0, 2**32, (2, 1 << 16), np.uint32)
    feed = {"dy": np.concatenate([dy, random[0]]), "y": np.concatenate([y, random[1]])}
    found = session.run(None, {name: bits.view(np.float32) for name, bits in feed.items()})
    whole, masked, selected = (values.view(np.uint32) for values in found)
    differ, control = np.flatnonzero(whole != masked), np.flatnonzero(whole != selected)
    for place in differ[:5]:
        print(f"dY {feed['dy'][place]:#010x}, Y {feed['y'][place]:#010x}: {whole[place]:#010x}, "
              f"with the mask {masked[place]:#010x}")
    print(f"onnxruntime {ort.__version__}: {whole.size} pairs, {differ.size} differ with the mask, "
          f"{control.size} with Where")
    return 1 if differ.size or not control.size else 0


if __name__ == "__main__":
    sys.exit(main())
