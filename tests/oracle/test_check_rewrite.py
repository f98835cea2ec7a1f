#!/usr/bin/env python3
"""The check of rewritten graphs accepts a right rewrite and refuses wrong ones.

    python -m unittest test_check_rewrite

A hand-made rewrite of one contraction in models/aot/mlp.onnx, as model-local functions and as standard
operators, stands in for velora-opt. Each test breaks it in one way.
"""

import pathlib
import unittest

import numpy as np
import onnx
from onnx import helper, numpy_helper

import check_rewrite
from check_rewrite import DOMAIN

MLP = pathlib.Path(__file__).resolve().parents[2] / "models/aot/mlp.onnx"
GRADIENT, X, DY = "grad.fc3.weight", "gelu", "sub"  # dW [10, 128] = sub^T gelu
GROUPS, SIZE, FEATURES = 4, 32, 128

# name: (inputs, output, body)
OPERATORS = {
    "MeanDirection": (["X"], "v", [
        ("Reshape", ["X", "rows"], "sub"), ("ReduceSum", ["sub", "zero"], "s"), ("Mul", ["s", "s"], "q"),
        ("ReduceSum", ["q", "zero_keep"], "n2"), ("Sqrt", ["n2"], "n"), ("Div", ["s", "n"], "v")]),
    "Compress": (["X", "v"], "z", [
        ("Reshape", ["X", "rows"], "sub"), ("MatMul", ["sub", "v"], "p"), ("Reshape", ["p", "groups"], "z")]),
    "FactoredWeightGrad": (["z", "dY", "v"], "dW", [
        ("Transpose", ["dY"], "dYt"), ("MatMul", ["dYt", "z"], "P"), ("Reshape", ["P", "wide"], "Pw"),
        ("Mul", ["Pw", "v"], "o"), ("Mul", ["o", "scale"], "scaled"), ("Reshape", ["scaled", "flat"], "dW")]),
}


def constants(scale):
    return {
        "rows": np.array([-1, SIZE]), "zero": np.array([0]), "zero_keep": np.array([0]),
        "groups": np.array([-1, GROUPS]), "wide": np.array([-1, GROUPS, 1]), "flat": np.array([-1, FEATURES]),
        "scale": np.float32(scale)}


def body(name):
    """Nodes of an operator, with the names of its inputs, output and constants."""
    for op, inputs, output in OPERATORS[name][2]:
        extra = {"keepdims": int(output == "n2")} if op == "ReduceSum" else {}
        yield op, inputs, output, extra


def rewrite(inline, v=None, scale=1.0, change=None):
    """MLP with the gradient of fc3's weight factored; `v` replaces the mean direction.
    `change(op, inputs)` may return other inputs for a velora operator, or None."""
    model = onnx.load(MLP)
    graph = model.graph
    calls = [] if v is not None else [("MeanDirection", [X], "my.v")]
    calls += [("Compress", [X, "my.v"], "my.z"), ("FactoredWeightGrad", ["my.z", DY, "my.v"], GRADIENT)]
    calls = [(op, (change and change(op, inputs)) or inputs, out) for op, inputs, out in calls]
    new = []
    for op, inputs, output in calls:
        if not inline:
            new.append(helper.make_node(op, inputs, [output], domain=DOMAIN, groups=GROUPS))
            continue
        names = dict(zip(OPERATORS[op][0], inputs)) | {OPERATORS[op][1]: output}
        names |= {c: f"my.{c}" for c in constants(scale)}
        for kind, reads, made, extra in body(op):
            node = helper.make_node(kind, [names.get(r, f"{output}.{r}") for r in reads],
                                    [names.get(made, f"{output}.{made}")], **extra)
            for key, value in (("velora.op", op), ("velora.groups", str(GROUPS)), ("velora.origin", "fc3.weight")):
                node.metadata_props.add(key=key, value=value)
            new.append(node)
    for name, value in constants(scale).items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"my.{name}"))
    if v is not None:
        graph.initializer.append(numpy_helper.from_array(v, "my.v"))
    if not inline:
        opset = [helper.make_opsetid("", 18)]
        for op, (inputs, output, _) in OPERATORS.items():
            values = [helper.make_node("Constant", [], [c], value=numpy_helper.from_array(np.asarray(a)))
                      for c, a in constants(scale).items()]
            nodes = [helper.make_node(kind, reads, [made], **extra) for kind, reads, made, extra in body(op)]
            model.functions.append(helper.make_function(DOMAIN, op, inputs, [output], values + nodes, opset,
                                                        attributes=["groups"]))
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    at = next(i for i, n in enumerate(graph.node) if GRADIENT in n.output)
    assert graph.node[at].op_type == "MatMul" and graph.node[at].input[1] == X
    nodes = [*graph.node[:at], *new, *graph.node[at + 1:]]
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def node_of(model, output):
    return next(n for n in model.graph.node if output in n.output)


class Check(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.original = check_rewrite.Original(str(MLP))

    def check(self, model, **options):
        return check_rewrite.check(self.original, model, **options)

    def assertRefused(self, model, message, **options):
        failures = self.check(model, **options).failures
        self.assertTrue(any(message in f for f in failures), failures)

    def test_right_rewrites_pass(self):
        ones = np.full(SIZE, SIZE**-0.5, np.float32)
        other = np.random.default_rng(1).normal(size=SIZE)
        other = (other / np.linalg.norm(other)).astype(np.float32)
        for inline in (False, True):
            for options in ({}, {"scale": 0.3}):
                for init, v in (("batch-average", None), ("none", ones), ("random", other)):
                    with self.subTest(inline=inline, init=init, **options):
                        result = self.check(rewrite(inline, v, **options), init=init, **options)
                        self.assertEqual((result.failures, result.sites), ([], 1))
                        self.assertGreater(result.identical, 5)

    def test_direction_is_checked(self):
        v = np.full(SIZE, SIZE**-0.5, np.float32)
        v[0] *= np.float32(1.00001)
        self.assertRefused(rewrite(True, v), "is not the none direction", init="none")
        self.assertRefused(rewrite(True, v), "is not the batch-average direction")
        self.assertRefused(rewrite(True, np.float32(1.001) * v), "has norm", init="random")
        self.assertRefused(rewrite(False), "must be a constant", init="random")
        # The mean over another tensor of the same width.
        wrong = rewrite(False, change=lambda op, i: ["relu"] if op == "MeanDirection" else None)
        self.assertRefused(wrong, "is not the batch-average direction")

    def test_formula_is_checked(self):
        for inline in (False, True):
            self.assertRefused(rewrite(inline, scale=1.00001), "is not the formula's")
            # The outer product with another direction than the one compressed with.
            wrong = rewrite(inline, change=lambda op, i: [*i[:2], "my.other"] if op == "FactoredWeightGrad" else None)
            other = np.full(SIZE, SIZE**-0.5, np.float32)
            wrong.graph.initializer.append(numpy_helper.from_array(other, "my.other"))
            self.assertRefused(wrong, "is not the formula's")
            # dY of the same shape, but not the one of the contraction.
            wrong = rewrite(
                inline, change=lambda op, i: [i[0], "addmm_2", i[2]] if op == "FactoredWeightGrad" else None)
            self.assertRefused(wrong, "is not the formula's")

    def test_other_values_are_checked(self):
        model = rewrite(True)
        relu = node_of(model, "relu")
        relu.op_type = "Abs"
        self.assertRefused(model, "not bit-identical")

    def test_wrong_operand_is_refused(self):
        wrong = rewrite(True, change=lambda op, i: ["relu", "my.v"] if op == "Compress" else None)
        with self.assertRaisesRegex(check_rewrite.Mismatch, "expected one of the two"):
            self.check(wrong)

    def test_nodes_behind_the_gradient_are_checked(self):
        def negated(model):
            model.graph.node.append(helper.make_node("Neg", [GRADIENT], ["behind"]))
            model.graph.output.append(onnx.ValueInfoProto(name="behind"))
            return model
        before = negated(onnx.load(MLP))
        original = check_rewrite.Original.__new__(check_rewrite.Original)
        original.__dict__.update(self.original.__dict__)
        original.model = before
        original.producers = {o: n for n in before.graph.node for o in n.output}
        good = negated(rewrite(True))
        self.assertEqual(check_rewrite.check(original, good).failures, [])
        node_of(good, "behind").op_type = "Abs"
        self.assertTrue(any("behind the rewritten" in f for f in check_rewrite.check(original, good).failures))


if __name__ == "__main__":
    unittest.main()
