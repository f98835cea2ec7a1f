#!/usr/bin/env python3
"""Saved bytes of our exact plans beside those of PyTorch's min-cut partitioner, on the same models.

    python benchmarks/partitioner.py --check --json partitioner.json
    python benchmarks/saved_bytes.py partitioner.json

Our plans are those of `velora-opt pareto --exact --between 32` on models/aot, with three sets of rates: the default ones,
products so slow that none is computed again, and ten times as fast. For each partition in the file: what they save
where they compute no more again, in bytes and in operations of matrix products. Plans are pieces of work, of a layer
each, and hardly ever come to the very bytes that a partition computes again; what is compared is the straight line
between the two plans on either side, and the nearest plan below is printed as well.

Bytes are those of tensors that go from the forward into the backward half, parameters and inputs left out, views counted
once, in both. Computed again are the bytes that copies write; ours leave out what stays within a chain of element-wise
nodes, since the exporter writes one operator of PyTorch's (GELU) as five.

Not judged are partitions that compute nothing again: what the exporter wrote twice (the sigmoid of a SiLU, which
PyTorch's backward computes from its input and calls no recomputation) is computed again in ours. Exit status 1 where
PyTorch saves fewer bytes with its default configuration or the aggressive one; its budgets below 1 are listed.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
MB = 1e6


RATES = [None, {"products": 1e6, "norms": 7e9, "elementwise": 7e9, "movement": 7e9}, {"products": 1.5e12}]


def plans(opt, model, entry):
    """Our exact plans at the partition's sizes: bytes saved, bytes computed again, operations of products."""
    path = ROOT / f"models/aot/{model}.onnx"
    report, profile = pathlib.Path(opt.folder) / "pareto.json", pathlib.Path(opt.folder) / "rates.json"
    dims = []
    for name, size in (("batch", entry["batch"]), ("seq", entry.get("sequence"))):
        dims += ["--dim", f"{name}={size}"] if size else []
    found = []
    for rates in RATES:
        command = [opt.velora, "pareto", path, "--exact", "--between", "32", "--json", report, "-q"]
        if rates:
            profile.write_text(json.dumps({"otherData": {"schema": "velora-profile/1", "rates": rates}}))
            command += ["--profile", profile]
        done = subprocess.run([*command, *dims], capture_output=True, text=True, check=False)
        if done.returncode and "is a number already" in done.stderr:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        found += [(p["saved_bytes"], p["recomputed_bytes"], max(p["recomputed_flops"], 0.0))
                  for p in json.loads(report.read_text())["pareto"]]
    return found


def least(plans, again):
    """The fewest bytes saved at so many computed again, on straight lines between plans."""
    below = [p for p in plans if p[1] <= again]
    best = min(saved for saved, *_ in below)
    for saved, less, _ in below:
        for other, more, _ in plans:
            if more > again:
                best = min(best, saved + (other - saved) * (again - less) / (more - less))
    return best


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("partitions", type=pathlib.Path, help="JSON of partitioner.py")
    cli.add_argument("--velora", default=str(ROOT / "target/release/velora-opt"))
    opt = cli.parse_args()
    found = json.loads(opt.partitions.read_text())
    worse = 0
    print("| model | PyTorch | saved | again | products again | ours at that | ours / PyTorch | nearest plan: saved | again |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as opt.folder:
        known = {}
        for entry in found:
            model = entry["model"]
            if model not in known:
                known[model] = plans(opt, model, entry)
            saved, again, flops = (entry[key] for key in ("saved_bytes", "recomputed_bytes", "recomputed_matmul_flops"))
            fair = [p for p in known[model] if p[2] <= flops]
            ours = least(fair, again)
            nearest = min((p for p in fair if p[1] <= again), key=lambda p: (p[0], p[1]))
            budget = entry.get("budget")
            judged = again > 0 and budget in (None, 1, 1.0)
            bad = judged and ours > saved
            worse += bad
            name = entry["partition"] + (f", {budget}" if budget not in (None, 1, 1.0) else "")
            ratio = f"{ours / saved:.3f}" if saved else ""
            print(f"| {model} | {name} | {saved / MB:.2f} | {again / MB:.2f} | {flops / 1e9:.2f} G | {ours / MB:.2f} | {ratio}"
                  f"{'' if judged else ' (not judged)'}{' WORSE' if bad else ''} | {nearest[0] / MB:.2f} | "
                  f"{nearest[1] / MB:.2f} |")
    print(f"\nmegabytes of 10^6 bytes; {worse} worse")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
