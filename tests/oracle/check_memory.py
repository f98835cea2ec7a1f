#!/usr/bin/env python3
"""Check that the rewrite saves memory in stock ONNX Runtime, with default session options.

    python check_memory.py [--velora ../../target/release/velora-opt]
    python check_memory.py --no-pin        # must fail: shows that the check can

The graph is models/aot/deep_mlp.onnx at batch 8192, rewritten with 8 groups; what is compared is the growth
of the peak resident memory in one training step (`measure_memory.py`), each in a process of its own. The
original runs in both of the runtime's orders, and the lower of the two is what must be beaten; the rewritten
graph runs in the default order.

IDEAL, the saving that this graph's project design aims at: of the eight hidden layers of 512 features, the
outputs of seven are inputs of another hidden layer, where nothing but a weight gradient reads them in
backward (GELU's derivative reads the layer's other tensor, its pre-activation). Each is 8192 x 512 floats of
4 bytes, 16 MiB, so 7 x 16 = 112 MiB. (The eighth, in front of the head, is compressed as well, but at the peak
the backward half has put a tensor of its own in its place. What is saved instead, eight z of 8192 x 8 floats or
0.25 MiB, takes 2 MiB of the 112 back: the peak that velora-opt predicts falls by 110.2 MiB. Both are printed.)
The measured saving must be at least 85 % of IDEAL. Memory does not depend on the load of the machine.

Exit status 1 where it is not.
"""

import argparse
import pathlib
import sys
import tempfile

import measure_memory
from memory_table import MIB, ROOT, mib, rewrite

MODEL, DIMS, GROUPS = ROOT / "models/aot/deep_mlp.onnx", {"batch": 8192}, 8
BETWEEN, FEATURES, FLOAT = 7, 512, 4
IDEAL = BETWEEN * DIMS["batch"] * FEATURES * FLOAT
SHARE = 0.85
REPEAT = 3


def growth(model, order):
    """The least of some measurements: what else happens in a process can only add to it."""
    job = {"model": str(model), "dims": DIMS, "seed": 0, "int_high": 2, "arena": True, "order": order, "threads": 0}
    runs = [measure_memory.measure_in_fresh_process(job) for _ in range(REPEAT)]
    for run in runs:
        if "error" in run:
            raise SystemExit(f"{model}: {run['error']}")
    return min(r["growth_bytes"] for r in runs), runs[0]["scalar_outputs"]


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--velora", default=str(ROOT / "target/release/velora-opt"))
    cli.add_argument("--no-pin", action="store_true", help="rewrite without pins, which must fail")
    opt = cli.parse_args()
    arguments = f"--groups {GROUPS}" + (" --no-pin" if opt.no_pin else "")
    with tempfile.TemporaryDirectory() as folder:
        file, totals = rewrite(opt.velora, MODEL, DIMS, arguments, pathlib.Path(folder), 0)
        after, loss_after = growth(file, "default")
    originals = {order: growth(MODEL, order) for order in ("default", "priority")}
    before = min(size for size, _ in originals.values())
    saving = before - after
    predicted = totals["peak_bytes_before"] - totals["peak_bytes_after"]
    for order, (size, _) in originals.items():
        print(f"original, {order} order: {mib(size)} MiB")
    print(f"rewritten ({arguments}), default order: {mib(after)} MiB")
    print(f"saving {mib(saving)} MiB: {saving / IDEAL:.1%} of the ideal {mib(IDEAL)} MiB, "
          f"{saving / predicted:.1%} of the predicted {mib(predicted)} MiB "
          f"({mib(totals['peak_bytes_before'])} -> {mib(totals['peak_bytes_after'])} MiB)")
    failures = []
    if saving < SHARE * IDEAL:
        failures.append(f"the saving is below {SHARE:.0%} of the ideal")
    if loss_after != originals["default"][1]:
        failures.append(f"the loss changed from {originals['default'][1]} to {loss_after}")
    for failure in failures:
        print(f"FAILED {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
