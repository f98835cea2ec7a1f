#!/usr/bin/env python3
"""Plans of a whole step, predicted and measured: memory and time in our runtime, and memory in ONNX Runtime.

    cargo build --release --workspace --bins --examples
    python benchmarks/planner.py --model models/aot/llama_768x4.onnx --dim batch=16 --dim seq=128 --rounds 5

First the original is profiled (`run --profile`), and every plan is made with that profile's rates. Then each plan's
graph is executed:

  * `arena`: the bytes of the region of activations that `run` predicts and measures, which must be equal,
  * `step`: seconds of forward and backward, medians over rounds in which all plans take turns, forwards and backwards; ratios
    are those within a round,
  * `predicted`: the cost model's ratio to the original,
  * with --ort: how far a step raises the resident memory of stock ONNX Runtime with default options
    (tests/oracle/measure_memory.py), and the ratio of its times.

Losses of all plans must be equal to the last bit, and of exact plans the norms of all gradients: exit status 1
where they are not, or where a prediction of bytes is wrong.

Needs numpy and onnx, and onnxruntime with --ort (tests/oracle/requirements-stock.txt).
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import onnx

ROOT = pathlib.Path(__file__).resolve().parents[1]
VELORA = ROOT / "target/release/velora-opt"
STEP_TIME = ROOT / "target/release/examples/step_time"
MIB = 2**20
# Name, whether nothing in it is approximate, and the options that make it.
PLANS = [
    ("original", True, None),
    ("default rewrite", False, []),
    ("exact, 5 %", True, ["--exact"]),
    ("cheap", True, ["--exact", "--recompute", "cheap"]),
    ("cheap, compressed", False, ["--recompute", "cheap"]),
    ("no slower, compressed", False, ["--max-slowdown", "0%"]),
    ("checkpointing, layers", True, ["--exact", "--recompute", "layers"]),
    ("checkpointing, sqrt", True, ["--exact", "--recompute", "sqrt"]),
    ("exact, checkpointing's memory", True, "layers"),
    ("compressed, checkpointing's memory", False, "layers"),
]


def execute(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")
    return done.stdout


def inputs(model, dims):
    """Parameters and batch from a seed: what has a gradient is a parameter, whole numbers are the batch."""
    graph = onnx.load(model, load_external_data=False).graph
    random = np.random.default_rng(0)
    params, data = {}, {}
    for value in graph.input:
        tensor = value.type.tensor_type
        shape = [dims.get(d.dim_param, d.dim_value) for d in tensor.shape.dim]
        if tensor.elem_type == onnx.TensorProto.INT64:
            data[value.name] = random.integers(0, 2, shape)
        elif any(d.dim_param for d in tensor.shape.dim):
            data[value.name] = random.standard_normal(shape, dtype=np.float32)
        else:
            scale = shape[-1] ** -0.5 if len(shape) > 1 else 1.0
            params[value.name] = random.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    return params, data


class Bench:
    def __init__(self, opt, folder):
        self.opt, self.folder = opt, folder
        self.dims = [part for dim in opt.dim for part in ("--dim", dim)]
        sizes = {name: int(size) for name, size in (dim.split("=") for dim in opt.dim)}
        params, data = inputs(opt.model, sizes)
        np.savez(folder / "params.npz", **params)
        np.savez(folder / "data.npz", **data)
        self.files = ["--params", folder / "params.npz", "--data", folder / "data.npz"]

    def steps(self, model, count, *more):
        command = [STEP_TIME, model, *self.dims, *self.files, "--threads", self.opt.threads, "--steps", count, *more]
        return [json.loads(line) for line in execute(command).splitlines() if line.startswith("{")]

    def memory(self, model):
        """Predicted and measured bytes of activations."""
        batch = next(dim.split("=")[1] for dim in self.opt.dim if dim.startswith("batch="))
        other = [part for dim in self.opt.dim if not dim.startswith("batch=") for part in ("--dim", dim)]
        report = self.folder / "run.json"
        execute([VELORA, "run", model, *self.files, "--steps", 1, "--batch", batch, *other, "--threads", self.opt.threads,
                 "--optimizer", "sgd", "--json", report, "-q"])
        found = json.loads(report.read_text())["memory"]["activations"]
        return found["predicted"], found["measured"]

    def plan(self, name, options):
        if options is None:
            return {"name": name, "model": self.opt.model, "predicted": 1.0}
        out, report = self.folder / f"{len(name)}-{name.replace(' ', '_').replace('%', '')}.onnx", self.folder / "r.json"
        profile = ["--profile", self.folder / "profile.json"] if options else []
        execute([VELORA, self.opt.model, "-o", out, *self.dims, *options, *profile, "--json", report, "-q"])
        found = json.loads(report.read_text())
        plan = found.get("plan")
        ratio = plan["after"]["seconds"] / plan["before"]["seconds"] if plan else None
        return {"name": name, "model": out, "predicted": ratio, "plan": plan,
                "peak": found["totals"]["peak_bytes_after"] / found["totals"]["peak_bytes_before"],
                "peak_bytes": found["totals"]["peak_bytes_after"]}


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", type=pathlib.Path, default=ROOT / "models/aot/llama_768x4.onnx")
    cli.add_argument("--dim", action="append", default=[], metavar="NAME=N")
    cli.add_argument("--threads", type=int, default=2)
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--ort", action="store_true", help="measure memory in ONNX Runtime as well")
    cli.add_argument("--json", type=pathlib.Path)
    opt = cli.parse_args()
    opt.dim = opt.dim or ["batch=16", "seq=128"]
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(opt, pathlib.Path(folder))
        bench.steps(opt.model, 4, "--profile", bench.folder / "profile.json")
        plans, layers = [], None
        for name, exact, options in PLANS:
            if options == "layers":
                # At the peak that checkpointing reaches, by the model that bounds the search.
                options = ["--target-saving", f"{100 * (1 - layers['peak']):.3f}%"]
                options += ["--exact", "--max-slowdown", "100%"] if exact else []
            plan = bench.plan(name, options) | {"exact": exact}
            if name == "checkpointing, layers":
                layers = plan
            plans.append(plan)
        for plan in plans:
            first = bench.steps(plan["model"], 1)[0]
            plan |= {"loss": first["loss"], "norms": first["gradient_norms"]}
            plan["arena"], measured = bench.memory(plan["model"])
            if plan["arena"] != measured:
                wrong.append(f"{plan['name']}: {plan['arena']} bytes predicted, {measured} measured")
            if plan["loss"] != plans[0]["loss"]:
                wrong.append(f"{plan['name']}: loss {plan['loss']}, of the original {plans[0]['loss']}")
            if plan["exact"] and plan["norms"] != plans[0]["norms"]:
                wrong.append(f"{plan['name']}: other norms of gradients than the original")
        rounds = []
        for number in range(opt.rounds):
            row = {}
            for index in sorted(range(len(plans)), reverse=bool(number % 2)):
                row[index] = bench.steps(plans[index]["model"], 2)[-1]["seconds"]
            rounds.append([row[index] for index in range(len(plans))])
            print(f"round {number + 1}: " + ", ".join(f"{s:.3f}" for s in rounds[-1]), file=sys.stderr, flush=True)
        for index, plan in enumerate(plans):
            plan["seconds"] = [row[index] for row in rounds]
            plan["step"] = statistics.median(row[index] / row[0] for row in rounds)
        if opt.ort:
            measure = [sys.executable, ROOT / "tests/oracle/measure_memory.py", *(p["model"] for p in plans),
                       *bench.dims, "--repeat", "3"]
            found = json.loads(execute(measure))["measurements"]
            for plan in plans:
                mine = [m for m in found if m["model"] == str(plan["model"])]
                plan["ort"] = min(m["growth_bytes"] for m in mine)
                plan["ort_seconds"] = min(m["seconds"] for m in mine)
    head = ["plan", "exact", "arena, MiB", "", "step", "predicted"]
    head += ["ONNX Runtime, MiB", "", "time"] if opt.ort else []
    print(f"{opt.model.name}, {', '.join(opt.dim)}, {opt.threads} threads, {opt.rounds} rounds\n")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    first = plans[0]
    for plan in plans:
        cells = [plan["name"], "yes" if plan["exact"] else "no", f"{plan['arena'] / MIB:.1f}",
                 f"{100 * plan['arena'] / first['arena']:.1f} %", f"{plan['step']:.3f}",
                 "" if plan["predicted"] is None else f"{plan['predicted']:.3f}"]
        if opt.ort:
            cells += [f"{plan['ort'] / MIB:.1f}", f"{100 * plan['ort'] / first['ort']:.1f} %",
                      f"{plan['ort_seconds'] / first['ort_seconds']:.2f}"]
        print("| " + " | ".join(cells) + " |")
    for line in wrong:
        print(f"WRONG: {line}")
    if opt.json:
        for plan in plans:
            plan["model"] = pathlib.Path(plan["model"]).name
        opt.json.write_text(json.dumps(plans, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
