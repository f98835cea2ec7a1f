"""Training graphs that no exporter makes: with hostile names, and very long ones."""

import onnx
from onnx import TensorProto, helper

#: Each would do something if it were markup, a script or the end of one. A name has no line ends.
HOSTILE = [
    "</script><script>globalThis.pwned = 1</script>",
    "<img src=x onerror=globalThis.pwned=2>",
    "<!--<script>",
    "\"'><b>bold</b>&lt;&amp;",
    "\u2028\u2029\u202e\ufeffreversed",
    "__proto__",
    "${globalThis.pwned=3}`\\",
]


def chain(layers, width, name=lambda kind, number: f"{kind}.{number}", batch="batch"):
    """A chain of `layers` products and sines, forward and backward: eight nodes each. The slope of a sine is from
    its operand, so that nothing but the weight gradient reads what it makes."""
    nodes, gradients = [], []

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], name=name("node", len(nodes)), **attributes))
        return output

    weights = [name("w", n) for n in range(layers)]
    here, saved = "x", []
    for n, weight in enumerate(weights):
        saved.append(node("MatMul", [here, weight], name("y", n)))
        here = node("Sin", [saved[n]], name("h", n))
    node("ReduceSum", [here], "loss", keepdims=0)
    dh = node("Expand", ["one", node("Shape", [here], "shape")], name("start", 0))
    for n in reversed(range(layers)):
        dy = node("Mul", [dh, node("Cos", [saved[n]], name("slope", n))], name("dy", n))
        source = name("h", n - 1) if n else "x"
        turned = node("Transpose", [source], name("ht", n), perm=[1, 0])
        gradients.append(node("MatMul", [turned, dy], f"{weights[n]}_grad"))
        if n:
            flipped = node("Transpose", [weights[n]], name("wt", n), perm=[1, 0])
            dh = node("MatMul", [dy, flipped], name("dh", n))
    tensor = helper.make_tensor_value_info
    square = lambda label: tensor(label, TensorProto.FLOAT, [width, width])
    graph = helper.make_graph(
        nodes,
        "g",
        [tensor("x", TensorProto.FLOAT, [batch, width]), *map(square, weights)],
        [tensor("loss", TensorProto.FLOAT, []), *map(square, gradients)],
        [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])


def hostile():
    """Every name is one of [HOSTILE], made different by its end."""
    name = lambda kind, number: f"{kind}{number}{HOSTILE[(len(kind) + number) % len(HOSTILE)]}"
    return chain(6, 64, name, batch=HOSTILE[0])


def save(model, path):
    onnx.save(model, path)
    return path
