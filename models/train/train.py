"""Trains graphs as they are and rewritten, side by side, and writes the curves and a table.

    python models/train/train.py [--only digits|text|time] [--out docs/training] [--work target/training]

Run from the root of the repository, after `cargo build --release`. Every command is printed before it
runs. The same commands give the same losses to the bit on the same kind of processor, whatever the
number of threads; times differ.

`digits` takes the data in models/data and the standard library only. `text` needs numpy, and
text_train.npz and text_test.npz in the work folder: what is not there is made by models/data/text.py.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys

import report

PARTS = ["digits", "text", "time"]
ROOT = pathlib.Path(__file__).resolve().parents[2]

# Name of a variant: the arguments of the rewrite, or None for the graph as it is.
PLAIN, REWRITTEN, EIGHT = "plain", "rewritten", "8 groups"
VARIANTS = {PLAIN: None, REWRITTEN: [], EIGHT: ["--groups", "8"]}

# Steps (of 44 batches each pass), and seeds of the order of the samples.
DIGITS = {
    "aot/digits_mlp": (880, (0, 1, 2)),
    "ort/digits_mlp": (880, (0, 1, 2)),
    "aot/digits_vit": (1320, (0,)),
}
DIGITS_SETTINGS = ["--batch", "32", "--optimizer", "adamw", "--lr", "2e-3", "--schedule", "cosine", "--warmup", "40"]

TEXT = "aot/llama_256x4"
TEXT_SETTINGS = [
    "--init-params", "normal", "--optimizer", "adamw", "--lr", "1e-3", "--schedule", "cosine",
    "--clip", "1.0",
]  # fmt: skip


class Training:
    def __init__(self, opt):
        self.opt = opt
        self.work = opt.work
        self.work.mkdir(parents=True, exist_ok=True)

    def start(self, arguments):
        """Starts the tool."""
        command = [str(self.opt.tool), *map(str, arguments)]
        print("$", shlex.join(command).replace(f"{ROOT}/", ""), flush=True)
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    def run(self, arguments):
        """Runs the tool; stops everything where it fails."""
        self.finish(self.start(arguments))

    def finish(self, process):
        if process.wait() != 0:
            sys.exit("train.py: the command failed")

    def graph(self, model, variant):
        """The file of a variant, rewritten where it is to be, with batch and sequence open."""
        source = pathlib.Path("models") / f"{model}.onnx"
        if VARIANTS[variant] is None:
            return source
        target = self.work / f"{model.replace('/', '_')}.{variant.replace(' ', '_')}.velora.onnx"
        self.run([source, "-o", target, *VARIANTS[variant], "--quiet"])
        return target

    def train(self, model, graph, variant, seed, arguments):
        """Trains; gives the outcome with the losses of the log."""
        return self.begin(model, graph, variant, seed, arguments)()

    def begin(self, model, graph, variant, seed, arguments):
        """Begins to train; gives a function that waits for the end and gives the outcome."""
        stem = f"{model.replace('/', '_')}.{variant.replace(' ', '_')}.{seed}"
        outcome, log = self.work / f"{stem}.json", self.work / f"{stem}.jsonl"
        if self.opt.keep and outcome.exists():
            return lambda: self.outcome(model, variant, seed, outcome, log)
        process = self.start([
            "run", graph, *arguments, "--seed", seed, "--threads", self.opt.threads,
            "--log", log, "--json", outcome, "--quiet",
        ])  # fmt: skip

        def end():
            self.finish(process)
            return self.outcome(model, variant, seed, outcome, log)

        return end

    def outcome(self, model, variant, seed, outcome, log):
        """What the tool wrote of a run."""
        result = json.loads(outcome.read_text())
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        kept = ("eval", "evaluations", "steps")
        return {
            "model": model,
            "variant": variant,
            "seed": seed,
            "losses": [line["loss"] for line in lines if "loss" in line],
            **{key: result[key] for key in kept},
        }

    def digits(self):
        data = ["--data", "models/data/digits_train.npz", "--eval", "models/data/digits_test.npz"]
        runs, memory = [], []
        for model, (steps, seeds) in DIGITS.items():
            for variant in VARIANTS:
                graph = self.graph(model, variant)
                for seed in seeds:
                    arguments = [*data, *DIGITS_SETTINGS, "--steps", steps, "--eval-every", steps // 20]
                    runs.append(self.train(model, graph, variant, seed, arguments))
                memory.append(self.memory(model, graph, variant, [*data[:2], *DIGITS_SETTINGS]))
        return {"runs": runs, "memory": memory}

    def memory(self, model, graph, variant, arguments):
        """What training alone takes: with an evaluation, the figures are the most of both."""
        outcome = self.work / "memory.json"
        self.run(["run", graph, *arguments, "--steps", 6, "--threads", self.opt.threads, "--json", outcome, "--quiet"])
        result = json.loads(outcome.read_text())
        kept = ("memory", "arena", "allocated_in_steps", "seconds_per_step")
        return {"model": model, "variant": variant, **{key: result[key] for key in kept}}

    def text(self):
        opt = self.opt
        train, held_out = self.text_data()
        every = max(1, opt.steps // 4)
        graphs = {variant: self.graph(TEXT, variant) for variant in (PLAIN, REWRITTEN)}
        settings = ["--batch", opt.batch, *TEXT_SETTINGS, "--warmup", opt.steps // 10, "--steps", opt.steps]
        data = ["--data", train, "--eval", held_out, "--eval-every", every]
        begin = lambda variant: self.begin(TEXT, graphs[variant], variant, 0, [*data, *settings])  # noqa: E731
        if opt.at_once:
            runs = [end() for end in [begin(variant) for variant in graphs]]
        else:
            runs = [begin(variant)() for variant in graphs]
        return {"runs": runs, "batch": opt.batch}

    def time(self):
        """Bytes, and seconds per step of both, by turns: the machine may be busier in one run than in the next."""
        train, _ = self.text_data()
        memory = []
        for _ in range(self.opt.turns):
            for variant in (PLAIN, REWRITTEN):
                graph = self.graph(TEXT, variant)
                memory.append(self.memory(TEXT, graph, variant, ["--data", train, "--batch", self.opt.batch, *TEXT_SETTINGS]))
        return {"memory": memory}

    def text_data(self):
        """The files to train and to evaluate on; of the held-out sequences, the first few hundred."""
        train, held_out = self.work / "text_train.npz", self.work / "text_test.npz"
        if not (train.exists() and held_out.exists()):
            command = [sys.executable, "models/data/text.py", "--out", str(self.work)]
            print("$", shlex.join(command), flush=True)
            subprocess.run(command, cwd=ROOT, check=True)
        part = self.work / f"text_test_{self.opt.held_out}.npz"
        if not part.exists():
            import numpy as np

            arrays = np.load(held_out)
            np.savez(part, **{name: arrays[name][: self.opt.held_out] for name in arrays.files})
        return train, part


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--only", choices=PARTS, help="one part")
    cli.add_argument("--tool", type=pathlib.Path, default=ROOT / "target/release/velora-opt")
    cli.add_argument("--out", type=pathlib.Path, default=ROOT / "docs/training", help="table and curves")
    cli.add_argument("--work", type=pathlib.Path, default=ROOT / "target/training", help="everything else")
    cli.add_argument("--threads", type=int, default=0, help="of the tool; 0: one per core")
    cli.add_argument("--steps", type=int, default=400, help="of the language model")
    cli.add_argument("--batch", type=int, default=4, help="sequences of 128 bytes in a batch")
    cli.add_argument("--held-out", type=int, default=160, help="sequences to evaluate on")
    cli.add_argument("--turns", type=int, default=3, help="turns of the measurement of time")
    cli.add_argument("--at-once", action="store_true", help="both language models at the same time")
    cli.add_argument("--keep", action="store_true", help="do not repeat runs whose outcome the work folder has")
    cli.add_argument("--draw", action="store_true", help="train nothing; draw what the work folder has")
    opt = cli.parse_args()
    opt.work, opt.out = opt.work.resolve(), opt.out.resolve()

    training = Training(opt)
    parts = [opt.only] if opt.only else PARTS
    for part in parts:
        saved = opt.work / f"results_{part}.json"
        if not opt.draw:
            saved.write_text(json.dumps(getattr(training, part)()))
        report.write(part, json.loads(saved.read_text()), opt.out)


if __name__ == "__main__":
    main()
