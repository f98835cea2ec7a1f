#!/usr/bin/env python3
"""Checks a model's text with the official parser.

Parses the text with onnx.parser and compares it with the model file it was printed from: the
numbers of nodes, initialisers, inputs, outputs, value infos and functions; every node; and every
initialiser's elements, bit for bit.

    text_syntax.py model.txt model.onnx
"""

import argparse
import sys

import numpy as np
import onnx
from onnx import numpy_helper


def differences(text_model, file_model):
    """Yields what differs between the parsed text and the model file."""
    for field in ("node", "initializer", "input", "output", "value_info"):
        ours = len(getattr(text_model.graph, field))
        theirs = len(getattr(file_model.graph, field))
        if ours != theirs:
            yield f"graph.{field}: {ours} in the text, {theirs} in the file"
    if len(text_model.functions) != len(file_model.functions):
        yield f"functions: {len(text_model.functions)} in the text, {len(file_model.functions)} in the file"
    for a, b in zip(text_model.graph.node, file_model.graph.node):
        same = (
            a.op_type == b.op_type
            and a.domain == b.domain
            and a.name == b.name
            and list(a.input) == list(b.input)
            and list(a.output) == list(b.output)
            and [x.name for x in a.attribute] == [x.name for x in b.attribute]
        )
        if not same:
            yield f"node {b.name!r} ({b.op_type}) differs"
            continue
        for x, y in zip(a.attribute, b.attribute):
            if x.type != y.type:
                yield f"node {b.name!r}: attribute {x.name} has another type"
            elif x.type == onnx.AttributeProto.TENSOR:
                if numpy_helper.to_array(x.t).tobytes() != numpy_helper.to_array(y.t).tobytes():
                    yield f"node {b.name!r}: attribute {x.name} has another value"
            elif x.type != onnx.AttributeProto.GRAPH:
                x, y = onnx.AttributeProto.FromString(x.SerializeToString()), onnx.AttributeProto.FromString(y.SerializeToString())
                x.doc_string = y.doc_string = ""
                if x.SerializeToString(deterministic=True) != y.SerializeToString(deterministic=True):
                    yield f"node {b.name!r}: attribute {x.name} has another value"
    for a, b in zip(text_model.graph.initializer, file_model.graph.initializer):
        if (a.name, a.data_type, list(a.dims)) != (b.name, b.data_type, list(b.dims)):
            yield f"initializer {b.name!r}: name, type or shape differs"
        elif b.data_location == onnx.TensorProto.EXTERNAL:
            if [(e.key, e.value) for e in a.external_data] != [(e.key, e.value) for e in b.external_data]:
                yield f"initializer {b.name!r}: location differs"
        elif b.data_type == onnx.TensorProto.STRING:
            if list(a.string_data) != list(b.string_data):
                yield f"initializer {b.name!r}: elements differ"
        elif not np.array_equal(
            np.frombuffer(numpy_helper.to_array(a).tobytes(), np.uint8),
            np.frombuffer(numpy_helper.to_array(b).tobytes(), np.uint8),
        ):
            yield f"initializer {b.name!r}: elements differ"


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
