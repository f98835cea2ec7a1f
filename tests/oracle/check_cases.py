#!/usr/bin/env python3
"""Run graphs and their rewritten form in ONNX Runtime, and calculate what the analyses claim.

    python check_cases.py VELORA_OPT [CASE.txt | MODEL.onnx]...

Without files: all graph cases of `sites` and `rewrite` that hold a graph. Each graph is rewritten with
`--select all`, with each kind of direction, as functions and inline, with and without pins. Checked, with
ONNX Runtime's graph optimisations off:
  * every output that no rewritten gradient reaches is bit-identical;
  * the original's gradient is the contraction that it is said to be: s X^T dY, by NumPy in float64, from
    the original's own X and dY;
  * the rewritten gradient is s v (x) ((X v)^T dY) of the same X and dY;
  * gradients of scales, and what nodes that stay read in the place of X, are what `check_rewrite.py` says.
All within a bound on the rounding of the types that occur. What the runtime cannot run, or runs with results that depend on
its own memory reuse, is listed as such; at the end stands how many contractions were compared, and the
exit status is 1 where one failed or none was. Stock onnxruntime for standard operators,
onnxruntime-training for its own dialect.
"""

import pathlib
import subprocess
import sys
import tempfile
import types

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort

import check_rewrite

GROUPS = 3
SIZES = {"batch": 4, "seq": 5}


def run(path, feed, wanted, reuse=True, order=ort.ExecutionOrder.DEFAULT):
    """Outputs and inner values of a model, by name."""
    model = onnx.load(path)
    outputs = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n not in outputs)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_mem_reuse = reuse
    options.execution_order = order
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = list(dict.fromkeys(list(outputs) + list(wanted)))
    return dict(zip(names, session.run(names, {i.name: feed[i.name].copy() for i in session.get_inputs()})))


def has_16_bits(model):
    short = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    casts = [attribute(n, "to", None) for n in model.graph.node if n.op_type == "Cast"]
    return any(t in short for t in [*casts, *(i.type.tensor_type.elem_type for i in model.graph.input)])


def accumulated(model):
    return [n.input[1] for n in model.graph.node if n.op_type == "InPlaceAccumulatorV2"]


def agrees_with_itself(path, feed):
    """Whether the runtime gives the same bits with and without reuse of memory, in two orders: where it
    reads or writes out of bounds (ONNX Runtime 1.19.2 does, in graphs whose gradient of a broadcast embedding
    lacks its sum), no comparison means anything."""
    wanted = accumulated(onnx.load(path))
    orders = (ort.ExecutionOrder.DEFAULT, ort.ExecutionOrder.PRIORITY_BASED)
    first, *others = [run(path, feed, wanted, reuse, order) for reuse in (False, True) for order in orders]
    return all(first[n].tobytes() == other[n].tobytes() for other in others for n in first)


def values(model, rows):
    """Random values for every input; `rows` is the size of other open dimensions, such as that of labels."""
    generator = np.random.default_rng(0)
    feed = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [SIZES.get(d.dim_param, rows) if d.dim_param else d.dim_value for d in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if np.issubdtype(dtype, np.floating):
            scale = np.sqrt(shape[-1]) if len(shape) > 1 else 1.0
            array = generator.normal(size=shape) / scale
        elif dtype == np.bool_:
            array = np.ones(shape)
        else:
            array = generator.integers(0, 2, shape)
        feed[value.name] = np.asarray(array).astype(dtype)
    return feed


def behind(name, makers, known):
    """The original's value that one of ours hands on, and whether transposed."""
    flipped = False
    while name not in known:
        flipped ^= makers[name].op_type == "Transpose"
        name = makers[name].input[0]
    return name, flipped


def attribute(node, name, default):
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def sources(original, rewritten):
    """For each rewritten gradient: its name, X, dY and what is added as (name, transposed), whether the
    gradient is [O, D], and its factor."""
    known = {i.name for i in original.graph.input} | {i.name for i in original.graph.initializer}
    known |= {o for n in original.graph.node for o in n.output}
    makers = {o: n for n in rewritten.graph.node for o in n.output}
    old = {n.output[0]: n for n in original.graph.node}
    for node in rewritten.graph.node:
        if node.op_type == "FactoredWeightGrad":
            z = makers[node.input[0]]
            z = z if z.op_type == "Compress" else makers[z.input[0]]
            scale, transposed = attribute(node, "scale", 1.0), attribute(node, "transposed", 0)
            yield (node.output[0], behind(z.input[0], makers, known), behind(node.input[1], makers, known),
                   None, transposed, scale)
        elif node.op_type == "Gemm" and node.output[0] in old:
            def reads_reconstructed(name):
                while name not in known:
                    if name not in makers or makers[name].op_type == "Reconstruct":
                        return name in makers
                    name = makers[name].input[0]
                return False

            slots = [i for i in (0, 1) if reads_reconstructed(node.input[i])]
            if slots:
                was, x = old[node.output[0]], slots[0]
                flags = [bool(attribute(was, f, 0)) for f in ("transA", "transB")]
                # As [N, D] and [N, O].
                operands = [(was.input[0], not flags[0]), (was.input[1], flags[1])]
                added = (was.input[2], attribute(was, "beta", 1.0))
                yield (node.output[0], operands[x], operands[1 - x], added, x == 1, attribute(was, "alpha", 1.0))


def compare(found, expected, bound, what, failures):
    # Below the smallest normal number of 16 bits results are off by as much as the smallest of all.
    bound = bound + len(bound) * np.finfo(found.dtype).smallest_subnormal
    error = np.abs(found.astype(np.float64).reshape(expected.shape) - expected)
    ratio = float(np.max(error / np.maximum(bound, np.finfo(np.float32).tiny)))
    if not ratio <= 1.0:
        failures.append(f"{what}: error / bound = {ratio:.3g}")


def check(original, rewritten_path, feed, init, failures):
    """Compares one rewritten model; the number of gradients compared."""
    model, rewritten = onnx.load(original), onnx.load(rewritten_path)
    sites = list(sources(model, rewritten))
    gradients = [g for g, *_ in sites]
    original_graph = types.SimpleNamespace(model=model, producers={o: n for n in model.graph.node for o in n.output})
    others = check_rewrite.sites(original_graph, check_rewrite.unpinned(rewritten), ("scale", "reconstructed"))
    others = [s for s in others if s.product.op_type != "Gemm"]
    reached = set(gradients) | {s.gradient for s in others}
    # In the original, where no pin makes anything depend on a gradient.
    for node in model.graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
    wanted = {n for g, x, dy, added, *_ in sites for n in (g, x[0], dy[0], added and added[0]) if n}
    fixed = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer} | feed
    # Where gradients leave through accumulators, what enters those is compared.
    exact = [o.name for o in model.graph.output] + accumulated(model)
    exact = [n for n in exact if n not in reached]
    before = fixed | run(original, feed, [n for n in [*wanted, *exact] if n not in fixed])
    after = run(rewritten_path, feed, gradients + exact)
    failures += [f"{n} changed" for n in exact if before[n].tobytes() != after[n].tobytes()]
    for gradient, x, dy, added, transposed, scale in sites:
        rows = []
        for name, flipped in (x, dy):
            array = before[name].astype(np.float64)
            array = np.swapaxes(array, -1, -2) if flipped else array
            rows.append(array.reshape(-1, array.shape[-1]))
        eps = max(np.finfo(before[n].dtype).eps for n in (x[0], dy[0], gradient))
        x, dy = rows
        (tokens, features), groups = x.shape, GROUPS
        flip = (lambda m: m.T) if transposed else (lambda m: m)
        addend = 0.0 if added is None else added[1] * before[added[0]].astype(np.float64)
        # N products and sums, each operand exact (Higham, Accuracy and Stability, section 3.1).
        full = flip((tokens + 2) * eps * abs(scale) * (np.abs(x).T @ np.abs(dy))) + 2 * eps * np.abs(addend)
        compare(before[gradient], flip(scale * x.T @ dy) + addend, full, f"{gradient}: no contraction", failures)
        size = -(-features // groups)
        sub = np.pad(x, ((0, 0), (0, groups * size - features))).reshape(-1, size)
        if init == "none":
            v, doubt = np.full(size, size**-0.5), np.full(size, eps)
        else:
            total = sub.sum(0)
            norm = np.linalg.norm(total)
            v = total / norm
            doubt = (len(sub) + size + 4) * eps * (np.abs(sub).sum(0) / norm)
            doubt = doubt + np.abs(v) * np.linalg.norm(doubt)
        z = (sub @ v).reshape(tokens, groups)
        z_doubt = (np.abs(sub) @ (doubt + (size + 1) * eps * np.abs(v))).reshape(tokens, groups)
        p = z.T @ dy
        p_doubt = z_doubt.T @ np.abs(dy) + (tokens + 1) * eps * (np.abs(z).T @ np.abs(dy))
        outer = lambda p, v: (p[:, None, :] * v[None, :, None]).reshape(groups * size, -1)[:features]
        bound = outer(p_doubt, np.abs(v)) + outer(np.abs(p), doubt + 3 * eps * np.abs(v))
        if added is not None:
            # X̂ is rounded once more before the product.
            bound += (tokens + 2) * eps * outer(np.abs(z).T @ np.abs(dy), np.abs(v))
        bound = flip(abs(scale) * bound) + 2 * eps * np.abs(addend)
        compare(after[gradient], flip(scale * outer(p, v)) + addend, bound, gradient, failures)
    if others:
        runs = [fixed | check_rewrite.run_all_values(m, feed) for m in (model, rewritten)]
        constants = {i.name: onnx.numpy_helper.to_array(i) for i in rewritten.graph.initializer}
        result = check_rewrite.Result()
        for site in others:
            check_rewrite.check_site(site, constants, runs, (init, 1.0), result)
        failures += result.failures
    return len(sites) + len(others)


def main():
    tool, *files = sys.argv[1:]
    cases = pathlib.Path(__file__).parent.parent / "cases"
    files = [pathlib.Path(f) for f in files] or sorted([*cases.glob("sites/*.txt"), *cases.glob("rewrite/*.txt")])
    compared, failed = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            original, out = f"{folder}/in.onnx", f"{folder}/out.onnx"
            if file.suffix == ".onnx":
                original = str(file)
            else:
                text = file.read_text().split("\n----\n")[0]
                if "\n# model: " in text:
                    continue
                onnx.save(onnx.parser.parse_model(text), original)
            feed, why = None, ""
            for rows in (SIZES["batch"], SIZES["batch"] * SIZES["seq"]):
                try:
                    feed = values(onnx.load(original), rows)
                    run(original, feed, [])
                    break
                except Exception as error:
                    feed, why = None, str(error).splitlines()[0][:120]
            if feed is None:
                print(f"{file.name}: not run: {why}")
                continue
            if not agrees_with_itself(original, feed):
                print(f"{file.name}: not compared: the runtime's own results depend on its memory reuse")
                continue
            failures, count, why = [], 0, ""
            for init in ("none", "batch-average"):
                for pins in ([], ["--no-pin"]):
                    common = [tool, original, "-q", "--select", "all", "--groups", str(GROUPS), "--init", init, *pins]
                    done = subprocess.run([*common, "-o", out, "--verify-each"], capture_output=True, text=True)
                    if "expected no more than features" in done.stderr:
                        why = f"no layer has {GROUPS} features"
                        continue
                    if done.returncode:
                        raise RuntimeError(done.stderr)
                    count += check(original, out, feed, init, failures)
                    inline = f"{folder}/inline.onnx"
                    subprocess.run([*common, "-o", inline, "--verify-each", "--inline"], check=True)
                    one, other = run(out, feed, []), run(inline, feed, [])
                    if has_16_bits(onnx.load(original)):
                        # The runtime computes these in 32 bits, by casts that it inserts, and drops pairs of
                        # them: other ones in a function than in the graph.
                        continue
                    failures += [f"{n} differs inline" for n in one if one[n].tobytes() != other[n].tobytes()]
            print(f"{file.name}: {count} gradients compared{why and ': ' + why}")
            for failure in dict.fromkeys(failures):
                print(f"  FAILED {failure}")
            compared, failed = compared + count, failed + len(failures)
    print(f"{compared} gradients compared, {failed} failures")
    return 1 if failed or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
