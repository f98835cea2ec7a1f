#!/usr/bin/env python3
"""Check that onnx.checker accepts what velora-opt writes, full check included, as it accepts the original.

    python check_checker.py [--velora ../../target/release/velora-opt] [--graphs REGEX]

`onnx.checker.check_model(full_check=True)` also infers shapes, strictly: of all that operators of ONNX have. Run it with
each onnx that matters; CI does with that of requirements.txt and with the 1.16.2 of ONNX Runtime's training build.
A file that it refuses fails, but where the original is refused for the same reason (com.microsoft's operators have no
schema in onnx) or the file is newer than that onnx (IR version); these are listed with the reason. `--plant` breaks files,
each of which must be refused.
"""

import argparse
import collections
import pathlib
import re
import sys
import tempfile

import onnx

import forms


def refusal(path):
    """What the checker says against a file, or None."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker's and the parser's share no narrower base
        return " ".join(str(error).split())
    return None


def kind(sentence):
    """A refusal without what belongs to one file."""
    if "No Op registered for" in sentence or "com.microsoft" in sentence:
        return "operators without a schema"
    if "ir_version" in sentence:
        return "a newer IR version"
    return sentence


def planted(model):
    """Names of faults, and models that have them."""
    def copy():
        return onnx.ModelProto.FromString(model.SerializeToString())

    broken = copy()
    broken.functions[0].node[-1].input[0] = "nothing"
    yield "a body reads what nothing makes", broken
    broken = copy()
    gone = next(n for n in broken.graph.node if n.domain == "ai.velora")
    broken.graph.node.remove(gone)
    yield "a node is gone", broken
    broken = copy()
    gate = next(v for v in broken.graph.value_info if v.name.endswith(".gated"))
    gate.type.tensor_type.elem_type = onnx.TensorProto.INT64
    yield "a pin is declared of another type", broken
    broken = copy()
    del broken.opset_import[-1]
    yield "the domain is not imported", broken


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--velora", default=forms.default_tool())
    cli.add_argument("--graphs", default="", help="only graphs whose folder/name this matches")
    cli.add_argument("--plant", action="store_true", help="only plant faults, and see that they are found")
    opt = cli.parse_args()
    failures, accepted, excused = 0, 0, collections.defaultdict(set)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        if opt.plant:
            written = forms.write(opt.velora, forms.ROOT / "models/aot/mlp.onnx", "functions", folder)
            for fault, broken in planted(onnx.load(written.path)):
                path = folder / "planted.onnx"
                path.write_bytes(broken.SerializeToString())
                said = refusal(path)
                print(f"planted: {fault}: {'found: ' + said[:120] if said else 'NOT FOUND'}")
                failures += said is None
            return 1 if failures else 0
        for graph in forms.graphs():
            name = f"{graph.parent.name}/{graph.stem}"
            if not re.search(opt.graphs, name):
                continue
            original = refusal(graph)
            for form in forms.FORMS:
                written = forms.write(opt.velora, graph, form, folder)
                if written is None:
                    continue
                said = refusal(written.path)
                written.path.unlink()
                if said is None:
                    accepted += 1
                elif original and kind(said) == kind(original):
                    excused[kind(said)].add(name)
                else:
                    failures += 1
                    print(f"  FAILED {written.name}: {said[:300]}"
                          + (f" (the original: {original[:150]})" if original else ""))
    for reason, names in excused.items():
        print(f"  {reason}, in the original, too: {', '.join(sorted(names))}")
    print(f"onnx {onnx.__version__}: {accepted} files accepted, {failures} failures")
    return 1 if failures or not accepted else 0


if __name__ == "__main__":
    sys.exit(main())
