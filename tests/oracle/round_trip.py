#!/usr/bin/env python3
"""Checks files, indexed graphs, text and verifier on models that others made.

The models are those of models/ and the test data of the installed onnx package (node/, simple/,
pytorch-*/, light/). One run of the example `round_trip` takes them all through this project;
then, for every model:

- file: what was read and written parses to the same protobuf message, and has the same bytes where
  the producer's encoding is canonical, that is, where Python re-encodes its message to the same
  bytes (`ModelProto.FromString(b).SerializeToString(deterministic=True) == b`);
- graph: the indexed graph gives back the message it was made from (checked in the example);
- text: where onnx.parser reads what onnx.printer prints, it reads our text too, and what it reads
  is the model (text_syntax.py);
- verify: the verifier accepts the model, or the violation is in VIOLATIONS with the reason why it
  is a true one. A violation listed there that no longer occurs fails the check.

    round_trip.py [--binary target/release/examples/round_trip]
"""

import argparse
import collections
import pathlib
import subprocess
import sys
import tempfile

import onnx

from text_syntax import differences

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Path below the test data or the repository -> (message, why the model does break the rule).
VIOLATIONS = {}


def model_paths():
    """All model files, as pairs of a short name and a path."""
    data = pathlib.Path(onnx.__file__).parent / "backend/test/data"
    for base in (data, ROOT):
        folder = base if base == data else ROOT / "models"
        for path in sorted(folder.rglob("*.onnx")):
            yield str(path.relative_to(base)), path


def parse(text):
    """The model of a text, or the parser's message."""
    try:
        return onnx.parser.parse_model(text), None
    except (onnx.parser.ParseError, UnicodeError, IndexError, ValueError) as error:
        # IndexError is what the parser throws on decimals that its float conversion refuses.
        return None, f"{type(error).__name__}: {error}"


def text_problems(model, ours):
    """Whether Python reads its own text of the model, whether it reads ours, and what differs."""
    try:
        theirs = parse(onnx.printer.to_text(model))[0]
    except UnicodeError:
        theirs = None
    parsed, error = parse(ours)
    found = [error] if parsed is None else list(differences(parsed, model))
    return theirs is not None, parsed is not None, found


def main():
    """Runs the check; exits with 1 where something differs."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--binary", default=ROOT / "target/release/examples/round_trip", type=pathlib.Path)
    options = arguments.parse_args()
    models = list(model_paths())
    if len(models) < 1000:
        sys.exit(f"only {len(models)} models found; expected the test data of onnx 1.22 (about 1900)")
    counts = collections.Counter(models=len(models))
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "list").write_text("".join(f"{path}\n" for _, path in models))
        done = subprocess.run([options.binary, folder / "list", folder], capture_output=True, text=True, check=True)
        violations = set()
        for line in done.stdout.splitlines():
            index, step, message = line.split("\t", 2)
            name = models[int(index)][0]
            if step == "verify" and VIOLATIONS.get(name, ("",))[0] == message:
                violations.add(name)
            else:
                failures.append(f"{name}: {step}: {message}")
        failures += [f"{name}: verify: the listed violation does not occur" for name in VIOLATIONS.keys() - violations]
        counts["true violations"] = len(violations)

        for index, (name, path) in enumerate(models):
            before = path.read_bytes()
            after = (folder / f"{index}.onnx").read_bytes()
            model = onnx.ModelProto.FromString(before)
            canonical = model.SerializeToString(deterministic=True)
            # NaN is not equal to itself, so messages are compared by their encoding.
            if onnx.ModelProto.FromString(after).SerializeToString(deterministic=True) != canonical:
                failures.append(f"{name}: file: another message")
            counts["canonical"] += before == canonical
            counts["byte-identical"] += before == after
            if before == canonical and before != after:
                failures.append(f"{name}: file: canonical, and other bytes came out")
            theirs, parsed, found = text_problems(model, (folder / f"{index}.txt").read_text(encoding="utf-8"))
            counts["text: Python parses its own"] += theirs
            counts["text: Python parses ours"] += parsed
            counts["text: ours is the model"] += not found
            if theirs:
                failures += [f"{name}: text: {problem}" for problem in found]
            elif found:
                counts["text: neither parses"] += not parsed
    for failure in failures:
        print(failure)
    for what, count in counts.items():
        print(f"{count:6} {what}")
    print(f"{len(failures):6} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
