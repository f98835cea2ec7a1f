#!/usr/bin/env python3
"""Check every kind of direction, number of directions and storage of z against its formula.

    python check_variants.py [--velora ../../target/release/velora-opt] [--graphs REGEX]

For graphs of models/aot, in stock ONNX Runtime with its optimisations off, each variant as functions and
inline:
  * every output that no rewritten contraction feeds has the bits of the original's;
  * the directions are what `--init` says, by NumPy in float64 from the original's X: means, moving averages over
    three steps from zeros, singular vectors; first-batch and svd once `calibrate` has filled them, and what
    `run` fills in its first step on the same batch is the same to the bit;
  * z, as the gradient reads it, is the products of sub-tokens and directions, up to the rounding of float32 and
    of how it is stored;
  * the gradient is the sum over directions of s v (x) z^T dY for that z;
  * with factored gradients, v (x) P is that gradient;
  * the inline form gives the bits of the functions.
The bounds are those of docs/numerics.md.
"""

import argparse
import itertools
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import onnx

from check_rewrite import (UNIT, attribute, chain, depends_on, direction_bound, gamma, random_feed, ratio, role,
                           rounding_noise, run_all_values, sub_tokens, unpinned)

ROOT = pathlib.Path(__file__).resolve().parents[2]
GRAPHS = ["mlp", "llama_tiny", "vit_tiny"]
BATCH = 6
STEPS = 3  # of moving averages
VARIANTS = [
    ["--init", "first-batch"],
    ["--init", "first-batch", "--directions", "group"],
    ["--init", "running-average", "--decay", "0.75"],
    ["--init", "running-average", "--directions", "group"],
    ["--init", "svd"],
    ["--init", "svd", "--rank", "2", "--storage", "f16"],
    ["--init", "svd", "--rank", "2", "--directions", "group", "--groups", "5"],
    ["--init", "random", "--rank", "3", "--scale", "0.5"],
    ["--init", "uniform"],
    ["--init", "none", "--rank", "2", "--groups", "5"],
    ["--directions", "group"],
    ["--storage", "f16"],
    ["--storage", "bf16"],
    ["--storage", "int8"],
    ["--storage", "int8", "--groups", "5", "--init", "random", "--rank", "2"],
    ["--gradients", "factored"],
    ["--gradients", "factored", "--init", "random", "--groups", "5", "--scale", "0.5"],
    ["--gradients", "factored", "--init", "svd", "--directions", "group", "--storage", "f16"],
]


class Site:
    """A rewritten gradient, from its `FactoredWeightGrad`."""

    def __init__(self, node, producers):
        self.gradient, self.groups, self.features = node.output[0], attribute(node, "groups"), attribute(node, "features")
        self.transposed, self.scale = attribute(node, "transposed"), attribute(node, "scale")
        self.z, self.dy, self.v = node.input
        here = self.z
        while role(producers[here]) != "Compress" or producers[here].op_type == "Cast":
            here = producers[here].input[0]
        self.x = producers[here].input[0]


class Factors:
    """A gradient that leaves as factors, from the product that makes its P."""

    def __init__(self, node, producers, model):
        marks = {p.key: p.value for p in node.metadata_props}
        self.gradient, self.groups = node.output[0], int(marks["velora.groups"])
        self.scale = next((a.f for a in node.attribute if a.name == "alpha"), 1.0)
        compressed = [self.compressed(name, producers) for name in node.input]
        self.transposed = compressed[0] is None
        self.x, self.z, self.dy = compressed[self.transposed], *node.input[::-1 if self.transposed else 1]
        named = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
        self.shape = named[marks["velora.parameter"]]
        # The way to the output may transpose: the weight's shape says which axis the features are.
        maker = next(n for n in model.graph.node
                     if {p.key: p.value for p in n.metadata_props}.get("velora.factored") == marks["velora.parameter"])
        axis = int(next(p.value for p in maker.metadata_props if p.key == "velora.axis"))
        self.features = self.shape[axis]
        self.v = next(n.output[0] for n in model.graph.node for p in n.metadata_props
                      if p.key == "velora.direction_of" and p.value == maker.output[0])

    @staticmethod
    def compressed(name, producers):
        while name in producers and role(producers[name]) is None or producers.get(name) and producers[name].op_type == "Cast":
            name = producers[name].input[0]
        made = producers.get(name)
        return made.input[0] if made is not None and role(made) == "Compress" else None

    def expanded(self, factor, v):
        p = factor.T if self.transposed else factor
        v = v.reshape(-1, v.shape[-1])
        wide = (p[:, None, :] * v[:, :, None]).reshape(-1, p.shape[1])[:self.features]
        return wide.T if self.transposed else wide


def tokens_of(x, groups):
    """The sub-tokens of each token, [N, G, M]."""
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    return sub_tokens(rows, groups).reshape(len(rows), groups, -1)


def sets(v, groups):
    """v as [G, R, M]."""
    v = v.astype(np.float64)
    return v if v.ndim == 3 else np.tile(v.reshape(1, -1, v.shape[-1]), (groups, 1, 1))


def mean(sub, by_group, doubt_of_x=0.0):
    """The mean directions [1 or G, M] in float64, and their bounds."""
    parts = sub.transpose(1, 0, 2) if by_group else [sub.reshape(-1, sub.shape[-1])]
    found = [direction_bound(part, doubt_of_x=doubt_of_x) for part in parts]
    return tuple(np.stack(arrays) for arrays in zip(*found))


class Check:
    def __init__(self):
        self.failures, self.checked, self.worst = [], 0, {"v": 0.0, "z": 0.0, "dW": 0.0}
        self.undetermined = 0

    def close(self, what, kind, found, wanted, bound):
        worst = ratio(np.abs(found.astype(np.float64) - wanted), np.broadcast_to(bound, wanted.shape))
        self.worst[kind] = max(self.worst[kind], worst)
        if not worst <= 1:
            self.failures.append(f"{what}: {kind} differs from its formula (error / bound = {worst:.3g})")

    def same(self, what, found, wanted):
        if found.tobytes() != wanted.tobytes():
            self.failures.append(f"{what}: not bit-identical")

    def direction(self, site, init, x, v, previous, decay, noise):
        """Whether v is what the init says; `previous` is v before the step. Of a direction that our runtime
        calibrated, `noise` is how far its X may be from that of ONNX Runtime."""
        sub = tokens_of(x, site.groups)
        by_group, size = v.ndim == 3, sub.shape[-1]
        found = v.reshape(-1, size).astype(np.float64)
        if init in ("batch-average", "first-batch", "running-average"):
            wanted, bound = mean(sub, by_group, noise if init == "first-batch" else 0.0)
            if init == "running-average":
                old = previous.reshape(-1, size).astype(np.float64)
                blended, doubt = decay * old + (1 - decay) * wanted, (1 - decay) * bound + 4 * UNIT
                norm = np.linalg.norm(blended, axis=-1, keepdims=True)
                wanted = blended / norm
                bound = (doubt + np.abs(wanted) * np.linalg.norm(doubt, axis=-1, keepdims=True)) / norm
                bound = bound + gamma(size + 6)
            known = np.isfinite(bound).all(-1)
            self.undetermined += int((~known).sum())
            self.close(site.x, "v", found[known], wanted[known], bound[known])
            return
        rank = v.shape[-2] if v.ndim > 1 else 1
        for number, vectors in enumerate(found.reshape(-1, rank, size)):
            gram = vectors @ vectors.T
            self.close(site.x, "v", gram, np.eye(rank), gamma(size + 6) + 4 * UNIT)
            if init == "svd":
                of = sub[:, number] if by_group else sub.reshape(-1, size)
                # The variance that the vectors keep is the largest that any can: the first singular values'.
                # Moments are sums in float32, so that it may miss by the rounding of N terms.
                kept = (np.abs(of @ vectors.T) ** 2).sum()
                best = (np.linalg.svd(of, compute_uv=False)[:rank] ** 2).sum()
                bound = gamma(len(of) + size) * (of**2).sum() + 4 * noise * np.abs(of).sum()
                self.close(site.x, "v", np.array(kept), np.array(best), bound)
        if init == "none" and rank == 1:
            self.close(site.x, "v", found, np.full_like(found, size**-0.5), gamma(3) * size**-0.5)
        if init == "uniform" and rank == 1 and not (found > 0).all():
            self.failures.append(f"{site.x}: a uniform direction has entries that are not positive")

    def gradient(self, site, storage, x, dy, v, z, found):
        sub, v = tokens_of(x, site.groups), sets(v, site.groups)
        tokens, groups, size = sub.shape
        exact = np.einsum("ngm,grm->ngr", sub, v).reshape(tokens, -1)
        bound = gamma(size) * np.einsum("ngm,grm->ngr", np.abs(sub), np.abs(v)).reshape(tokens, -1)
        stored = np.abs(exact) + bound
        # Half a unit in the last place, and half of the smallest number; half a step, and what rounds it.
        bound = bound + {
            "activation": 0,
            "f16": stored * 2**-11 + 2**-25,
            "bf16": stored * 2**-8,  # ONNX Runtime cuts the last bits off instead of rounding
            "int8": stored.max(-1, keepdims=True) / 127 * (0.5 + 128 * 4 * UNIT),
        }[storage]
        self.close(site.gradient, "z", z, exact, bound)
        z, dy = z.astype(np.float64), dy.astype(np.float64)

        def spread(p):
            wide = np.einsum("gro,grm->gmo", p.reshape(groups, -1, dy.shape[1]), v)
            return wide.reshape(-1, dy.shape[1])[:site.features]

        wanted = site.scale * spread(z.T @ dy)
        v, size = np.abs(v), v.shape[1]
        magnitude = abs(site.scale) * spread(np.abs(z).T @ np.abs(dy))
        bound = (gamma(tokens) + gamma(3 + size)) * (1 + gamma(tokens)) * magnitude
        # A product below the normal numbers may be flushed to zero, once for each term.
        bound = bound + 2.0**-126 * (tokens + size) * (1 + np.abs(z).max() * np.abs(dy).max())
        if site.transposed:
            wanted, bound = wanted.T, bound.T
        self.close(site.gradient, "dW", found, wanted, bound)
        self.checked += 1


def velora(tool, *arguments):
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"velora-opt {' '.join(map(str, arguments))}: {done.stderr.strip()}")


def option(arguments, name, default):
    return arguments[arguments.index(name) + 1] if name in arguments else default


def calibrated(tool, folder, rewritten, original, feed, check):
    """The rewritten file with its directions filled from the batch, and the directions that `run` fills."""
    # A parameter's gradient is an output with its name in it.
    outputs = [o.name for o in original.graph.output]
    data = {i.name: feed[i.name] for i in original.graph.input if not any(i.name in o for o in outputs)}
    np.savez(folder / "data.npz", **data)
    np.savez(folder / "params.npz", **{n: a for n, a in feed.items() if n not in data})
    out = folder / "calibrated.onnx"
    given = ["--data", folder / "data.npz", "--params", folder / "params.npz", "--quiet"]
    velora(tool, "calibrate", rewritten, "-o", out, *given)
    velora(tool, "run", rewritten, *given, "--steps", 1, "--save", folder / "saved.safetensors")
    model = onnx.load(out)
    saved = safetensors(folder / "saved.safetensors")
    for tensor in model.graph.initializer:
        marks = {p.key: p.value for p in tensor.metadata_props}
        if "velora.calibrated" in marks:
            if marks["velora.calibrated"] != "yes":
                check.failures.append(f"{tensor.name} is not filled")
            check.same(f"{tensor.name} of run and calibrate", saved[tensor.name], onnx.numpy_helper.to_array(tensor))
    return model


def safetensors(path):
    """32-bit floats of a safetensors file."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:8 + length])
    header.pop("__metadata__", None)
    return {name: np.frombuffer(raw[8 + length:][slice(*t["data_offsets"])], np.float32).reshape(t["shape"])
            for name, t in header.items() if t["dtype"] == "F32"}


def check_variant(tool, path, original, feed, before, noise, arguments, check):
    factored = "factored" in arguments
    init, storage = option(arguments, "--init", ""), option(arguments, "--storage", "activation")
    init = init or ("first-batch" if factored else "batch-average")
    decay = float(option(arguments, "--decay", 0.9))
    groups = [] if "--groups" in arguments else ["--groups", "4"]
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        models = []
        for form in ([], ["--inline"]):
            out = scratch / "rewritten.onnx"
            velora(tool, path, "-o", out, "--quiet", *groups, *arguments, *form)
            fills = init in ("first-batch", "svd")
            models.append(calibrated(tool, scratch, out, original, feed, check) if fills else onnx.load(out))
    functions, inline = models
    bare = unpinned(functions)
    producers = {o: n for n in bare.graph.node for o in n.output}
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in functions.graph.initializer}
    sites = [Site(n, producers) for n in bare.graph.node if n.op_type == "FactoredWeightGrad"]
    products = [n for n in bare.graph.node if role(n) == "FactoredGradient" and n.op_type == "Gemm"]
    factors = [Factors(n, producers, bare) for n in products]
    if factored and sites or not factored and factors:
        check.failures.append("gradients leave in another form than was asked for")
    sites += factors
    if not sites:
        check.failures.append("nothing is rewritten")
    state = {i.name: constants[i.name] for i in functions.graph.input if i.name.startswith("velora.")}
    for _ in range(STEPS if state else 1):
        after = run_all_values(functions, {**feed, **state})
        other = run_all_values(inline, {**feed, **state})
        known = lambda name: constants[name] if name in constants else after[name]
        for site in sites:
            v = known(site.v)
            if isinstance(site, Factors) and v.ndim == 2:
                v = v[:, None]
            previous = state.get(site.v.removesuffix(".next"))
            name = next(n for n in chain(site.x, producers) if n in before)
            check.direction(site, init, before[name], v, previous, decay, noise[name])
            found = after[site.gradient]
            if isinstance(site, Factors):
                found = site.expanded(found, v)
            check.gradient(site, storage, before[name], after[site.dy], v, after[site.z], found)
            check.same(f"{site.gradient} inline", other[site.gradient], after[site.gradient])
        # Gradients of scales are check_rewrite's: here they only may differ.
        made = [o for n in bare.graph.node if (n.op_type or "").startswith("Factored") for o in n.output]
        rewritten = depends_on(bare, made)
        marks = (p for n in bare.graph.node for p in n.metadata_props)
        rewritten = set(rewritten) | {p.value for p in marks if p.key == "velora.factor_of"}
        for output in original.graph.output:
            if output.name not in rewritten:
                check.same(output.name, after[output.name], before[output.name])
        state = {name: after[f"{name}.next"] for name in state}


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--velora", default=str(ROOT / "target/release/velora-opt"))
    cli.add_argument("--graphs", default="", help="only graphs whose name this matches")
    opt = cli.parse_args()
    failures = checked = 0
    for graph in (g for g in GRAPHS if re.search(opt.graphs, g)):
        path = ROOT / "models/aot" / f"{graph}.onnx"
        original = onnx.load(path)
        open_sizes = {d.dim_param for i in original.graph.input for d in i.type.tensor_type.shape.dim if d.dim_param}
        feed = random_feed(original, {name: BATCH if "batch" in name else 16 for name in open_sizes})
        before = run_all_values(original, feed)
        noise = rounding_noise(original, feed, before, [n for n, v in before.items() if v.dtype == np.float32])
        check = Check()
        for arguments in VARIANTS:
            count = len(check.failures)
            try:
                check_variant(opt.velora, path, original, feed, before, noise, arguments, check)
            except Exception as error:  # ONNX Runtime's exceptions share no narrower base
                check.failures.append(f"{type(error).__name__}: {error}")
            check.failures[count:] = [f"{' '.join(arguments)}: {f}" for f in check.failures[count:]]
        worst = ", ".join(f"{k} {w:.2g}" for k, w in check.worst.items())
        print(f"aot/{graph}: {len(VARIANTS)} variants, {check.checked} gradients, {len(check.failures)} failures; error / "
              f"bound: {worst}; {check.undetermined} means not determined by the data", flush=True)
        for failure in itertools.islice(check.failures, 12):
            print(f"  FAILED {failure}")
        failures, checked = failures + len(check.failures), checked + check.checked
    return 1 if failures or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
