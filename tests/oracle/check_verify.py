#!/usr/bin/env python3
"""Check what `velora-opt verify` measures against ONNX Runtime and NumPy.

    python check_verify.py [VELORA-OPT]

For models/aot/digits_vit.onnx, rewritten in two ways: the hashes in the certificate are those of hashlib;
cosine and norm ratio of every layer are those of the weight gradients that ONNX Runtime computes from both
graphs, in float64; and where groups need no padding, the cosine is what the method says it is, from the exact
gradient and the direction alone: a rewritten gradient is the exact one projected on v in each group, so
that its part of the norm is the cosine. Needs stock onnxruntime. Exit status 1 where anything differs.
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx

import check_rewrite

ROOT = pathlib.Path(__file__).resolve().parents[2]
GRAPH = ROOT / "models/aot/digits_vit.onnx"
DATA = ROOT / "models/data/digits_test.npz"
SAMPLES = 16
# Cosines and ratios are smooth in gradients that two engines round differently: relative differences of
# gamma(N), N <= 16 * 17 tokens, on both sides, and as much again for what comes before.
TOLERANCE = 8 * check_rewrite.gamma(SAMPLES * 17)


def feed(model):
    """The first samples, and the parameters that the file has."""
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    data = np.load(DATA)
    arrays |= {name: data[name][:SAMPLES] for name in data.files}
    return {i.name: arrays[i.name] for i in model.graph.input}


def fidelity(approximate, exact):
    a, e = (x.astype(np.float64).ravel() for x in (approximate, exact))
    norms = np.linalg.norm(a), np.linalg.norm(e)
    return a @ e / (norms[0] * norms[1]), norms[0] / norms[1]


def check(tool, options, folder):
    rewritten, certificate = folder / "rewritten.onnx", folder / "certificate.json"
    subprocess.run([tool, GRAPH, "-o", rewritten, "-q", *options], check=True)
    subprocess.run([tool, "verify", GRAPH, rewritten, "--data", DATA, "--batch", str(SAMPLES), "-q",
                    "--json", certificate], check=True)
    found = json.loads(certificate.read_text())
    for side, path in (("original", GRAPH), ("rewritten", rewritten)):
        assert found["files"][side]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest(), side
    before, after = onnx.load(GRAPH), onnx.load(rewritten)
    exact = check_rewrite.run_all_values(before, feed(before))
    approximate = check_rewrite.run_all_values(after, feed(before))
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    original = check_rewrite.Original.__new__(check_rewrite.Original)
    original.model = before
    original.producers = {o: n for n in before.graph.node for o in n.output}
    sites = {s.product.name: s for s in check_rewrite.sites(original, check_rewrite.unpinned(after))}
    assert len(found["layers"]) == len(sites) > 5
    failures, worst = [], 0.0
    for layer in found["layers"]:
        site = sites[layer["node"]]
        cosine, ratio = fidelity(approximate[site.gradient], exact[site.gradient])
        dw = exact[site.gradient].astype(np.float64)
        dw = dw.T if site.slot == 1 else dw
        v = np.asarray(constants.get(site.v, approximate.get(site.v))).astype(np.float64)
        errors = [abs(layer["cosine"] - cosine), abs(layer["norm_ratio"] - ratio) / layer["scale"]]
        projected = None
        if site.groups * v.size == dw.shape[0]:
            parts = np.einsum("m,gmo->go", v, dw.reshape(site.groups, v.size, -1))
            projected = np.linalg.norm(parts) / np.linalg.norm(dw)
            errors.append(abs(layer["cosine"] - projected))
        worst = max(worst, *errors)
        if not max(errors) <= TOLERANCE:
            failures.append(f"{layer['param']}: {layer['cosine']}, {layer['norm_ratio']}; expected {cosine}, {ratio}; "
                            f"projected {projected}")
    print(f"{' '.join(options)}: {len(sites)} layers, largest difference {worst:.2g} of {TOLERANCE:.2g}")
    return failures


def main():
    tool = sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/velora-opt"
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        for options in (["--groups", "8"], ["--groups", "5", "--init", "random", "--scale", "0.5", "--inline"]):
            failures += check(tool, options, pathlib.Path(folder))
    for failure in failures:
        print(f"  FAILED {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
