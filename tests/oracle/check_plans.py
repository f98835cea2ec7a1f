#!/usr/bin/env python3
"""Check exact plans (`--recompute`, `--exact`) in ONNX Runtime: every value of the original is there, bit for bit.

    python check_plans.py [--velora ../../target/release/velora-opt] [--graphs REGEX] [MODEL ...]

As run_all.py, the Python that runs this decides which graphs of models/ are taken; or they are named. Each plan's graph,
pins included, runs on random inputs

  * with ONNX Runtime's optimisations off: every value that both graphs have has the same bits, and every copy the
    bits of what it is a copy of;
  * with its default options: what leaves the graph is near the original's. (Its fusions depend on who else reads a
    tensor, so bits may differ there, as they do between two versions of it; how many do is printed.)

Exit status 1 where a value differs, or where no plan computed anything again.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

import run_all
from check_rewrite import first_run, run_all_values, run_as_is, seeded

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLANS = [["--recompute", "cheap"], ["--recompute", "layers"], ["--recompute", "sqrt"], ["--max-slowdown", "5%"],
         ["--target-saving", "35%", "--max-slowdown", "60%"]]
# Fused and unfused float32 kernels of these small graphs differ by some 1e-6 of the largest entry.
NEAR = 1e-4
NONE = ("no run of equal blocks", "the smallest peak found", "the fastest plan that keeps")


def bits(array):
    return array.shape, array.dtype, array.tobytes()


def check(velora, path, folder):
    """Yields what is wrong with a graph's plans, and at the end counts."""
    original = seeded(path)
    feed, before = first_run(original, 6, 16)
    outside = run_as_is(original, feed)
    plans = copies = values = moved = 0
    for options in PLANS:
        out = pathlib.Path(folder) / "plan.onnx"
        done = subprocess.run([velora, path, "-o", out, "-q", "--exact", *options], capture_output=True, text=True,
                              check=False)
        if done.returncode and any(reason in done.stderr for reason in NONE):
            continue
        if done.returncode:
            yield f"{' '.join(options)}: {done.stderr.strip()}"
            continue
        model = seeded(out)
        after = run_all_values(model, feed)
        plans += 1
        for name, value in before.items():
            if name in after:
                values += 1
                if bits(after[name]) != bits(value):
                    yield f"{' '.join(options)}: {name} changed"
        for name, value in after.items():
            if name.startswith("velora.again."):
                # A second copy has a number behind it; a view that only the backward half read may be gone.
                of = name.removeprefix("velora.again.")
                of = of if of in before else of.rpartition(".")[0]
                copies += 1
                if of not in before or bits(before[of]) != bits(value):
                    yield f"{' '.join(options)}: {name} is not {of}"
        for name, value in run_as_is(model, feed).items():
            if name.startswith("velora."):
                continue
            was = outside.get(name)
            if was is None or not np.issubdtype(value.dtype, np.floating):
                continue
            moved += bits(was) != bits(value)
            if not np.allclose(was, value, rtol=NEAR, atol=NEAR * max(np.abs(was).max(), 1e-3)):
                yield f"{' '.join(options)}: {name} is far from the original's with default options"
    yield plans, copies, values, moved


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("models", nargs="*", type=pathlib.Path)
    cli.add_argument("--velora", default=str(ROOT / "target/release/velora-opt"))
    cli.add_argument("--graphs", default="", metavar="REGEX")
    opt = cli.parse_args()
    models = opt.models or run_all.graphs(opt.graphs)
    failures = total = 0
    with tempfile.TemporaryDirectory() as folder:
        for path in models:
            *wrong, (plans, copies, values, moved) = check(opt.velora, path, folder)
            print(f"{path.parent.name}/{path.stem}: {plans} plans, {copies} copies, {values} values compared, "
                  f"{len(wrong)} failures; {moved} outputs differ in bits with default options", flush=True)
            for line in wrong[:12]:
                print(f"  FAILED {line}")
            failures, total = failures + len(wrong), total + copies
    return 1 if failures or not total else 0


if __name__ == "__main__":
    sys.exit(main())
