"""Trains the rows of a table with `velora-opt run`, and remembers what was done.

A row is a graph of graphs.zip, as it is, rewritten, or with some layers not trained. `Suite` makes the graph's file,
draws its parameters, chooses a learning rate, trains it with several seeds, and measures bytes and times. Every run's outcome is
kept under what decides it (the bytes of graph, data and parameters, and the options), so that a script that was
stopped goes on where it was, and one whose settings changed repeats what they change and nothing else.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shlex
import subprocess
import sys
import zipfile
import zlib

import data
import numpy as np
import onnx
import quantise
from safetensors.numpy import load_file

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REGIONS = ["parameters", "gradients", "optimizer", "constants", "inputs", "activations"]
# The seed that learning rates are chosen with: none of those that a table shows.
TUNING_SEED = 1000
# No more learning rates than these are tried for a row.
MOST_RATES = 6


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained: data, sizes, and how far."""

    name: str
    train: pathlib.Path
    test: pathlib.Path
    dims: dict
    batch: int
    steps: int
    metric: str  # "accuracy" in percent, or "perplexity"
    # Parameters that training starts from, in place of drawn ones, by the names of the graph or its base.
    pretrained: pathlib.Path | None = None
    settings: tuple = ("--schedule", "cosine", "--clip", "1.0")
    # Whether it is already as small as a quick run takes it.
    reduced: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table."""

    name: str
    graph: str
    # Learning rates to choose from; or the name of the row whose choice is taken.
    rates: tuple | str
    # Options of the rewrite; None leaves the graph as it is.
    rewrite: tuple | None = None
    # The row with a rewrite whose rewritten layers are not trained here.
    frozen_like: str | None = None
    # The row in which the layers that are rewritten here are not trained.
    frozen_row: str | None = None
    optimizer: tuple = ("--optimizer", "adamw")
    # The row that differs in the rewrite alone.
    twin: str | None = None
    # The row whose numbers an exact rewrite has to the last bit: trained in this one's place, once that was seen for some steps.
    same_as: str | None = None
    # Whether something is freed: q, k and v share one input, which stays as long as one of them reads it.
    frees: bool = True
    # The paper's figures, as they are printed there.
    paper: tuple = ()


# All layers that free something, but for the last: frozen as it was drawn, it would be no rival to compression.
ALL = ("--exclude", r"^(head|classifier|lm_head)\.")
# The planner's choice of what to compute again and what to compress, at 1.1 of the time by its cost model; and the best that it finds
# there without compressing anything.
PLANNED = ("--max-slowdown", "10%")
EXACT = ("--exact", *PLANNED)


def group(twin, graph, layers, rewrite, paper=()):
    """VeLoRA on some layers of a row, and the row in which these layers are not trained."""
    name = f"{twin} + VeLoRA ({layers})"
    frozen = f"{twin}, frozen: {layers}"
    return (
        Row(name, graph, twin, rewrite=rewrite, twin=twin, frozen_row=frozen, paper=paper),
        Row(frozen, graph, twin, frozen_like=name),
    )


class Failed(Exception):
    """The tool, or a check of what it said, failed."""


class Suite:
    """One task and its rows."""

    def __init__(self, opt, table, task, rows):
        if opt.quick and not task.reduced:
            batch = max(2, task.batch // 4)
            # The same few batches again and again: a loss that does not fall there is a defect.
            train, test = (first(path, count, opt.work / "data") for path, count in ((task.train, 4 * batch), (task.test, 32)))
            task = dataclasses.replace(task, train=train, test=test, batch=batch, dims=task.dims | {"batch": batch}, reduced=True)
        self.opt, self.table, self.task = opt, table, task
        self.rows = {row.name: row for row in rows}
        self.seeds = range(opt.seeds)
        self.folder = opt.work / "graphs" / table / task.name
        self.records = opt.work / "records"
        for folder in (self.folder, self.records):
            folder.mkdir(parents=True, exist_ok=True)
        self.manifest = manifest()
        self.hashes = {}

    # ---- the tool
    def tool(self, arguments):
        command = [str(self.opt.tool), *map(str, arguments)]
        if self.opt.verbose:
            print("$", shlex.join(command).replace(f"{ROOT}/", ""), flush=True)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"{shlex.join(command)}\n{done.stderr[-2000:]}")
        return done.stdout

    def digest(self, path):
        """The hash of a file's bytes."""
        path = pathlib.Path(path)
        key = (path, path.stat().st_mtime_ns)
        if key not in self.hashes:
            with open(path, "rb") as file:
                self.hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return self.hashes[key]

    def remembered(self, key, work):
        """What `work` gave for this key, now or earlier."""
        text = json.dumps(key, sort_keys=True)
        path = self.records / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
        if path.exists():
            return json.loads(path.read_text())["outcome"]
        outcome = work()
        data.replace(path, json.dumps({"key": key, "outcome": outcome}).encode())
        return outcome

    # ---- graphs
    def dims(self):
        return [part for name, size in self.task.dims.items() for part in ("--dim", f"{name}={size}")]

    def graph(self, row):
        """The file of a row's graph."""
        source = unpack(self.opt.work, row.graph)
        if row.frozen_like:
            target = self.folder / f"{slug(row.name)}.frozen.onnx"
            freeze(source, set(self.rewritten(self.rows[row.frozen_like])), target)
            source = target
        if row.rewrite is None:
            return source
        target = self.folder / f"{slug(row.name)}.velora.onnx"
        report = target.with_suffix(".json")
        self.tool([source, "-o", target, *row.rewrite, *self.dims(), "--json", report, "--quiet"])
        return target

    def rewritten(self, row):
        """The parameters whose gradients a row's rewrite approximates."""
        report = (self.folder / f"{slug(row.name)}.velora.json")
        if not report.exists():
            self.graph(row)
        layers = json.loads(report.read_text())["layers"]
        names = [layer["param"] for layer in layers if layer["decision"] == "rewritten"]
        if not names:
            raise Failed(f"{row.name}: nothing is rewritten")
        return names

    # ---- parameters
    @functools.cached_property
    def given(self):
        """The parameters that training starts from, read once for all rows and seeds."""
        return load_file(self.task.pretrained) if self.task.pretrained else {}

    def parameters(self, row, seed):
        """A file with the parameters that a seed starts from."""
        inputs = self.manifest[row.graph]["inputs"]
        given = self.given
        tensors, packed = {}, {}
        for entry in inputs:
            name, base = entry["name"], entry.get("base_name", entry["name"])
            if "quantised" in entry:
                # Codes and scales each have an entry that says the same.
                how = entry["quantised"]
                if name == how["codes"]:
                    codes, scales = getattr(quantise, how["kind"])(given[base])
                    shape = next(other["shape"] for other in inputs if other["name"] == how["scales"])
                    packed[name], tensors[how["scales"]] = codes, scales.reshape(shape)
            else:
                tensors[name] = given[base] if base in given else draw(entry, seed)
        path = self.opt.work / "parameters" / f"{self.task.name}.{row.graph}.{seed}.safetensors"
        path.parent.mkdir(exist_ok=True, parents=True)
        quantise.save(path, tensors, packed)
        return path

    # ---- training
    def train(self, row, rate, seed):
        """The outcome of a training: the held-out score, losses, and bytes."""
        task, graph, parameters = self.task, self.graph_of[row.name], self.parameters_of[row.graph, seed]
        options = [
            "--batch", task.batch, "--steps", task.steps, "--warmup", max(1, task.steps // 10),
            *task.settings, *row.optimizer, "--lr", f"{rate:g}", "--seed", seed,
        ]  # fmt: skip
        files = [graph, parameters, task.train, task.test]
        key = {"train": [self.digest(file) for file in files], "options": list(map(str, options))}

        def work():
            stem = self.opt.work / "runs" / f"{slug(task.name)}.{slug(row.name)}.{seed}.{rate:g}"
            stem.parent.mkdir(exist_ok=True, parents=True)
            outcome, log = stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".jsonl")
            try:
                self.tool([
                    "run", graph, "--params", parameters, "--data", task.train, "--eval", task.test, *options,
                    "--threads", self.opt.threads, "--json", outcome, "--log", log, "--quiet",
                ])  # fmt: skip
            except Failed as failed:
                # A learning rate that leads to no number loses against the others.
                if "the loss is" in str(failed):
                    return {"diverged": str(failed).strip().splitlines()[-1]}
                raise
            result = json.loads(outcome.read_text())
            losses = [json.loads(line)["loss"] for line in log.read_text().splitlines() if '"loss"' in line and "eval" not in line]
            return {
                "eval": result["eval"],
                # Means over at most 40 parts of the training.
                "losses": [float(np.mean(part)) for part in np.array_split(losses, min(40, len(losses)))],
            }

        return self.remembered(key, work)

    def score(self, outcome):
        """The held-out score of an outcome in the task's metric."""
        if "diverged" in outcome:
            return float("nan")
        value = outcome["eval"][self.task.metric]
        return 100 * value if self.task.metric == "accuracy" else value

    def measure(self, row, rate):
        """Saved bytes by `inspect`, and bytes by region of training alone, predicted and measured."""
        task, graph, parameters = self.task, self.graph_of[row.name], self.parameters_of[row.graph, 0]
        options = ["--batch", task.batch, *task.settings, *row.optimizer, "--lr", f"{rate:g}", "--steps", 3]
        key = {"measure": [self.digest(graph)], "options": list(map(str, options)), "dims": task.dims}

        def work():
            report = json.loads(self.tool(["inspect", graph, *self.dims(), "--json", "-"]))
            outcome = json.loads(self.tool([
                "run", graph, "--params", parameters, "--data", task.train, *options, "--threads", self.opt.threads,
                "--json", "-",
            ]))  # fmt: skip
            memory = outcome["memory"]
            wrong = [name for name in REGIONS if memory[name]["predicted"] != memory[name]["measured"]]
            if wrong:
                raise Failed(f"{row.name}: predicted and measured bytes of {', '.join(wrong)} differ: {memory}")
            return {
                "saved": report["totals"]["saved_bytes_before"],
                "memory": {name: memory[name]["measured"] for name in REGIONS},
            }

        return self.remembered(key, work)

    def timed_steps(self, row):
        """Some steps; of an optimiser that does something in every T-th step, T of them."""
        options = row.optimizer
        if "--update-period" in options and not self.opt.quick:
            return int(options[options.index("--update-period") + 1])
        return self.opt.timed_steps

    def times(self, rates):
        """By row, for each round, seconds per step of the row and of the first row beside it.

        Rows take turns, forwards and backwards, and the first row runs right before or after each of them: a machine that is
        slow for some seconds is slow for both. The first row runs beside itself as well, which shows what is left of that.
        """
        names, rounds = list(self.rows), self.opt.rounds
        task = self.task
        commands = {}
        for name in names:
            row = self.rows[name]
            commands[name] = [
                "run", self.graph_of[name], "--params", self.parameters_of[row.graph, 0], "--data", task.train,
                "--batch", task.batch, *task.settings, *row.optimizer, "--lr", f"{rates[name]:g}",
                "--steps", self.timed_steps(row), "--json", "-",
            ]  # fmt: skip
        key = {
            "times": {name: [self.digest(command[1]), *map(str, command[6:])] for name, command in commands.items()},
            "rounds": rounds, "beside": names[0],
        }

        def seconds(name):
            return json.loads(self.tool(commands[name]))["seconds_per_step"]

        def work():
            found = {name: [] for name in names}
            for turn in range(rounds):
                forwards = turn % 2 == 0
                for name in names if forwards else names[::-1]:
                    if forwards:
                        own, first = seconds(name), seconds(names[0])
                    else:
                        first, own = seconds(names[0]), seconds(name)
                    found[name].append([own, first])
            return found

        return self.remembered(key, work)

    def execute(self):
        """Everything of a table, by row."""
        rows = self.rows.values()
        self.graph_of = {row.name: self.graph(row) for row in rows}
        seeds = [*self.seeds] + ([TUNING_SEED] if not self.opt.quick else [])
        self.parameters_of = {
            (graph, seed): self.parameters(row, seed) for graph, row in {row.graph: row for row in rows}.items() for seed in seeds
        }
        with concurrent.futures.ThreadPoolExecutor(self.opt.jobs) as pool:
            rates = self.choose_rates(pool)
            runs = {
                (row.name, seed): pool.submit(self.progress, row, rates[row.name], seed)
                for row in rows
                for seed in self.seeds
                if not row.same_as
            }
            runs = {key: run.result() for key, run in runs.items()}
        for row in rows:
            if row.same_as:
                self.check_same(row, rates[row.name])
                runs |= {(row.name, seed): runs[row.same_as, seed] for seed in self.seeds}
        measured = {row.name: self.measure(row, rates[row.name]) for row in rows}
        times = self.times(rates)
        return {
            "task": self.task.name,
            "metric": self.task.metric,
            "steps": self.task.steps,
            "batch": self.task.batch,
            "seeds": len(self.seeds),
            "rows": [
                {
                    "name": row.name,
                    "twin": row.twin,
                    "frozen_like": row.frozen_like,
                    "frozen_row": row.frozen_row,
                    "frees": row.frees,
                    "compressed": row.rewrite is not None and "--exact" not in row.rewrite,
                    "paper": row.paper,
                    "rate": rates[row.name],
                    "scores": [self.score(runs[row.name, seed]) for seed in self.seeds],
                    "losses": [runs[row.name, seed].get("eval", {}).get("loss", float("nan")) for seed in self.seeds],
                    "curves": [runs[row.name, seed].get("losses", []) for seed in self.seeds],
                    "saved": measured[row.name]["saved"],
                    "memory": measured[row.name]["memory"],
                    "seconds": times[row.name],
                }
                for row in rows
            ],
        }

    def check_same(self, row, rate):
        """Compares some steps of a row with those of the row whose numbers it has."""
        few = Suite(self.opt, self.table, dataclasses.replace(self.task, steps=10), self.rows.values())
        few.graph_of, few.parameters_of = self.graph_of, self.parameters_of
        ours, theirs = (few.train(of, rate, 0) for of in (row, self.rows[row.same_as]))
        if ours["losses"] != theirs["losses"] or ours["eval"] != theirs["eval"]:
            raise Failed(f"{row.name}: other numbers than {row.same_as}: {ours['losses']}, {theirs['losses']}")

    def progress(self, row, rate, seed):
        outcome = self.train(row, rate, seed)
        print(f"{self.table}, {self.task.name}: {row.name}, seed {seed}, rate {rate:g}: {self.score(outcome):.3f}", flush=True)
        return outcome

    def choose_rates(self, pool):
        """Of the learning rates, the one with the least held-out loss of a seed that is not shown.

        Where that is the first or the last of those tried, the next one is tried as well, a factor of about three on.
        """
        chosen = {}
        for row in self.rows.values():
            if not isinstance(row.rates, str):
                chosen[row.name] = row.rates[-1] if self.opt.quick or len(row.rates) == 1 else None
        open_rows = {name: sorted(self.rows[name].rates) for name, rate in chosen.items() if rate is None}
        losses = {name: {} for name in open_rows}
        while open_rows:
            runs = {
                (name, rate): pool.submit(self.progress, self.rows[name], rate, TUNING_SEED)
                for name, rates in open_rows.items()
                for rate in rates
            }
            for (name, rate), run in runs.items():
                loss = run.result().get("eval", {}).get("loss", float("inf"))
                losses[name][rate] = loss if np.isfinite(loss) else float("inf")
            for name in list(open_rows):
                tried = sorted(losses[name])
                best = min(tried, key=losses[name].get)
                beyond = {tried[0]: step(best, -1), tried[-1]: step(best, 1)}.get(best)
                if beyond is None or len(tried) >= MOST_RATES:
                    chosen[name] = best
                    del open_rows[name]
                else:
                    open_rows[name] = [beyond]
        for row in self.rows.values():
            if isinstance(row.rates, str):
                chosen[row.name] = chosen[row.rates]
        return chosen


def step(rate, by):
    """The neighbour of a rate among 1, 3, 10, 30 ... times a power of ten."""
    halves = round(2 * np.log10(rate)) + by
    return float(f"{(1 if halves % 2 == 0 else 3) * 10.0 ** (halves // 2):g}")


def pretrained(opt, task, graph, rate, *, without=()):
    """A file with the parameters that training `graph` on `task` ends with, but for those that start with a name of `without`."""
    row = Row("pretrained", graph, (rate,))
    suite = Suite(opt, "pretraining", task, [row])
    task = suite.task
    file = unpack(opt.work, graph)
    first = suite.parameters(row, 0)
    options = [
        "--batch", task.batch, "--steps", task.steps, "--warmup", max(1, task.steps // 10), *task.settings,
        "--lr", f"{rate:g}", "--seed", 0,
    ]  # fmt: skip
    files = [suite.digest(path) for path in (file, first, task.train, task.test)]
    key = {"pretrained": files, "options": list(map(str, options)), "without": list(without)}
    target = opt.work / "parameters" / f"{slug(task.name)}.{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]}.safetensors"

    def work():
        target.unlink(missing_ok=True)
        whole = target.with_suffix(".whole")
        report = json.loads(suite.tool([
            "run", file, "--params", first, "--data", task.train, "--eval", task.test, *options, "--save", whole, "--json", "-",
        ]))  # fmt: skip
        tensors = {name: tensor for name, tensor in load_file(whole).items() if not name.startswith(tuple(without))}
        quantise.save(target, tensors, {})
        whole.unlink()
        print(f"{task.name}: pretrained, {report['eval']}", flush=True)
        return report["eval"]

    if not target.exists():
        work()
    return target


# ---- graphs and parameters
def manifest():
    """What graphs.zip says of its graphs."""
    with zipfile.ZipFile(HERE / "graphs.zip") as archive:
        found = json.loads(archive.read("manifest.json"))
    return found.get("graphs", found)


def unpack(work, name):
    """The file of a graph of graphs.zip."""
    target = work / "graphs" / f"{name}.onnx"
    with zipfile.ZipFile(HERE / "graphs.zip") as archive:
        content = archive.read(f"{name}.onnx")
    if not target.exists() or target.read_bytes() != content:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return target


def freeze(source, parameters, target):
    """Writes a graph without the gradients of some parameters, and without what only they needed.

    That is what an exporter writes where the parameters ask for no gradient.
    """
    model = onnx.load(source)
    graph = model.graph
    gone = [output for output in graph.output if output.name.removeprefix("grad.") in parameters]
    if len(gone) != len(parameters):
        raise Failed(f"{source}: {len(parameters)} gradients were to be left out, and {len(gone)} are there")
    for output in gone:
        graph.output.remove(output)
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output if name):
            kept.append(node)
            needed.update(name for name in node.input if name)
    kept.reverse()
    del graph.node[:]
    graph.node.extend(kept)
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    infos = [info for info in graph.value_info if info.name in needed]
    del graph.value_info[:]
    graph.value_info.extend(infos)
    target.write_bytes(model.SerializeToString(deterministic=True))


def first(path, samples, folder):
    """A file with the first samples of a data set."""
    target = folder / f"{path.stem}.{samples}.npz"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        arrays = np.load(path)
        np.savez(target, **{name: arrays[name][:samples] for name in arrays.files})
    return target


def draw(entry, seed):
    """A parameter's first value: what the manifest says, from a stream of the seed and the name."""
    shape, init = entry["shape"], entry["init"]
    random = np.random.default_rng([seed, zlib.crc32(entry["name"].encode())])
    kind = init["kind"]
    if kind == "normal":
        values = random.standard_normal(shape) * init["std"]
    elif kind == "uniform":
        values = random.uniform(-init["bound"], init["bound"], shape)
    elif kind in ("zeros", "ones"):
        values = np.full(shape, float(kind == "ones"))
    else:
        raise Failed(f"{entry['name']}: unknown initialisation {kind}")
    return values.astype(np.float32)


def slug(text):
    return "".join(c if c.isalnum() else "_" for c in text)


def files(opt, name):
    """The files of a data set, made where they are not there yet, by their names without an ending."""
    return {path.stem: path for path in data.make(name, opt.data)}


# ---- the command line of every table
def arguments(description, rounds):
    cli = argparse.ArgumentParser(description=description.split("\n")[0])
    cli.add_argument("--quick", action="store_true", help="few steps of small batches and one seed: checks that all of it works, in a minute")
    cli.add_argument("--seeds", type=int, help="seeds of each row (default: 5; quick: 1)")
    cli.add_argument("--rounds", type=int, help=f"turns of the measurement of time (default: {rounds}; quick: 1)")
    cli.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at the same time (default: one per core)")
    cli.add_argument("--tool", type=pathlib.Path, default=ROOT / "target/release/velora-opt")
    cli.add_argument("--work", type=pathlib.Path, help="everything but the results (default: target/paper; quick: target/paper-quick)")
    cli.add_argument("--out", type=pathlib.Path, help="results (default: docs/results; quick: in the work folder)")
    cli.add_argument("--verbose", action="store_true", help="print every command")
    opt = cli.parse_args()
    opt.seeds = opt.seeds or (1 if opt.quick else 5)
    opt.rounds = opt.rounds or (1 if opt.quick else rounds)
    opt.timed_steps = 4 if opt.quick else 10
    opt.threads = 1 if opt.jobs > 1 else 0
    opt.work = (opt.work or ROOT / ("target/paper-quick" if opt.quick else "target/paper")).resolve()
    opt.out = (opt.out or (opt.work / "results" if opt.quick else ROOT / "docs/results")).resolve()
    opt.data = ROOT / "target/paper/data"
    opt.work.mkdir(parents=True, exist_ok=True)
    return opt


def main(description, build, rounds=5):
    """A table's script: `build` makes the suites of the command line's options, and writes what they found."""
    opt = arguments(description, rounds)
    try:
        build(opt)
    except Failed as failed:
        sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {failed}")
