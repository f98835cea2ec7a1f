#!/usr/bin/env python3
"""Table of the memory that one training step takes in stock ONNX Runtime, before and after the rewrite.

    python memory_table.py                                            # the originals only
    python memory_table.py --variant "--groups 8" --variant "--groups 8 --no-pin"
    python memory_table.py --model deep_mlp --repeat 1 --variant "--groups 8 --inline"

Measured as `measure_memory.py` says, with ONNX Runtime's default session options except for the order of
execution, which is given in the table, and of the arena where `--no-arena` is given. Each `--variant` is one set of arguments to velora-opt. Beside the
measurement stands the peak that velora-opt's report predicts for its own schedule (`peak_bytes_before` and
`peak_bytes_after` of the `--json` report); where the report has none, a dash.
"""

import argparse
import json
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile

import measure_memory

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Sizes at which activations dominate, and that a machine of 16 GiB holds.
MODELS = {
    "deep_mlp": {"batch": 8192},
    "llama_256x4": {"batch": 64, "seq": 128},
    "llama_768x4": {"batch": 32, "seq": 128},
}
MIB = 2**20


def rewrite(velora, model, dims, arguments, folder, number):
    """The rewritten file and the totals of the report."""
    out, report = folder / f"{model.stem}.{number}.onnx", folder / f"{model.stem}.{number}.json"
    command = [velora, str(model), "-o", str(out), "--json", str(report), "--quiet", *shlex.split(arguments)]
    for name, size in dims.items():
        command += ["--dim", f"{name}={size}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}: exit status {done.returncode}\n{done.stderr}")
    return out, json.loads(report.read_text(encoding="utf-8"))["totals"]


def measured(model, dims, order, arena, repeat):
    """Growths in bytes and seconds of `repeat` runs, each in a process of its own."""
    job = {"model": str(model), "dims": dims, "seed": 0, "int_high": 2, "arena": arena, "order": order, "threads": 0}
    runs = [measure_memory.measure_in_fresh_process(job) for _ in range(repeat)]
    for run in runs:
        if "error" in run:
            raise SystemExit(f"{model}: {run['error']}")
    return [r["growth_bytes"] for r in runs], [r["seconds"] for r in runs], runs[0]["scalar_outputs"]


def mib(size):
    return "-" if size is None else f"{size / MIB:.1f}"


def table(name, rows):
    """Markdown. The change is against the original in the order that is better for it."""
    best = min(statistics.median(growths) for variant, _, growths, _, _ in rows if variant == "original")
    yield f"| {name} | order | peak growth, MiB | smallest to largest | change, MiB | predicted peak, MiB | s |"
    yield "|---|---|---|---|---|---|---|"
    for variant, order, growths, seconds, predicted in rows:
        middle = statistics.median(growths)
        yield (f"| {variant} | {order} | {mib(middle)} | {mib(min(growths))} to {mib(max(growths))} "
               f"| {(middle - best) / MIB:+.1f} | {mib(predicted)} | {statistics.median(seconds):.2f} |")


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--velora", default=str(ROOT / "target/release/velora-opt"))
    cli.add_argument("--model", action="append", choices=sorted(MODELS), help="default: all")
    cli.add_argument("--variant", action="append", default=[], metavar="ARGUMENTS", help="for velora-opt")
    cli.add_argument("--order", action="append", choices=["default", "priority"], help="default: both")
    cli.add_argument("--repeat", type=int, default=3)
    cli.add_argument("--no-arena", action="store_true", help="memory arena and memory pattern off")
    opt = cli.parse_args()
    orders = opt.order or ["default", "priority"]
    with tempfile.TemporaryDirectory() as scratch:
        for name in opt.model or MODELS:
            dims, model = MODELS[name], ROOT / "models/aot" / f"{name}.onnx"
            before, files = None, []
            for number, arguments in enumerate(opt.variant):
                file, totals = rewrite(opt.velora, model, dims, arguments, pathlib.Path(scratch), number)
                before = totals.get("peak_bytes_before")
                files.append((f"`{arguments}`", file, totals.get("peak_bytes_after")))
            rows, losses = [], {}
            for variant, file, predicted in [("original", model, before), *files]:
                for order in orders:
                    growths, seconds, scalars = measured(file, dims, order, not opt.no_arena, opt.repeat)
                    rows.append((variant, order, growths, seconds, predicted))
                    losses[variant, order] = scalars
            sizes = ", ".join(f"{k} {v}" for k, v in dims.items())
            print("\n".join(table(f"{name}, {sizes}", rows)))
            different = [k for k, v in losses.items() if v != losses["original", orders[0]]]
            exceptions = f", but {[losses[d] for d in different]} for {different}" if different else " in every row"
            print(f"\nLoss: {losses['original', orders[0]]}{exceptions}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
