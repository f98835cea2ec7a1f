#!/usr/bin/env python3
"""Check a rewritten training graph against its original in ONNX Runtime.

    python check_rewrite.py ORIGINAL REWRITTEN [--init batch-average|none] [--batch 6] [--seq 16]

With ONNX Runtime's graph optimisations off:
  * every output that no rewritten contraction feeds is bit-identical;
  * every rewritten weight gradient equals v (x) (z^T dY), evaluated by NumPy in float64 from the
    original's own X and dY, within `tolerance` below.

Exit status 1 where one of them does not hold. Needs a runtime that knows the graph's operators:
stock onnxruntime for standard operators, onnxruntime-training for its own dialect.
"""

import argparse
import sys

import numpy as np
import onnx
import onnxruntime as ort

EPS = np.finfo(np.float32).eps


def run(model, feed, wanted):
    """Outputs `wanted` of a model, by name, with no optimisation and a fixed thread count."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    have = {o.name for o in model.graph.output}
    for name in wanted:
        if name not in have:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return dict(zip(wanted, session.run(wanted, {n: feed[n].copy() for n in names})))


def batch(model, sizes):
    """Random values for every input; labels and tokens stay below every vocabulary here."""
    generator = np.random.default_rng(0)
    feed = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in tensor.shape.dim]
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


def depends_on(model, sources):
    """Names of all values computed from `sources`."""
    reached = set(sources)
    for node in model.graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
    return reached


def flag(node, name):
    return next((bool(a.i) for a in node.attribute if a.name == name), False)


def contractions(original, rewritten):
    """(original node, slot of X, groups, the gradient's name) for every rewritten contraction.

    A rewritten contraction keeps its name; the one input that differs is X's slot."""
    before = {n.name: n for n in original.graph.node if n.name}
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in rewritten.graph.initializer}
    producers = {o: n for n in rewritten.graph.node for o in n.output}
    for node in rewritten.graph.node:
        old = before.get(node.name)
        if old is None or list(old.input) == list(node.input):
            continue
        slot = next(i for i, (a, b) in enumerate(zip(old.input, node.input)) if a != b)
        z = producers[node.input[slot]]
        if z.op_type == "Transpose":
            z = producers[z.input[0]]
        yield old, slot, int(constants[z.input[1]][-1]), old.output[0]


def expected(old, slot, groups, init, x, dy):
    """v (x) (z^T dY) in float64, oriented as the original product, and its error bound.

    The bound: N products summed in any order, each factor carrying M roundings for z, a handful for
    v and one for the outer product, all relative to the sums of absolute values (Higham, Accuracy
    and Stability, section 3.1). A mean direction is itself uncertain by the rounding of its sum,
    relative to the sum of absolute values; that uncertainty enters twice, through v and through z."""
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    if flag(old, ("transA", "transB")[slot]):
        x = x.T
    if flag(old, ("transA", "transB")[1 - slot]):
        dy = dy.T
    if slot == 0:
        x = x.T                # product is X^T [D, N] times dY [N, O]
    else:
        dy = dy.T              # product is dY^T [O, N] times X [N, D]
    tokens, features = x.shape
    size = -(-features // groups)
    sub = np.pad(x, ((0, 0), (0, groups * size - features))).reshape(-1, size)
    if init == "none":
        v, doubt = np.full(size, size**-0.5), np.full(size, EPS)
    else:
        total = sub.sum(0)
        norm = np.linalg.norm(total)
        v = total / norm
        doubt = (len(sub) + size + 4) * EPS * (np.abs(sub).sum(0) / norm)
        doubt = doubt + np.abs(v) * np.linalg.norm(doubt)
    z = (sub @ v).reshape(tokens, groups)
    z_doubt = (np.abs(sub) @ (doubt + (size + 1) * EPS * np.abs(v))).reshape(tokens, groups)
    p = z.T @ dy
    p_doubt = z_doubt.T @ np.abs(dy) + (tokens + 1) * EPS * (np.abs(z).T @ np.abs(dy))
    dw = (p[:, None, :] * v[None, :, None]).reshape(groups * size, -1)[:features]
    bound = p_doubt[:, None, :] * np.abs(v)[None, :, None] + np.abs(p)[:, None, :] * (
        doubt + EPS * np.abs(v))[None, :, None]
    bound = bound.reshape(groups * size, -1)[:features]
    return (dw, bound) if slot == 0 else (dw.T, bound.T)


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("original")
    cli.add_argument("rewritten")
    cli.add_argument("--init", default="batch-average", choices=["batch-average", "none"])
    cli.add_argument("--batch", type=int, default=6)
    cli.add_argument("--seq", type=int, default=16)
    opt = cli.parse_args()
    original, rewritten = onnx.load(opt.original), onnx.load(opt.rewritten)
    sites = list(contractions(original, rewritten))
    touched = depends_on(rewritten, [gradient for *_, gradient in sites])
    # ONNX Runtime's exporter names the label dimension `rows`: tokens for language models.
    labels = next((i for i in original.graph.input if i.name == "labels"), None)
    has_seq = any(d.dim_param == "seq" for i in original.graph.input
                  for d in i.type.tensor_type.shape.dim)
    sequence_labels = labels is not None and has_seq and "llama" in opt.original
    sizes = {"batch": opt.batch, "seq": opt.seq, "rows": opt.batch * (opt.seq if sequence_labels else 1)}
    feed = batch(original, sizes)

    # Accumulated gradients leave through buffers; the value that enters the accumulator is compared.
    accumulated = [n.input[1] for n in original.graph.node if n.op_type == "InPlaceAccumulatorV2"]
    buffers = {n.output[0] for n in original.graph.node if n.op_type == "InPlaceAccumulatorV2"}
    plain = [o.name for o in original.graph.output if o.name not in buffers] + accumulated
    untouched = [name for name in plain if name not in touched]
    operands = [name for old, *_ in sites for name in old.input[:2]]
    gradients = [gradient for *_, gradient in sites]
    before = run(original, feed, list(dict.fromkeys(untouched + operands)))
    after = run(rewritten, feed, list(dict.fromkeys(untouched + gradients)))

    failures = [n for n in untouched if before[n].tobytes() != after[n].tobytes()]
    worst = 0.0
    for old, slot, groups, gradient in sites:
        dw, bound = expected(old, slot, groups, opt.init, before[old.input[slot]],
                             before[old.input[1 - slot]])
        error = np.abs(after[gradient].reshape(dw.shape).astype(np.float64) - dw)
        # Entries whose bound is zero must be exact.
        ratio = float(np.max(error / np.maximum(bound, np.finfo(np.float32).tiny)))
        worst = max(worst, ratio)
        if not ratio <= 1.0:
            failures.append(f"{gradient} (error / bound = {ratio:.3g})")
    print(f"{opt.rewritten}: {len(untouched)} outputs bit-identical unless listed, "
          f"{len(sites)} gradients, largest error / bound {worst:.3g}")
    for failure in failures:
        print(f"  FAILED {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
