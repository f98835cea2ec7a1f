#!/usr/bin/env python3
"""Saved bytes of our exact plans beside those of PyTorch's min-cut partitioner, on the same models.

    python benchmarks/partitioner.py --check --json partitioner.json
    python benchmarks/saved_bytes.py partitioner.json

For each partition in the file: of our exact plans (`velora-opt pareto --exact --between 16` on models/aot) that compute
no more again, in bytes made and in operations of matrix products, the one that saves the least. Bytes are those of
tensors that go from the forward into the backward half, parameters and inputs left out, views counted once,
in both. Exit status 1 where PyTorch saves fewer.

Where a partition computes nothing again, ours may not either; what the exporter wrote twice (the sigmoid of a SiLU, which
PyTorch's backward computes from its input and calls no recomputation) counts as computed again in ours. Such rows
are listed and not judged.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


def plans(opt, model, entry):
    """Our exact plans at the partition's sizes."""
    path = ROOT / f"models/aot/{model}.onnx"
    report = pathlib.Path(opt.folder) / "pareto.json"
    dims = []
    for name, size in (("batch", entry["batch"]), ("seq", entry.get("sequence"))):
        dims += ["--dim", f"{name}={size}"] if size else []
    command = [opt.velora, "pareto", path, "--exact", "--between", "16", "--json", report, "-q"]
    done = subprocess.run([*command, *dims], capture_output=True, text=True, check=False)
    if done.returncode and "is a number already" in done.stderr:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(report.read_text())["pareto"]


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("partitions", type=pathlib.Path, help="JSON of partitioner.py")
    cli.add_argument("--velora", default=str(ROOT / "target/release/velora-opt"))
    opt = cli.parse_args()
    found = json.loads(opt.partitions.read_text())
    worse = 0
    print("| model | PyTorch | saved | again | products again | ours saved | again | products again | ours / PyTorch |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as opt.folder:
        known = {}
        for entry in found:
            model = entry["model"]
            if model not in known:
                known[model] = plans(opt, model, entry)
            bytes_, flops = entry["recomputed_bytes"], entry["recomputed_matmul_flops"]
            fair = [p for p in known[model] if p["recomputed_bytes"] <= bytes_ and p["recomputed_flops"] <= flops]
            ours = min(fair, key=lambda p: (p["saved_bytes"], p["recomputed_bytes"]))
            ratio = f"{ours['saved_bytes'] / entry['saved_bytes']:.3f}" if entry["saved_bytes"] else ""
            judged = bytes_ > 0
            bad = judged and ours["saved_bytes"] > entry["saved_bytes"]
            worse += bad
            budget = entry.get("budget")
            name = entry["partition"] + (f", {budget}" if budget not in (None, 1, 1.0) else "")
            print(f"| {model} | {name} | {entry['saved_bytes']} | {bytes_} | {flops / 1e9:.2f} G | {ours['saved_bytes']} | "
                  f"{ours['recomputed_bytes']} | {ours['recomputed_flops'] / 1e9:.2f} G | {ratio}"
                  f"{'' if judged else ' (not judged)'}{' WORSE' if bad else ''} |")
    print(f"\n{worse} worse")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
