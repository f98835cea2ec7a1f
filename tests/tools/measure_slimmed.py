#!/usr/bin/env python3
"""Measure what onnxslim and onnxsim leave of the memory that a rewrite saves in ONNX Runtime. No check.

    python measure_slimmed.py [--velora ../../target/release/velora-opt]

The graph and the measurement are those of tests/oracle/check_memory.py: models/aot/deep_mlp.onnx at batch 8192, 8 groups,
growth of the peak resident memory in one step with default session options, the least of three, each in a process of its
own. Rows: the original; rewritten; rewritten and then slimmed, without and with an open batch as far as the tool keeps
it; slimmed and then rewritten.
"""

import argparse
import pathlib
import sys
import tempfile

import onnx

import check_slimmers
import forms

sys.path.insert(0, str(forms.ROOT / "tests/oracle"))
import check_memory  # noqa: E402
from memory_table import mib, rewrite  # noqa: E402


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--velora", default=forms.default_tool())
    opt = cli.parse_args()
    options = f"--groups {check_memory.GROUPS}"
    print("| file | pins | peak growth, MiB |\n|---|---|---|")

    def row(name, path):
        try:
            growth = mib(check_memory.growth(path, "default")[0])
        except SystemExit as error:
            growth = f"does not run: {str(error)[-120:]}"
        pins = check_slimmers.Counts.of(onnx.load(path)).pins
        print(f"| {name} | {pins} | {growth} |", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        ours, _ = rewrite(opt.velora, check_memory.MODEL, check_memory.DIMS, options, folder, 0)
        loose, _ = rewrite(opt.velora, check_memory.MODEL, check_memory.DIMS, f"{options} --no-pin", folder, 1)
        row("original", check_memory.MODEL)
        row("rewritten", ours)
        row("rewritten, `--no-pin`", loose)
        for tool in ("onnxslim, no shapes", "onnxsim"):
            slimmed = folder / "slimmed.onnx"
            said = check_slimmers.slim(tool, ours, slimmed)
            row(f"rewritten, then {tool}", slimmed) if said is None else print(f"| {tool} | | {said} |")
            first = folder / "first.onnx"
            check_slimmers.slim(tool, check_memory.MODEL, first)
            after, _ = rewrite(opt.velora, first, check_memory.DIMS, options, folder, 2)
            row(f"{tool}, then rewritten", after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
