#!/usr/bin/env python3
"""Seconds per training step, ours beside other engines, on the same network, batch and parameters.

    python benchmarks/step_time.py --python .venv-torch/bin/python --training-python .venv-ort/bin/python

The network is `llama_768x4` of models/: hidden 768, 4 layers, and 16 x 128 tokens. Compared are

  * velora-opt's CPU backend on both graphs, and on both after the rewrite (default options),
  * ONNX Runtime training 1.19.2 on models/ort, its own dialect,
  * stock ONNX Runtime 1.32.0 on models/aot, standard operators,
  * PyTorch eager.

With --device cuda they are our CUDA backend on the same four graphs, and PyTorch on the same GPU where the
Python has it (by default the one that runs this script, which needs numpy and onnx):

    python benchmarks/step_time.py --device cuda

A step is forward and backward; no optimiser. Every engine has the same parameters and batch in memory
of its own beforehand. In each round every engine takes its steps, one engine after the other, in turn
forwards and backwards, so that what else happens on the machine falls on all alike; the figures are
medians over the rounds, the fastest, and ratios between engines in the same round.

Exit status 1 where an engine fails, or where loss or gradient disagree: then the times mean nothing.

Environments (Python 3.11): --python has models/export/requirements-torch.txt, --training-python has
tests/oracle/requirements-training.txt. This script itself needs neither. --ours is the command that
measures us; it prints a line of JSON per step, {"seconds": S, "loss": L}. Engines without their
environment or command are left out, and the output says so.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
CASE = "llama_768x4"
STEP_TIME = ROOT / "target/release/examples/step_time"
OURS = (f"{STEP_TIME} {{model}} {{dims}} --threads {{threads}} --steps {{steps}} "
        "--device {device} --params {params} --data {data}")
# Engines round differently: right ones agree on the loss and on the norms of gradients to some 1e-6
# (measured, relative); one that leaves out a layer or a mask is off by 1e-2 and more.
AGREE = 1e-4
# Not compared: stock ONNX Runtime adds the rows of the embedding's gradient from two threads at once
# without a lock (ScatterND; its issue 23396), so that now and then it loses some.
UNSAFE = "embed_tokens.weight"
PAUSE = 0.2  # seconds for the previous engine's waiting threads to fall asleep


class Failed(Exception):
    pass


class Worker:
    """An engine of engines.py, ready in a process of its own."""

    def __init__(self, kind, graph, python, settings_path):
        self.graph = graph
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [python, str(ROOT / "benchmarks/engines.py"), kind, settings_path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.first = self.answer()
        self.name = self.first["version"]

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise Failed(self.log.read().decode(errors="replace")[-3000:])
        return json.loads(line)

    def steps(self, count):
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Command:
    """Ours: started anew in each round, since it runs its steps and ends."""

    def __init__(self, name, graph, template, values, warmup):
        self.name, self.graph = name, graph
        self.template, self.values, self.warmup = template, values, warmup
        self.first = self.run(1)[-1]

    def run(self, steps):
        command = [part.format(**self.values, steps=steps) for part in shlex.split(self.template)]
        at = next((i for i, part in enumerate(command) if part == self.values["dims"]), None)
        if at is not None:
            command[at : at + 1] = self.values["dims"].split()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"{shlex.join(command)}: exit status {done.returncode}: {done.stderr[-3000:]}")
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        found = [line for line in found if "seconds" in line]
        if len(found) != steps:
            raise Failed(f"{shlex.join(command)}: {len(found)} lines with seconds, expected {steps}")
        return found

    def steps(self, count):
        return {"seconds": [f["seconds"] for f in self.run(self.warmup + count)[self.warmup :]]}

    def close(self):
        pass


def ours(opt, settings, scratch):
    """Our engine on both graphs as they are and rewritten."""
    found = []
    for dialect in ("aot", "ort"):
        graph = settings[dialect]
        dims = {"batch": opt.batch, "seq": opt.seq}
        if dialect == "ort":
            dims["rows"] = opt.batch * opt.seq
        arguments = [a for name, size in dims.items() for a in ("--dim", f"{name}={size}")]
        rewritten = str(scratch / f"{dialect}.velora.onnx")
        done = subprocess.run([opt.velora, graph["model"], "-o", rewritten, "-q", *arguments],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"{opt.velora}: {done.stderr}")
        for model, name in ((graph["model"], "velora-opt"), (rewritten, "velora-opt, rewritten")):
            values = {"model": model, "dims": " ".join(arguments), "threads": opt.threads, "device": opt.device,
                      "params": graph["params"], "data": graph["data"]}
            found.append((name, f"models/{dialect}", values))
    return found


def disagreements(engines):
    """Engines whose loss or gradients are not the first one's."""
    wanted = engines[0]
    for engine in engines[1:]:
        pairs = {"loss": (engine.first.get("loss"), wanted.first["loss"])}
        # Rewritten weights have another gradient by intention; bits of the rest are compared in the tests.
        rewritten = "rewritten" in engine.name
        norms = {name.removeprefix("model."): norm
                 for name, norm in engine.first.get("gradient_norms", {}).items()}
        if norms and not rewritten:
            if norms.keys() != wanted.first["gradient_norms"].keys():
                yield f"{engine.name} has gradients of other parameters than {wanted.name}"
            pairs |= {f"norm of grad {name}": (norms.get(name), norm)
                      for name, norm in wanted.first["gradient_norms"].items() if name != UNSAFE}
        for what, (a, b) in pairs.items():
            if a is not None and not abs(a - b) <= AGREE * abs(b):
                yield f"{what}: {engine.name} {a}, {wanted.name} {b}"


def measure(engines, opt):
    """Seconds per step: one entry per round and engine, the median of the round's steps."""
    rounds, others = [], []
    for number in range(opt.rounds):
        row = {}
        for index in sorted(range(len(engines)), reverse=bool(number % 2)):
            time.sleep(PAUSE)
            answer = engines[index].steps(opt.steps)
            row[index] = statistics.median(answer["seconds"])
            others.append(answer.get("others"))
        rounds.append([row[i] for i in range(len(engines))])
        print(f"round {number + 1}: " + ", ".join(f"{s:.3f}" for s in rounds[-1]), file=sys.stderr, flush=True)
    return rounds, [o for o in others if o is not None]


def times(engines, rounds):
    """Markdown: seconds per step."""
    lines = ["| engine | graph | s / step, median | fastest |", "|---|---|---|---|"]
    for engine, seconds in zip(engines, zip(*rounds)):
        lines.append(f"| {engine.name} | {engine.graph} | {statistics.median(seconds):.2f} | {min(seconds):.2f} |")
    return "\n".join(lines)


def ratios(engines, rounds):
    """Markdown: each engine's time divided by that of each engine before it which is not rewritten.

    First the median over the rounds of the ratio in a round, then the ratio of the fastest steps. What
    else runs on the machine moves the first where it comes and goes within a round."""
    columns = [i for i, engine in enumerate(engines[:-1]) if "rewritten" not in engine.name]
    titles = [" ".join([engines[i].name, engines[i].graph]).strip() for i in columns]
    lines = ["| ÷ | " + " | ".join(titles) + " |", "|---" * (len(columns) + 1) + "|"]
    by_engine = list(zip(*rounds))
    for row in range(1, len(engines)):
        cells = [" ".join([engines[row].name, engines[row].graph])]
        for column in columns:
            ours, theirs = by_engine[row], by_engine[column]
            inside = statistics.median(a / b for a, b in zip(ours, theirs))
            cells.append(f"{inside:.2f} ({min(ours) / min(theirs):.2f})" if column < row else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    cli.add_argument("--python", help="Python with PyTorch and stock ONNX Runtime")
    cli.add_argument("--training-python", help="Python with onnxruntime-training")
    cli.add_argument("--ours", default=OURS if STEP_TIME.exists() else None, metavar="TEMPLATE",
                     help="command that measures us; {model}, {dims} (a word of its own), {threads}, {steps}, {params} "
                          "and {data} are filled in (default, once it is built: "
                          + OURS.replace(str(ROOT), ".") + ")")
    cli.add_argument("--velora", default=str(ROOT / "target/release/velora-opt"), help="makes the rewritten graphs")
    cli.add_argument("--batch", type=int, default=16)
    cli.add_argument("--seq", type=int, default=128, help="at most 128")
    cli.add_argument("--threads", type=int, default=2)
    cli.add_argument("--rounds", type=int, default=10)
    cli.add_argument("--steps", type=int, default=1, help="steps per engine and round (default: 1)")
    cli.add_argument("--warmup", type=int, default=1, help="steps of ours before those, in each round")
    cli.add_argument("--json", type=pathlib.Path, help="also write every figure to this file")
    opt = cli.parse_args()
    if not opt.python and opt.device == "cuda":
        opt.python = sys.executable
    if not opt.python:
        cli.error("--python is needed: it prepares the parameters and the batch")

    engines = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        settings = {"case": CASE, "batch": opt.batch, "seq": opt.seq, "threads": opt.threads,
                    "device": opt.device}
        for dialect in ("aot", "ort"):
            settings[dialect] = {"model": str(ROOT / f"models/{dialect}/{CASE}.onnx"),
                                 "params": str(scratch / f"{dialect}.safetensors"),
                                 "data": str(scratch / f"{dialect}.npz")}
        settings_path = str(scratch / "settings.json")
        pathlib.Path(settings_path).write_text(json.dumps(settings))
        try:
            subprocess.run([opt.python, str(ROOT / "benchmarks/engines.py"), "prepare", settings_path], check=True)
            has_torch = subprocess.run([opt.python, "-c", "import torch"], capture_output=True, check=False)
            if has_torch.returncode == 0:
                engines.append(Worker("pytorch", "", opt.python, settings_path))
            else:
                print(f"left out: PyTorch ({opt.python} has none)", file=sys.stderr)
            # On a GPU ONNX Runtime is another package, and has no training operators.
            if opt.device == "cpu":
                engines.append(Worker("ort", "models/aot", opt.python, settings_path))
            if opt.device == "cpu" and opt.training_python:
                engines.append(Worker("ort-training", "models/ort", opt.training_python, settings_path))
            elif opt.device == "cpu":
                print("left out: ONNX Runtime training (--training-python)", file=sys.stderr)
            if opt.ours:
                engines += [Command(name, graph, opt.ours, values, opt.warmup)
                            for name, graph, values in ours(opt, settings, scratch)]
            else:
                print(f"left out: velora-opt ({STEP_TIME.relative_to(ROOT)} is not built)", file=sys.stderr)
            wrong = list(disagreements(engines))
            rounds, others = measure(engines, opt)
        except (Failed, subprocess.CalledProcessError) as error:
            print(f"step_time.py: {error}", file=sys.stderr)
            return 1
        finally:
            for engine in engines:
                engine.close()

    where = f"{opt.threads} threads" if opt.device == "cpu" else engines[-1].first.get("device", opt.device)
    used = f"{statistics.median(others):.2f} (median; most: {max(others):.2f})" if others else "an unknown part"
    print(f"{CASE}, {opt.batch} x {opt.seq} tokens, {where}, {opt.rounds} rounds of {opt.steps}; "
          f"{os.cpu_count()} cores, of which others used {used}\n")
    print(times(engines, rounds), ratios(engines, rounds), sep="\n\n")
    print("\nloss: " + ", ".join(f"{e.name} {e.first['loss']:.6f}" for e in engines if "loss" in e.first))
    for line in wrong:
        print(f"DISAGREE: {line}")
    if opt.json:
        opt.json.write_text(json.dumps({
            "case": CASE, "batch": opt.batch, "seq": opt.seq, "threads": opt.threads, "others": others,
            "engines": [{"name": e.name, "graph": e.graph, **e.first, "seconds": [row[i] for row in rounds]}
                        for i, e in enumerate(engines)]}, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
