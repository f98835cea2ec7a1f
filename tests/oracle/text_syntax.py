#!/usr/bin/env python3
"""Checks a model's text with the official parser.

Parses the text with onnx.parser and compares it with the model file it was printed from: names and
types of inputs, outputs and inner values; every node with its attributes, in nested graphs and
functions too; and every initialiser's elements, bit for bit.

    text_syntax.py model.txt model.onnx
"""

import argparse
import sys

import numpy as np
import onnx
from onnx import numpy_helper


def differences(text_model, file_model):
    """Yields what differs between the parsed text and the model file."""
    yield from graph_differences(text_model.graph, file_model.graph, "graph")
    yield from length_differences(text_model, file_model, ["functions", "opset_import", "metadata_props"], "model")
    for a, b in zip(text_model.functions, file_model.functions):
        where = f"function {b.name!r}"
        for field in ("name", "domain", "overload", "input", "output", "attribute"):
            if getattr(a, field) != getattr(b, field):
                yield f"{where}: {field} differs"
        yield from length_differences(a, b, ["node", "attribute_proto", "opset_import"], where)
        yield from attribute_differences(a.attribute_proto, b.attribute_proto, where)
        yield from node_differences(a.node, b.node, where)


def length_differences(text_message, file_message, fields, where):
    """Yields the repeated fields that have different lengths."""
    for field in fields:
        ours, theirs = len(getattr(text_message, field)), len(getattr(file_message, field))
        if ours != theirs:
            yield f"{where}.{field}: {ours} in the text, {theirs} in the file"


def graph_differences(text_graph, file_graph, where):
    """Yields what differs between two graphs, the ones in their nodes included."""
    yield from length_differences(text_graph, file_graph, ["node", "initializer", "input", "output", "value_info"], where)
    for field in ("input", "output", "value_info"):
        for a, b in zip(getattr(text_graph, field), getattr(file_graph, field)):
            if a.name != b.name or plain_type(a.type) != plain_type(b.type):
                yield f"{where}: {field} {b.name!r}: name or type differs"
    yield from node_differences(text_graph.node, file_graph.node, where)
    for a, b in zip(text_graph.initializer, file_graph.initializer):
        if (a.name, a.data_type, list(a.dims)) != (b.name, b.data_type, list(b.dims)):
            yield f"{where}: initializer {b.name!r}: name, type or shape differs"
        elif b.data_location == onnx.TensorProto.EXTERNAL:
            if [(e.key, e.value) for e in a.external_data] != [(e.key, e.value) for e in b.external_data]:
                yield f"{where}: initializer {b.name!r}: location differs"
        elif b.data_type == onnx.TensorProto.STRING:
            if list(a.string_data) != list(b.string_data):
                yield f"{where}: initializer {b.name!r}: elements differ"
        elif not np.array_equal(
            np.frombuffer(numpy_helper.to_array(a).tobytes(), np.uint8),
            np.frombuffer(numpy_helper.to_array(b).tobytes(), np.uint8),
        ):
            yield f"{where}: initializer {b.name!r}: elements differ"


def plain_type(kind):
    """The bytes of a type without what the text does not carry: denotations and opaque types."""
    kind = onnx.TypeProto.FromString(kind.SerializeToString())
    kind.ClearField("denotation")
    if kind.HasField("opaque_type"):
        kind.ClearField("opaque_type")
    if kind.HasField("tensor_type"):
        for dim in kind.tensor_type.shape.dim:
            dim.ClearField("denotation")
    return kind.SerializeToString(deterministic=True)


def node_differences(text_nodes, file_nodes, where):
    """Yields what differs between two lists of nodes."""
    for a, b in zip(text_nodes, file_nodes):
        node = f"{where}: node {b.name!r} ({b.op_type})"
        same = (
            a.op_type == b.op_type
            and a.domain == b.domain
            and a.overload == b.overload
            and a.name == b.name
            and list(a.input) == list(b.input)
            and list(a.output) == list(b.output)
        )
        if not same:
            yield f"{node} differs"
        yield from attribute_differences(a.attribute, b.attribute, node)


def attribute_differences(text_attributes, file_attributes, where):
    """Yields what differs between two lists of attributes."""
    if [a.name for a in text_attributes] != [b.name for b in file_attributes]:
        yield f"{where}: other attributes"
        return
    for x, y in zip(text_attributes, file_attributes):
        if x.type != y.type:
            yield f"{where}: attribute {x.name} has another type"
        elif x.type == onnx.AttributeProto.TENSOR and not y.ref_attr_name:
            if numpy_helper.to_array(x.t).tobytes() != numpy_helper.to_array(y.t).tobytes():
                yield f"{where}: attribute {x.name} has another value"
        elif x.type == onnx.AttributeProto.GRAPH and not y.ref_attr_name:
            yield from graph_differences(x.g, y.g, f"{where}: {x.name}")
        else:
            x, y = onnx.AttributeProto.FromString(x.SerializeToString()), onnx.AttributeProto.FromString(y.SerializeToString())
            x.doc_string = y.doc_string = ""
            if x.SerializeToString(deterministic=True) != y.SerializeToString(deterministic=True):
                yield f"{where}: attribute {x.name} has another value"


def main():
    """Runs the check; exits with 1 where the two differ."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("text", help="the text of a model")
    arguments.add_argument("model", help="the model file it was printed from")
    options = arguments.parse_args()
    with open(options.text, encoding="utf-8") as file:
        text_model = onnx.parser.parse_model(file.read())
    file_model = onnx.load(options.model, load_external_data=False)
    found = list(differences(text_model, file_model))
    for line in found:
        print(line)
    print(
        f"{options.model}: {len(text_model.graph.node)} nodes, "
        f"{len(text_model.graph.initializer)} initializers, {len(found)} differences"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
