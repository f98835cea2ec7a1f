#!/usr/bin/env python3
"""Check that onnxslim and onnxsim leave what velora-opt writes correct, and count what they take out of it.

    python check_slimmers.py [--velora ../../target/release/velora-opt] [--graphs REGEX] [--training PYTHON] [--plant]

Each graph of models/ and some forms of it (`forms.py`) go through both tools, with default options and with those
that a training graph needs (`TOOLS`). A slimmed file must have the same inputs and outputs, and in ONNX Runtime
(optimisations off, one thread) the same loss and the same of every gradient: bit for bit, or, where a tool fused
operators, up to rounding (`check_rewrite.rounding_noise`, an estimate that comes from the graph itself and not from
this comparison). Inputs with default values may become constants where a tool's options are not against it; they then
have these values on both sides, and all other inputs random ones. What a tool does to the original, too, is its own affair: it is printed and fails nothing. What it does
to our files only, fails.

Last, the other order: velora-opt on the slimmed original must rewrite weight gradients where it does on the original (how
many is printed where it is not as many), and `velora-opt verify` must prove the result.

Graphs of models/ort run in ONNX Runtime's training build only: with `--training`, in that interpreter; without, they
are slimmed, and compared by structure alone.

The table says what became of calls, functions, pins and metadata. That pins survive is no pass mark: they do not
(docs/tools.md). `--plant` breaks slimmed files in some ways, each of which must be found.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import io
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import warnings

import forms

sys.path.insert(0, str(forms.ROOT / "tests/oracle"))
import numpy as np  # noqa: E402
import onnx  # noqa: E402

import check_rewrite  # noqa: E402

CHECKED = ["functions", "inline", "factored", "adapter"]
# As users call them, and with what keeps axes open (onnxslim's inference of shapes gives some a number) and parameters
# with default values inputs (both take them for constants, which cannot be trained; onnxslim has no option against it).
TOOLS = {
    "onnxslim": {},
    "onnxslim, no shapes": {"no_shape_infer": True},
    "onnxsim": {},
    "onnxsim, mutable": {"mutable_initializer": True, "initializers_as_constants": False},
}
# Copies of smaller graphs, for measurements: in function form only.
LARGE = {"llama_768x4", "llama_256x4", "deep_mlp"}


# --- the tools ---------------------------------------------------------------------------------


def slim(tool, source, target):
    """Run one tool; what it said where it failed, otherwise None."""
    target.unlink(missing_ok=True)
    options, quiet = TOOLS[tool], io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if tool.startswith("onnxslim"):
                import onnxslim

                onnxslim.slim(str(source), str(target), **options)
            else:
                import onnxsim

                slimmed, _ = onnxsim.simplify(onnx.load(source), **options)
                onnx.save(slimmed, target)
    except Exception as error:  # the tools share no narrower base
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None if target.exists() else "no file was written"


@dataclasses.dataclass
class Counts:
    """What a file has of what velora-opt puts into it."""

    nodes: int
    calls: int
    functions: int
    pins: int
    marked: int

    @classmethod
    def of(cls, model):
        nodes = model.graph.node
        producers = {o: n for n in nodes for o in n.output}
        return cls(
            nodes=len(nodes),
            calls=sum(n.domain == "ai.velora" for n in nodes),
            functions=len(model.functions),
            pins=sum(is_pin(n, producers) for n in nodes),
            marked=sum(any(p.key.startswith("velora.") for p in n.metadata_props) for n in nodes),
        )


def is_pin(node, producers):
    """Whether a Reshape waits for more than its data. Names tell; metadata does not outlive the tools."""
    if node.op_type != "Reshape" or not re.search(r"^velora\.pin\..*\.gated", node.output[0]):
        return False
    shape = producers.get(node.input[1])
    return shape is not None and shape.op_type == "Concat"


# --- comparison --------------------------------------------------------------------------------


def frozen(before, after):
    """Inputs with default values that are inputs no longer."""
    defaults = {t.name for t in before.graph.initializer}
    return frozenset({i.name for i in before.graph.input} & defaults - {i.name for i in after.graph.input})


def structure(before, after, tool):
    """Where the two differ in what a caller sees."""
    gone = frozen(before, after)
    if gone and TOOLS[tool].get("mutable_initializer"):
        yield f"{len(gone)} inputs with default values became constants: {', '.join(sorted(gone)[:3])}"
    old, new = ([i.name for i in m.graph.input if i.name not in gone] for m in (before, after))
    if old != new:
        yield f"inputs are {new}, expected {old}"
    old, new = ([o.name for o in m.graph.output] for m in (before, after))
    if old != new:
        yield f"outputs are {new}, expected {old}"
    shapes = {i.name: i.type.tensor_type.shape for i in before.graph.input}
    for value in after.graph.input:
        if value.name in shapes and value.type.tensor_type.shape != shapes[value.name]:
            yield f"input {value.name} has another shape"
    called = {(n.domain, n.op_type) for n in after.graph.node if n.domain == "ai.velora"}
    missing = called - {(f.domain, f.name) for f in after.functions}
    if missing:
        yield f"functions are gone that are called: {sorted(missing)}"


def values(model, feed, names, without=frozenset()):
    """What the model computes of inputs, of which some keep their default values."""
    runner = check_rewrite.session(model, optimised=False)
    taken = {i.name for i in [*runner.get_inputs(), *runner.get_overridable_initializers()]}
    return dict(zip(names, runner.run(names, {n: a.copy() for n, a in feed.items() if n in taken - without})))


def entering(model):
    """What leaves through an accumulator is a flag; the gradient is what enters it, by the name that leaves.

    Makes it an output, too."""
    buffers = {n.output[0]: n.input[1] for n in check_rewrite.accumulators(model)}
    names = {o.name for o in model.graph.output}
    for name in dict.fromkeys(buffers.values()):
        if name not in names:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    return buffers


class Before:
    """A file before it was slimmed, inputs for it, and what it computes."""

    def __init__(self, path):
        self.model = check_rewrite.seeded(path)
        self.plain = check_rewrite.seeded(path)
        self.names = [o.name for o in self.model.graph.output]
        self.buffers = entering(self.model)
        self.wanted = [self.buffers.get(n, n) for n in self.names]
        error = None
        for other in (6, 6 * 16):  # as check_rewrite.Original.first_run
            sizes = {d.dim_param: other for i in self.model.graph.input for d in i.type.tensor_type.shape.dim}
            self.feed = check_rewrite.random_feed(self.model, {**sizes, "batch": 6, "seq": 16})
            try:
                values(self.model, self.feed, self.wanted)
                break
            except Exception as problem:  # ONNX Runtime's exceptions share no narrower base
                error = problem
        else:
            raise error
        self.known = {}

    def values(self, without):
        """What it computes where some inputs keep their default values."""
        if ("values", without) not in self.known:
            self.known["values", without] = values(self.model, self.feed, self.wanted, without)
        return self.known["values", without]

    def noise(self, without):
        """How far rounding moves each value there."""
        if ("noise", without) not in self.known:
            # Without defaults, all inputs are fed.
            model = onnx.ModelProto.FromString(self.plain.SerializeToString())
            inputs = {i.name for i in model.graph.input}
            defaults = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in inputs}
            kept = [t for t in model.graph.initializer if t.name not in inputs]
            del model.graph.initializer[:]
            model.graph.initializer.extend(kept)
            feed = self.feed | {n: a for n, a in defaults.items() if n in without}
            clean = check_rewrite.run_all_values(model, feed)
            self.known["noise", without] = check_rewrite.rounding_noise(model, feed, clean, self.wanted)
        return self.known["noise", without]

    def compare(self, after_path, tool):
        """Numbers of values that are the same bits, and the same up to rounding; sentences on the rest."""
        after = check_rewrite.seeded(after_path)
        result = {"identical": 0, "rounded": 0, "worst": 0.0, "wrong": list(structure(self.plain, after, tool))}
        without = frozen(self.plain, after)
        buffers = entering(after)
        pairs = [(self.buffers.get(n, n), buffers.get(n, n)) for n in self.names]
        try:
            new = values(after, self.feed, [b for _, b in pairs])
        except Exception as error:  # as above
            result["wrong"].append(f"it does not run: {' '.join(str(error).split())}")
            return result
        for a, b in pairs:
            old, found = self.values(without)[a], new[b]
            if old.shape == found.shape and old.tobytes() == found.tobytes():
                result["identical"] += 1
            elif old.shape != found.shape or not np.issubdtype(old.dtype, np.floating):
                result["wrong"].append(f"{a}: another value")
            else:
                error = np.max(np.abs(old.astype(np.float64) - found), initial=0.0)
                ratio = check_rewrite.ratio(error, np.float64(self.noise(without)[a]))
                result["worst"] = max(result["worst"], ratio)
                result["rounded"] += ratio <= 1
                if not ratio <= 1:
                    result["wrong"].append(f"{a}: off by {error:.3g}, {ratio:.3g} of what rounding does")
        return result


def compare_files(python, pairs):
    """`Before.compare` of files before, files after and tools, in another interpreter, so that a crash ends that."""
    arguments = [str(path) for pair in pairs for path in pair]
    done = subprocess.run([python, __file__, "--compare", *arguments], capture_output=True, text=True, check=False)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    lines = done.stderr.strip().splitlines()
    wrong = lines[-1] if lines else f"exit status {done.returncode}"
    missing = {"identical": 0, "rounded": 0, "worst": 0.0, "wrong": [f"the comparison stopped: {wrong}"]}
    return results + [missing] * (len(pairs) - len(results))


def compare_here(words):
    before = {}
    for first, second, tool in zip(words[::3], words[1::3], words[2::3]):
        if first not in before:
            before = {first: Before(first)}
        print(json.dumps(before[first].compare(second, tool)), flush=True)


# --- one graph -----------------------------------------------------------------------------------


def rewritten_sites(tool, source, target):
    """How many gradients velora-opt rewrites, or what it said."""
    command = [tool, str(source), "-o", str(target), "--json", "-", "--groups", str(forms.GROUPS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip()
    return json.loads(done.stdout)["totals"]["sites_rewritten"]


def check_graph(velora, graph, training):
    """Lines to print, sentences on failures, and counts by tool and form."""
    name = f"{graph.parent.name}/{graph.stem}"
    python = sys.executable if graph.parent.name == "aot" else training
    lines, failures, counts = [], [], collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        forms_of = ["functions"] if graph.stem in LARGE else CHECKED
        files = [forms.Written(graph, "original", graph)]
        files += [w for form in forms_of if (w := forms.write(velora, graph, form, folder))]
        jobs = []
        for written in files:
            for tool in TOOLS:
                target = folder / f"{written.form}.{len(jobs)}.onnx".replace(" ", "_")
                jobs.append((written, tool, target, slim(tool, written.path, target)))
        made = [(w.path, target, tool) for w, tool, target, said in jobs if said is None]
        if python:
            results = compare_files(python, made)
        else:
            results = [{"identical": 0, "rounded": 0, "worst": 0.0,
                        "wrong": list(structure(onnx.load(a), onnx.load(b), tool))} for a, b, tool in made]
        results = iter(results)
        original_wrong = {}
        for written, tool, target, said in jobs:
            result = next(results) if said is None else {"identical": 0, "rounded": 0, "worst": 0.0,
                                                         "wrong": [f"refused: {said}"]}
            row = counts[tool, written.form]
            row["files"] += 1
            row["right"] += not result["wrong"]
            row["identical"] += result["identical"]
            row["rounded"] += result["rounded"]
            if said is None:
                before, after = (Counts.of(onnx.load(p)) for p in (written.path, target))
                for field in dataclasses.fields(Counts):
                    row[field.name] += getattr(before, field.name)
                    row[f"{field.name} left"] += getattr(after, field.name)
            if written.form == "original":
                original_wrong[tool] = result["wrong"]
            if result["worst"] > 0:
                lines.append(f"  {written.name}, {tool}: {result['rounded']} values rounded otherwise, "
                             f"error / noise {result['worst']:.2g}")
            for sentence in result["wrong"][:3]:
                text = f"{written.name}, {tool}: {sentence[:300]}"
                if written.form == "original" or original_wrong[tool]:
                    lines.append(f"  {text}" + ("" if written.form == "original" else " (the original, too, is broken)"))
                else:
                    failures.append(text)
            # Nothing is trained in a graph whose parameters became constants.
            trained = said is None and not frozen(onnx.load(graph), onnx.load(target))
            if written.form == "original" and not result["wrong"] and trained:
                wanted = rewritten_sites(velora, graph, folder / "a.onnx")
                got = rewritten_sites(velora, target, folder / "b.onnx")
                proof = subprocess.run([velora, "verify", str(target), str(folder / "b.onnx"), "--quiet"],
                                       capture_output=True, text=True, check=False)
                row["slimmed first"] += 1
                if got != wanted:
                    lines.append(f"  {name}, {tool} first: {got} gradients rewritten, instead of {wanted}")
                if not isinstance(got, int) or bool(got) != bool(wanted) or proof.returncode:
                    failures.append(f"{name}, {tool} first: {got}; verify: {proof.stderr.strip() or 'holds'}")
    return lines, failures, dict(counts)


# --- planted faults ------------------------------------------------------------------------------


def planted(model):
    """Names of faults, and models that have them."""
    def copy():
        return onnx.ModelProto.FromString(model.SerializeToString())

    broken = copy()
    calls = [n for n in broken.graph.node if n.op_type == "FactoredWeightGrad"]
    calls[0].input[2], calls[1].input[2] = calls[1].input[2], calls[0].input[2]
    yield "a gradient from another layer's direction", broken
    broken = copy()
    for tensor in broken.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.shape == () and 0.1 < abs(value) < 0.5:
            tensor.CopyFrom(onnx.numpy_helper.from_array(value * np.float32(1.001), tensor.name))
    yield "a constant of GELU's derivative is 1e-3 off", broken
    broken = copy()
    broken.graph.output.append(broken.graph.output.pop(1))
    yield "outputs in another order", broken
    broken = copy()
    broken.graph.input[-1].type.tensor_type.shape.dim[0].dim_value = 10
    yield "an open axis has a number", broken
    broken = copy()
    del broken.functions[0]
    yield "a function is gone", broken


def check_planted(velora, folder):
    written = forms.write(velora, forms.ROOT / "models/aot/mlp.onnx", "functions", folder)
    failures, faults = 0, list(planted(onnx.load(written.path)))
    pairs = []
    for number, (_, broken) in enumerate(faults):
        path = folder / f"planted{number}.onnx"
        path.write_bytes(broken.SerializeToString())
        pairs.append((written.path, path, "onnxsim"))
    for (fault, _), result in zip(faults, compare_files(sys.executable, pairs)):
        found = result["wrong"]
        print(f"planted: {fault}: {'found: ' + found[0][:150] if found else 'NOT FOUND'}")
        failures += not found
    return failures


def table(total):
    yield ("| tool | form | files | right | nodes | calls | functions | pins | nodes with velora.* "
           "| values identical | rounded |")
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for tool in TOOLS:
        for form in ["original", *CHECKED]:
            c = total[tool, form]
            cells = [f"{c[k]} → {c[k + ' left']}" for k in ("nodes", "calls", "functions", "pins", "marked")]
            yield (f"| {tool} | {form} | {c['files']} | {c['right']} | {' | '.join(cells)} "
                   f"| {c['identical']} | {c['rounded']} |")


def main():
    if sys.argv[1:2] == ["--compare"]:
        compare_here(sys.argv[2:])
        return 0
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--velora", default=forms.default_tool())
    cli.add_argument("--graphs", default="", help="only graphs whose folder/name this matches")
    cli.add_argument("--training", metavar="PYTHON", help="an interpreter with onnxruntime-training")
    cli.add_argument("--jobs", type=int, default=2)
    cli.add_argument("--plant", action="store_true", help="only plant faults, and see that they are found")
    opt = cli.parse_args()
    if opt.plant:
        with tempfile.TemporaryDirectory() as scratch:
            return 1 if check_planted(opt.velora, pathlib.Path(scratch)) else 0
    chosen = [g for g in forms.graphs() if re.search(opt.graphs, f"{g.parent.name}/{g.stem}")]
    chosen.sort(key=lambda g: -g.stat().st_size)
    total, failures = collections.defaultdict(collections.Counter), 0
    with concurrent.futures.ProcessPoolExecutor(opt.jobs, max_tasks_per_child=1) as pool:
        for job in [pool.submit(check_graph, opt.velora, g, opt.training) for g in chosen]:
            lines, failed, counts = job.result()
            print("\n".join([*lines, *(f"  FAILED {f}" for f in failed)]), flush=True)
            failures += len(failed)
            for key, row in counts.items():
                total[key] += row
    print("\n" + "\n".join(table(total)))
    compared = sum(row["identical"] + row["rounded"] for row in total.values())
    first = sum(row["slimmed first"] for row in total.values())
    print(f"{len(chosen)} graphs, {compared} values compared, {first} slimmed originals rewritten, {failures} failures")
    return 1 if failures or not compared or not first else 0


if __name__ == "__main__":
    sys.exit(main())
