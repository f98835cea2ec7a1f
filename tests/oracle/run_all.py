#!/usr/bin/env python3
"""Rewrite every graph in models/ in every form and check the results in ONNX Runtime.

    python run_all.py [--velora ../../target/release/velora-opt] [--graphs REGEX] [--jobs 2]

The Python that runs this decides which graphs: with onnxruntime-training (requirements-training.txt)
those in ONNX Runtime's dialect, models/ort; with stock onnxruntime (requirements-stock.txt) those in
standard operators, models/aot, and the text that `velora-opt print` writes. CI runs it with both.

`check_rewrite.py` says what is checked. Exit status 1 where anything fails, where velora-opt lacks an
option that is tested here, or where nothing at all was rewritten.
"""

import argparse
import concurrent.futures
import importlib.metadata
import itertools
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import onnx

import check_rewrite
import text_syntax

ROOT = pathlib.Path(__file__).resolve().parents[2]
GROUPS = 4
FORMS = [[], ["--inline"]]
PINS = [[], ["--no-pin"]]
INITS = ["batch-average", "none", "random"]
# In graphs with more parameter elements than this, which are larger copies of the small ones for the
# measurement of memory, only the first and the last of these variants are tried.
LARGE = 3_000_000
SHOWN = 5  # failures printed per rewrite
# Beyond the product of the above: every contraction instead of the freeable ones, a factor on dW, and
# groups that do not divide the feature counts.
EXTRA = [
    ["--select", "all"],
    ["--select", "all", "--inline", "--init", "random"],
    ["--scale", "0.5"],
    ["--scale", "0.5", "--inline", "--init", "none"],
    ["--groups", "5"],
    ["--groups", "5", "--inline", "--init", "random"],
]


def variants(parameters=0):
    """Argument lists for velora-opt, for a graph with that many parameter elements."""
    product = [[*form, *pin, "--init", init] for form, pin, init in itertools.product(FORMS, PINS, INITS)]
    return [product[0], product[-1]] if parameters > LARGE else product + EXTRA


def option(arguments, name, default):
    return arguments[arguments.index(name) + 1] if name in arguments else default


def missing_options(velora):
    """Options and commands that this velora-opt does not offer."""
    text = subprocess.run([velora, "--help"], capture_output=True, text=True, check=True).stdout
    wanted = sorted({a for v in variants() for a in v if a.startswith("--")})
    absent = [w for w in wanted if not re.search(rf"(?<![\w-]){re.escape(w)}(?![\w-])", text)]
    if not re.search(r"^\s+print\b", text, re.MULTILINE):  # its line in the list of commands
        absent.append("print")
    return absent


def check_text(velora, model):
    text = subprocess.run([velora, "print", model], capture_output=True, text=True, check=False)
    if text.returncode:
        return [f"exit status {text.returncode}: {text.stderr.strip()}"]
    try:
        parsed = onnx.parser.parse_model(text.stdout)
    except (onnx.parser.ParseError, IndexError, ValueError) as error:  # C++ exceptions come as the latter
        return [f"onnx.parser refuses the text: {error}"]
    return list(text_syntax.differences(parsed, onnx.load(model)))


def check_graph(velora, path, absent, with_text):
    """All variants of one graph: lines to print, number of failures, gradients and rewrites checked."""
    lines, failures, gradients, rewrites = [], 0, 0, 0
    start = time.monotonic()
    worst = [0.0, 0.0, 0.0]

    def report(what, found):
        nonlocal failures
        failures += len(found)
        lines.extend(f"  FAILED {path.stem} {what}: {f}" for f in found[:SHOWN])
        if len(found) > SHOWN:
            lines.append(f"  FAILED {path.stem} {what}: and {len(found) - SHOWN} more")

    try:
        original = check_rewrite.Original(str(path))
    except Exception as error:  # ONNX Runtime's exceptions share no narrower base
        return [f"  FAILED {path.stem}: the original does not run: {error}"], 1, 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        out = os.path.join(scratch, "rewritten.onnx")
        if with_text and "print" not in absent:
            report("print", check_text(velora, str(path)))
        parameters = sum(v.size for v in original.feed.values())
        texts = [[], ["--inline"]]  # forms whose text is still to be checked
        for arguments in variants(parameters):
            if any(a in absent for a in arguments):
                continue
            command = [velora, str(path), "-o", out, "--quiet", *arguments]
            if "--groups" not in arguments:
                command += ["--groups", str(GROUPS)]
            what = " ".join(arguments)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                report(what, [f"exit status {done.returncode}: {done.stderr.strip()}"])
                continue
            try:
                result = check_rewrite.check(
                    original, check_rewrite.seeded(out), option(arguments, "--init", "batch-average"),
                    float(option(arguments, "--scale", 1)))
                report(what, result.failures)
                gradients, rewrites = gradients + result.sites, rewrites + 1
                worst = [max(a, b) for a, b in zip(worst, (result.direction, result.gradient, result.optimised))]
                form = ["--inline"] if "--inline" in arguments else []
                if with_text and "print" not in absent and form in texts:
                    texts.remove(form)
                    report(f"{what} print", check_text(velora, out))
            except Exception as error:  # as above; a Mismatch among them
                report(what, [f"{type(error).__name__}: {error}"])
            os.unlink(out)
    summary = (f"{path.parent.name}/{path.stem}: {rewrites} rewrites, {gradients} gradients, {failures} failures; "
               f"error / bound: v {worst[0]:.2g}, dW {worst[1]:.2g}, optimised {worst[2]:.2g}; "
               f"{time.monotonic() - start:.0f} s")
    return [summary, *lines], failures, gradients, rewrites


def training_environment():
    try:
        importlib.metadata.version("onnxruntime-training")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def graphs(pattern):
    """The graphs that this environment can run and whose folder/name matches, the largest first, so that
    workers end together."""
    folder = ROOT / "models" / ("ort" if training_environment() else "aot")
    found = [p for p in folder.glob("*.onnx") if re.search(pattern, f"{folder.name}/{p.stem}")]
    return sorted(found, key=lambda p: (-p.stat().st_size, p))


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--velora", default=str(ROOT / "target/release/velora-opt"))
    cli.add_argument("--graphs", default="", help="only graphs whose folder/name this matches")
    cli.add_argument("--jobs", type=int, default=2)
    cli.add_argument("--allow-missing", action="store_true",
                     help="leave out what velora-opt does not offer, instead of failing")
    opt = cli.parse_args()
    training = training_environment()
    chosen = graphs(opt.graphs)
    absent = missing_options(opt.velora)
    failures = gradients = rewrites = 0
    if absent:
        print(f"{opt.velora} does not offer: {', '.join(absent)}")
        failures += 0 if opt.allow_missing else 1
    with concurrent.futures.ProcessPoolExecutor(opt.jobs, max_tasks_per_child=1) as pool:
        jobs = [pool.submit(check_graph, opt.velora, p, absent, not training) for p in chosen]
        for job in jobs:
            lines, failed, checked, done = job.result()
            print("\n".join(lines), flush=True)
            failures, gradients, rewrites = failures + failed, gradients + checked, rewrites + done
    print(f"{len(chosen)} graphs, {rewrites} rewrites, {gradients} rewritten gradients, {failures} failures")
    if gradients == 0:
        print("nothing was rewritten: this run proves nothing")
    return 1 if failures or gradients == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
