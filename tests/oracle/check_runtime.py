#!/usr/bin/env python3
"""Check the runtime against ONNX Runtime: the loss and all gradients of every graph in models/.

    python check_runtime.py [BINARY] [--velora ../../target/release/velora-opt] [--graphs REGEX] [--jobs 2]
                            [--tract BINARY]

BINARY is velora-runtime's example `gradients`. Every graph, and what `velora-opt` makes of it in function
form and inline, runs on the same inputs in both engines, at two sizes. Of a graph with its optimiser
inside, the updated parameters are compared in place of gradients.

ONNX Runtime runs with its graph optimisations off and on one thread (with more, gradients of embeddings
depend on a race). The tolerance of a tensor is how far it moves when every operator's result is moved by
as much as a sum of its length may be rounded (`check_rewrite.rounding_noise`). Engines draw different
dropout masks, so every ratio is set to 0 first. With --tract, the loss of every graph of standard
operators is compared with that of tract-onnx as well (`tests/tract`), an engine that shares no code with
ONNX Runtime. As in `run_all.py`, the Python that runs this decides
which graphs.
"""

import argparse
import concurrent.futures
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx

import check_rewrite
import run_all

SIZES = [(6, 16), (3, 5)]  # batch, sequence; where the file fixes them, the file's
FORMS = [[], ["--inline"]]
BUFFER = "_grad.accumulation.buffer"


def without_dropout(model):
    """Sets the ratio of every dropout to 0, in place."""
    ratios = {n.input[place] for n in model.graph.node if n.op_type in ("Dropout", "DropoutGrad")
              for place in [1 if n.op_type == "Dropout" else 2]}
    made = {o for n in model.graph.node for o in n.output}
    if made & ratios:
        raise check_rewrite.Mismatch(f"a dropout ratio is computed: {sorted(made & ratios)}")
    for tensor in model.graph.initializer:
        if tensor.name in ratios:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(list(tensor.dims), np.float32), tensor.name))


def wanted(model):
    """What is compared: names of the example's results, and of the values that they stand for."""
    names = {"loss": model.graph.output[0].name}
    for output in model.graph.output:
        if output.name.startswith(("grad.", "updated.")):
            names[output.name] = output.name
    for node in check_rewrite.accumulators(model):
        names["grad." + node.input[0].removesuffix(BUFFER)] = node.input[1]
    return names


def compare(found, expected, noise, names):
    """Failures, and the largest error ÷ tolerance."""
    failures, worst = [], 0.0
    if set(found) != set(names):
        failures.append(f"results {sorted(set(found) ^ set(names))} are on one side only")
    for name in sorted(set(found) & set(names)):
        ours, theirs = found[name], expected[names[name]]
        if ours.size != theirs.size:
            failures.append(f"{name}: {ours.shape}, expected {theirs.shape}")
            continue
        error = np.abs(ours.reshape(-1).astype(np.float64) - theirs.reshape(-1))
        here = check_rewrite.ratio(np.max(error, initial=0.0), np.float64(noise[names[name]]))
        worst = max(worst, here)
        if not here <= 1:
            failures.append(f"{name}: error {np.max(error):.3g} is {here:.3g} of the tolerance "
                            f"(largest element {np.max(np.abs(theirs)):.3g})")
    return failures, worst


def run_ours(binary, path, feed, folder):
    """What the example computes; raises with its message where it fails."""
    model = onnx.load(path)
    inputs, outputs = os.path.join(folder, "in.npz"), os.path.join(folder, "out.npz")
    # ONNX Runtime keeps the file's values of parameters that have some.
    given = {t.name for t in model.graph.initializer}
    np.savez(inputs, **{name: array for name, array in feed.items() if name not in given})
    command = [binary, path, "--data", inputs, "--out", outputs]
    sizes = {d.dim_param: extent for value in model.graph.input
             for d, extent in zip(value.type.tensor_type.shape.dim, feed[value.name].shape) if d.dim_param}
    for name, extent in sizes.items():
        command += ["--dim", f"{name}={extent}"]
    environment = {**os.environ, "RUST_BACKTRACE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise check_rewrite.Mismatch(f"exit status {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    with np.load(outputs) as results:
        return dict(results)


def forward(model, feed):
    """What the loss depends on, with all inputs constants; None where that is not standard operators.

    tract ignores domains and functions, and would take another operator of the name for it."""
    loss = model.graph.output[0]
    needed, nodes = {loss.name}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            nodes.insert(0, node)
            needed |= set(node.input)
    if model.functions or any(n.domain not in ("", "ai.onnx") for n in nodes):
        return None
    constants = [t for t in model.graph.initializer if t.name in needed]
    given = {t.name for t in constants}
    constants += [onnx.numpy_helper.from_array(feed[i.name], i.name) for i in model.graph.input
                  if i.name in needed and i.name not in given]
    graph = onnx.helper.make_graph(nodes, "forward", [], [loss], constants)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def check_tract(tract, original, loss, folder):
    """Failures, and error ÷ tolerance; nothing where tract cannot have the graph."""
    model = forward(original.model, original.feed)
    if model is None:
        return [], None
    path = os.path.join(folder, "forward.onnx")
    onnx.save(model, path)
    done = subprocess.run([tract, path], capture_output=True, text=True, check=False)
    if done.returncode:
        return [f"tract: exit status {done.returncode}: {done.stderr.strip().splitlines()[0]}"], None
    error = abs(float(done.stdout) - float(loss.reshape(())))
    ratio = check_rewrite.ratio(np.float64(error), np.float64(original.noise[original.model.graph.output[0].name]))
    return ([] if ratio <= 1 else [f"tract's loss is {float(done.stdout)}, ours {float(loss.reshape(()))}"]), ratio


def check_graph(binary, velora, tract, path):
    """Lines to print, failures and tensors compared of one graph in all forms."""
    failures, compared, start = [], 0, time.monotonic()
    ratios, by_tract = [], []
    with tempfile.TemporaryDirectory() as folder:
        plain = os.path.join(folder, "original.onnx")
        model = onnx.load(path)
        without_dropout(model)
        onnx.save(model, plain)
        files = [("original", plain)]
        for form in FORMS:
            file = os.path.join(folder, f"rewritten{len(files)}.onnx")
            command = [velora, plain, "-o", file, "--quiet", "--groups", str(run_all.GROUPS), *form]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            what = " ".join(["rewritten", *form])
            if done.returncode:
                failures.append(f"{what}: velora-opt: {done.stderr.strip()}")
            else:
                files.append((what, file))
        fixed = not any(d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim)
        for batch, seq in SIZES[:1] if fixed else SIZES:
            worst = []
            original = check_rewrite.Original(plain, batch, seq)
            names = wanted(original.model)
            for what, file in files:
                at = f"{what}, batch {batch}, seq {seq}"
                try:
                    runs = check_rewrite.seeded(file)
                    values, noise = original.values, original.noise
                    if what != "original":
                        values = check_rewrite.run_all_values(runs, original.feed)
                        noise = check_rewrite.rounding_noise(runs, original.feed, values, original.noise)
                    found = run_ours(binary, file, original.feed, folder)
                    wrong, ratio = compare(found, values, noise, names)
                    failures += [f"{at}: {w}" for w in wrong]
                    compared += len(found)
                    worst.append(ratio)
                    if tract and what == "original":
                        wrong, ratio = check_tract(tract, original, found["loss"], folder)
                        failures += [f"{at}: {w}" for w in wrong]
                        if ratio is not None:
                            by_tract.append(f"{ratio:.2g}")
                except Exception as error:  # ONNX Runtime's exceptions share no narrower base
                    failures.append(f"{at}: {type(error).__name__}: {error}")
            ratios.append("/".join(f"{w:.2g}" for w in worst))
    name = f"{path.parent.name}/{path.stem}"
    lines = [f"{name}: {compared} tensors, {len(failures)} failures; error / tolerance "
             f"{' and '.join(ratios)}{'; tract ' if by_tract else ''}{' and '.join(by_tract)}; {time.monotonic() - start:.0f} s"]
    lines += [f"  FAILED {name} {f}" for f in failures[:run_all.SHOWN]]
    if len(failures) > run_all.SHOWN:
        lines.append(f"  FAILED {name}: and {len(failures) - run_all.SHOWN} more")
    return lines, len(failures), compared


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    release = run_all.ROOT / "target/release"
    cli.add_argument("binary", nargs="?", default=str(release / "examples/gradients"))
    cli.add_argument("--velora", default=str(release / "velora-opt"))
    cli.add_argument("--tract", help="the binary of tests/tract")
    cli.add_argument("--graphs", default="", help="only graphs whose folder/name this matches")
    cli.add_argument("--jobs", type=int, default=2)
    opt = cli.parse_args()
    graphs = run_all.graphs(opt.graphs)
    failures = compared = 0
    with concurrent.futures.ProcessPoolExecutor(opt.jobs, max_tasks_per_child=1) as pool:
        for job in [pool.submit(check_graph, opt.binary, opt.velora, opt.tract, p) for p in graphs]:
            lines, failed, tensors = job.result()
            print("\n".join(lines), flush=True)
            failures, compared = failures + failed, compared + tensors
    print(f"{len(graphs)} graphs, {compared} tensors compared, {failures} failures")
    return 1 if failures or compared == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
