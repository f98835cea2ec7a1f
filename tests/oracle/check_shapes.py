#!/usr/bin/env python3
"""Check inferred types, shapes and contents against what ONNX Runtime computes.

    cargo build --release -p velora-graph --example print_shapes
    python check_shapes.py target/release/examples/print_shapes MODEL... [--sizes 6,16 3,8 1,1]

Every value of every graph is made an output and the graph is run at each (batch, seq). Compared for
each value: the element type, the inferred shape evaluated at these sizes, the shape inferred with
`--dim` for these sizes (which must be numbers), and each followed element of small tensors.

Exit status 1 where something differs, or where a type or rank was not inferred. Needs a runtime that
knows the graph's operators: stock onnxruntime for standard operators, onnxruntime-training for its
own dialect.
"""

import argparse
import collections
import json
import math
import re
import subprocess
import sys

import numpy as np
import onnx

from check_rewrite import random_feed, run_all_values

UNDEFINED = "⊤"
FUNCTIONS = {
    "Min": min, "Max": max, "Mod": lambda a, b: a % b,
    "FloorDiv": lambda a, b: a // b, "CeilDiv": lambda a, b: -(-a // b),
}


def inferred(binary, path, sizes=None):
    """What the tool infers: name to its JSON object."""
    flags = [f for n, s in (sizes or {}).items() for f in ("--dim", f"{n}={s}")]
    result = subprocess.run([binary, path, *flags], capture_output=True, text=True)
    if result.returncode or result.stderr:
        raise SystemExit(f"{path}: {result.stderr.strip()}")
    return {v["name"]: v for v in map(json.loads, result.stdout.splitlines())}


def evaluate(text, sizes):
    """A dimension's value. Symbols are looked up by name, quoted or not."""
    names = []

    def symbol(match):
        name = match.group(0)
        if name in FUNCTIONS:
            return name
        names.append(name.strip('"'))
        return f"S[{len(names) - 1}]"

    code = re.sub(r'"(?:[^"\\]|\\.)*"|[^\W\d]\w*', symbol, text)
    code = code.replace("·", "*").replace("^", "**")
    return eval(code, FUNCTIONS | {"S": [sizes[n] for n in names]})


def sizes_of(model, path, size, seq):
    """Sizes of the input symbols. ONNX Runtime's exporter names the label axis `rows`: tokens for
    language models, else samples."""
    symbols = {d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim}
    tokens = "seq" in symbols and "llama" in path
    known = {"batch": size, "seq": seq, "rows": size * (seq if tokens else 1)}
    # An input without a symbolic batch (fixed by its exporter) fixes the labels as well.
    if "batch" not in symbols:
        fixed = next((i.type.tensor_type.shape.dim[0].dim_value for i in model.graph.input if i.name == "x"), 0)
        known["rows"] = fixed or known["rows"]
    return {s: known[s] for s in symbols if s}


def check(binary, path, size, seq, counts):
    model = onnx.load(path)
    sizes = sizes_of(model, path, size, seq)
    feed = random_feed(model, sizes)
    actual = run_all_values(model, feed)
    actual |= feed
    actual |= {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name not in feed}
    symbolic, numeric = inferred(binary, path), inferred(binary, path, sizes)
    problems = []
    if set(symbolic) != set(actual):
        problems.append(f"values differ: {sorted(set(symbolic) ^ set(actual))[:5]}")
    for name in set(symbolic) & set(actual):
        array, found, fixed = actual[name], symbolic[name], numeric[name]
        counts["values"] += 1
        dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        if found["dtype"] != dtype:
            problems.append(f"{name}: element type {found['dtype']}, ran as {dtype}")
        for kind, dims in (("", found["dims"]), (" with --dim", fixed["dims"])):
            try:
                at = None if dims is None else [evaluate(d, {} if kind else sizes) for d in dims]
            except KeyError as error:
                problems.append(f"{name}: shape {dims}{kind} names {error}, ran as {list(array.shape)}")
                continue
            if at != list(array.shape):
                problems.append(f"{name}: shape {dims}{kind} = {at}, ran as {list(array.shape)}")
        for contents, at in ((found["contents"], sizes), (fixed["contents"], {})):
            if contents is None:
                continue
            flat = array.ravel().tolist()
            if len(contents) != len(flat):
                problems.append(f"{name}: {len(contents)} elements followed, ran with {len(flat)}")
                continue
            for index, (text, value) in enumerate(zip(contents, flat)):
                if text == UNDEFINED:
                    continue
                counts["elements"] += 1
                if not math.isclose(evaluate(text, at), value, rel_tol=0, abs_tol=0):
                    problems.append(f"{name}: element {index} is {text} = {evaluate(text, at)}, ran as {value}")
    return sizes, problems


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("binary")
    cli.add_argument("models", nargs="+")
    cli.add_argument("--sizes", nargs="+", default=["6,16", "3,8"], metavar="BATCH,SEQ")
    opt = cli.parse_args()
    failed, total = 0, collections.Counter()
    for path in opt.models:
        for pair in opt.sizes:
            size, seq = map(int, pair.split(","))
            counts = collections.Counter()
            sizes, problems = check(opt.binary, path, size, seq, counts)
            total += counts
            failed += len(problems)
            given = " ".join(f"{n}={s}" for n, s in sorted(sizes.items())) or "fixed"
            print(f"{path} ({given}): {counts['values']} values, {counts['elements']} elements, "
                  f"{len(problems)} problems", flush=True)
            for problem in problems[:20]:
                print(f"  FAILED {problem}")
            if not sizes:
                break
    print(f"{total['values']} values and {total['elements']} elements compared, {failed} problems")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
