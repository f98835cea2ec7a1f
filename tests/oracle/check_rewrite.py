#!/usr/bin/env python3
"""Check a rewritten training graph against its original in ONNX Runtime.

    python check_rewrite.py ORIGINAL REWRITTEN [--init KIND] [--scale S] [--batch 6] [--seq 16]

With ONNX Runtime's graph optimisations off:
  * every value that no rewritten contraction feeds is bit-identical: the outputs (loss, gradients of
    untouched parameters) and the operands of the contractions themselves;
  * the direction v is what `--init` says: the normalised mean (batch-average), all entries equal
    (none), or any unit vector held in the file (random);
  * every rewritten weight gradient equals s v (x) (z^T dY), evaluated by NumPy in float64 from the
    original's X and dY and the v in use; that of a scale s v (sum over n of z[n] dY[n]);
  * where a node stays and reads the reconstructed X (gradients of convolutions and recurrent layers), what it
    reads is s z (x) v, every output of it but the weight's gradient is bit-identical, and a convolution's
    weight gradient is that of the reconstructed X.
With the default optimisations, outputs equal those without up to rounding.
The nodes behind a rewritten gradient are the original's.

The tolerances are derived: `direction_bound`, `gradient_bound` and `rounding_noise` say how. Needs a
runtime that knows the graph's operators: stock onnxruntime for standard operators,
onnxruntime-training for its own dialect. `run_all.py` does this for all graphs in `models/`.
"""

import argparse
import dataclasses
import sys

import numpy as np
import onnx
import onnxruntime as ort

DOMAIN = "ai.velora"
VIEWS = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
PRODUCTS = {"Gemm", "MatMul", "FusedMatMul"}
# Operators that move or select values and round nothing; Cast is here for masks, which are whole numbers.
# (MaxPoolGrad rounds only where windows overlap; onnxruntime-training 1.19.2 aborts when noise is put on
# its result.)
EXACT = VIEWS | {"Abs", "Cast", "Clip", "Concat", "ConcatTraining", "ConstantOfShape", "Expand", "Gather", "Max",
                 "MaxPool", "MaxPoolGrad", "Min", "Neg", "Pad", "ReduceMax", "ReduceMin", "Relu", "ReluGrad",
                 "Sign", "Slice", "Split", "Tile", "Where"}
UNIT = np.finfo(np.float32).eps / 2  # unit roundoff: half the distance from 1 to the next number


class Mismatch(Exception):
    """The rewritten file is not of the form that the check understands."""


# --- running a graph -----------------------------------------------------------------------------


def session(model, optimised):
    options = ort.SessionOptions()
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # failures arrive as exceptions
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_all_values(model, feed):
    """Every value that a node of the model produces and NumPy has a type for, by name, with the graph
    optimisations off.

    As outputs they have a buffer each, so that no reuse of memory can hide or cause a difference."""
    bfloats = set()
    for node in model.graph.node:
        cut = node.op_type == "Cast" and attribute(node, "to") == onnx.TensorProto.BFLOAT16
        if cut or (node.op_type in ("Reshape", "Slice") and node.input[0] in bfloats):  # a pin hands it on
            bfloats.update(node.output)
    wanted = [name for node in model.graph.node for name in node.output if name and name not in bfloats]
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    runner = session(copy, optimised=False)
    # Copies, because InPlaceAccumulatorV2 writes to its input.
    return dict(zip(wanted, runner.run(wanted, {i.name: feed[i.name].copy() for i in runner.get_inputs()})))


def run_as_is(model, feed):
    """What leaves the graph, with the default optimisations: its outputs, and what its accumulators
    leave in their buffers, under the name of the gradient that enters them (or the pin before them)."""
    runner = session(model, optimised=True)
    arrays = {i.name: feed[i.name].copy() for i in runner.get_inputs()}
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    binding = runner.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    names = [o.name for o in runner.get_outputs()]
    for name in names:
        binding.bind_output(name)
    runner.run_with_iobinding(binding)
    found = dict(zip(names, binding.copy_outputs_to_cpu()))
    found.update({n.input[1]: values[n.input[0]].numpy().copy() for n in accumulators(unpinned(model))})
    return found


def accumulators(model):
    """ONNX Runtime's in-place accumulators: buffer, gradient, whether to start afresh (always, here)."""
    return [n for n in model.graph.node if n.op_type == "InPlaceAccumulatorV2"]


def random_feed(model, sizes):
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


def seeded(path):
    """The model, with a fixed seed in every Dropout, so that two graphs draw the same masks."""
    model = onnx.load(path)
    for number, node in enumerate(n for n in model.graph.node if n.op_type == "Dropout"):
        if not any(a.name == "seed" for a in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("seed", number + 1))
    return model


def rounding_noise(model, feed, clean, wanted, trials=2):
    """How far `wanted` may move between two ways to round the same graph, per value.

    Monte Carlo arithmetic (Parker 1997): every rounding operator's result is multiplied by 1 + K u r,
    with u the unit roundoff, r uniform in [-1, 1], and K at least the number of terms that one element
    of the result sums: (K u is the first-order bound of a sum in any order, Higham, section 4.2). K is
    the largest extent of an input, or the ratio of input to output size where that is larger.
    The largest deviation of the trials estimates the error of one evaluation; two are compared, hence
    the factor 2. It is an estimate, not a bound."""
    noise = {name: 0.0 for name in wanted}
    for trial in range(trials):
        noisy = onnx.ModelProto.FromString(model.SerializeToString())
        nodes = []
        for node in noisy.graph.node:
            nodes.append(node)
            if node.op_type in EXACT or node.op_type == "InPlaceAccumulatorV2":
                continue
            read = [clean[i] if i in clean else feed[i] for i in node.input if i in clean or i in feed]
            for slot, name in enumerate(node.output):
                if not name or clean[name].dtype != np.float32 or clean[name].size == 0:
                    continue
                terms = max([1] + [e for v in read for e in v.shape] + [v.size // clean[name].size for v in read])
                node.output[slot] = name + ".exact"
                nodes.append(onnx.helper.make_node(
                    "RandomUniformLike", [name + ".exact"], [name + ".noise"],
                    low=1 - terms * UNIT, high=1 + terms * UNIT, seed=float(len(nodes) + 1 + 100_000 * trial)))
                nodes.append(onnx.helper.make_node("Mul", [name + ".exact", name + ".noise"], [name]))
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del noisy.graph.node[:]
        noisy.graph.node.extend(nodes)
        for name, value in run_all_values(noisy, feed).items():
            if name in noise and value.size and np.issubdtype(value.dtype, np.floating):
                error = np.max(np.abs(value.astype(np.float64) - clean[name]))
                noise[name] = max(noise[name], 2 * float(error))
    return noise


def first_run(model, batch, seq):
    """Feed and all values. An axis that is neither batch nor sequence (the labels' `rows` in ONNX
    Runtime's exports) counts samples or tokens: the one that runs is right."""
    error = None
    for other in (batch, batch * seq):
        sizes = {d.dim_param: other for i in model.graph.input for d in i.type.tensor_type.shape.dim}
        feed = random_feed(model, {**sizes, "batch": batch, "seq": seq})
        try:
            return feed, run_all_values(model, feed)
        except Exception as problem:  # ONNX Runtime's exceptions share no narrower base
            error = problem
    raise error


class Original:
    """An original graph, the batch it is run on, and what it computes; shared by many checks."""

    def __init__(self, path, batch=6, seq=16):
        self.model = seeded(path)
        self.producers = {o: n for n in self.model.graph.node for o in n.output}
        # An accumulated gradient leaves through a buffer: compare the value that enters the accumulator.
        buffers = {n.output[0] for n in accumulators(self.model)}
        self.outputs = [o.name for o in self.model.graph.output if o.name not in buffers]
        self.outputs += [n.input[1] for n in accumulators(self.model)]
        self.feed, self.values = first_run(self.model, batch, seq)
        self.noise = rounding_noise(self.model, self.feed, self.values, self.outputs)


# --- what was rewritten --------------------------------------------------------------------------


@dataclasses.dataclass
class Site:
    """One rewritten contraction: `product` is its node in the original, X its operand `slot`."""

    gradient: str
    product: onnx.NodeProto
    slot: int
    groups: int
    v: str
    kind: str = "weight"  # or "scale", or "reconstructed"
    axis: int = -1  # that of the features of X
    x: str = ""  # where X is reconstructed: the value that was compressed
    reconstructed: str = ""  # and what Reconstruct makes of it


def attribute(node, name, default=None):
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def metadata(node, key):
    return next((p.value for p in node.metadata_props if p.key == key), None)


def role(node):
    """The `ai.velora` operator that a node is, or that it was expanded from."""
    if node is None:
        return None
    return node.op_type if node.domain == DOMAIN else metadata(node, "velora.op")


def operands(name, producers):
    """What the velora operator that produces `name` reads: through all nodes of its expansion."""
    kind = role(producers[name])
    found, pending, seen = [], [name], set()
    while pending:
        node = producers[pending.pop()]
        if node.output[0] in seen:
            continue
        seen.add(node.output[0])
        for value in node.input:
            if node.domain != DOMAIN and role(producers.get(value)) == kind:
                pending.append(value)
            elif value and value not in found:
                found.append(value)
    return found


def chain(name, producers):
    """`name`, and the values that it is a view of (or a pin of), or has in another type."""
    names = [name]
    while name in producers and producers[name].op_type in VIEWS | {"Cast"}:
        name = producers[name].input[0]
        names.append(name)
    return names


def direction_and_source(gradient, z, producers, constants):
    """What `Compress` made z from: X and v."""
    node = producers[z]
    if node.domain == DOMAIN:
        return node.input[:2]
    read = operands(z, producers)
    is_direction = [
        role(producers.get(i)) == "MeanDirection"
        or (i in constants and constants[i].data_type == onnx.TensorProto.FLOAT)
        for i in read]
    vs = [i for i, yes in zip(read, is_direction) if yes]
    xs = [i for i, yes in zip(read, is_direction) if not yes and i not in constants]
    if len(vs) != 1 or len(xs) != 1:
        raise Mismatch(f"{gradient}: the expanded Compress reads X = {xs} and v = {vs}, expected one of each")
    return xs[0], vs[0]


def last_of(node, rewritten):
    """Whether a node is the last of an expanded operator: nothing of the operator reads it."""
    readers = [n for n in rewritten.graph.node if node.output[0] in n.input]
    return node.domain == DOMAIN or not any(role(n) == role(node) for n in readers)


def summed_product(name, producers):
    """The `Mul` whose sum a value is, through views."""
    node = producers[name]
    while node.op_type in VIEWS | {"ReduceSum"}:
        node = producers[node.input[0]]
    return node


def sites(original, rewritten, kinds=("weight", "scale", "reconstructed")):
    """Every rewritten contraction of these kinds, from the nodes that the rewrite marked."""
    producers = {o: n for n in rewritten.graph.node for o in n.output}
    constants = {t.name: t for t in rewritten.graph.initializer}
    for node in rewritten.graph.node:
        kind = {"FactoredWeightGrad": "weight", "FactoredScaleGrad": "scale"}.get(role(node))
        if kind not in kinds or not last_of(node, rewritten):
            continue
        gradient = made = node.output[0]
        if gradient not in original.producers:  # a scale's sum gets the axes that the original kept
            readers = [n.output[0] for n in rewritten.graph.node if made in n.input]
            gradient = next(r for r in readers if r in original.producers)
        product = original.producers[gradient]
        if kind == "scale":
            product = summed_product(gradient, original.producers)
        if product.op_type not in (PRODUCTS if kind == "weight" else {"Mul"}):
            raise Mismatch(f"{gradient}: the original computes it by {product.op_type}, which is not a product")
        # z as rows may be a view of what Compress made.
        views = [chain(i, producers) for i in operands(made, producers)]
        # Casts of v and of z are marked as parts of the compression, too.
        compressed = [[n for n in names if role(producers.get(n)) == "Compress" and producers[n].op_type != "Cast"]
                      for names in views]
        z = [names[0] for names in compressed if names]
        if len(z) != 1:
            raise Mismatch(f"{gradient}: {len(z)} of its operands come from Compress, expected one")
        groups = attribute(node, "groups") if node.domain == DOMAIN else int(metadata(node, "velora.groups"))
        x, v = direction_and_source(gradient, z[0], producers, constants)
        sources = set(chain(x, producers))
        slots = [s for s in (0, 1) if sources.intersection(chain(product.input[s], original.producers))]
        if len(slots) != 1:
            raise Mismatch(f"{gradient}: {x} is operand {slots} of {product.name}, expected one of the two")
        yield Site(gradient, product, slots[0], groups, v, kind)
    for node in rewritten.graph.node:
        # A node of the original; copies of what lies between X and it are none.
        if "reconstructed" in kinds and node.output and metadata(node, "velora.origin") is None:
            yield from reconstructed_sites(node, original, producers, constants)


def reconstructed_sites(node, original, producers, constants):
    """The contractions of a kept node, where it reads a reconstructed X."""
    for slot, name in enumerate(node.input):
        made = [n for n in chain(name, producers) if role(producers.get(n)) == "Reconstruct"]
        if not made:
            continue
        first = producers[made[0]]
        z, scaled = first.input[:2] if first.domain == DOMAIN else sorted(
            (i for i in operands(made[0], producers) if i not in constants or constants[i].data_type == 1),
            key=lambda i: not any(role(producers.get(n)) == "Compress" for n in chain(i, producers)))
        z = next(n for n in chain(z, producers) if role(producers.get(n)) == "Compress")
        was = next(n for n in original.model.graph.node if list(n.output) == list(node.output))
        # dW is the second output of the gradient operators, and all that other nodes make.
        gradient = node.output[1] if node.domain == "com.microsoft" else node.output[0]
        x, v = direction_and_source(gradient, z, producers, constants)
        groups = int(metadata(first, "velora.groups"))
        axis = 1 if node.op_type in ("ConvGrad", "Conv") else -1
        yield Site(gradient, was, slot, groups, scaled, "reconstructed", axis, x, made[0])


def unpinned(model):
    """The model with every pin's Reshape bypassed: what it would be without a forced schedule.

    Only the structure is read from it; what runs is the model with its pins."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    gates = {n.output[0]: n.input[0] for n in copy.graph.node
             if metadata(n, "velora.op") == "Pin" and n.op_type == "Reshape"}
    for node in copy.graph.node:
        for slot, name in enumerate(node.input):
            while name in gates:
                name = gates[name]
            node.input[slot] = name
    return copy


def depends_on(model, names):
    """Names of all values computed from `names`, and these."""
    reached = set(names)
    for node in model.graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
    return reached


def same_node(a, b):
    key = lambda n: (n.op_type, n.domain, list(n.input), list(n.output),
                     sorted(x.SerializeToString(deterministic=True) for x in n.attribute))
    return key(a) == key(b)


# --- the formula ---------------------------------------------------------------------------------


def gamma(n, unit=UNIT):
    """Bound of the relative error of n roundings (Higham, Accuracy and Stability, lemma 3.1)."""
    return n * unit / (1 - n * unit)


def matrices(site, values):
    """X [N, D] and dY [N, O] of the original product, in float64, and the factor on its result."""
    x, dy = (values[site.product.input[s]] for s in (site.slot, 1 - site.slot))
    if site.kind == "scale":
        width = x.shape[-1]
        return x.reshape(-1, width).astype(np.float64), dy.reshape(-1, width).astype(np.float64), 1.0
    if x.dtype != np.float32 or x.ndim != 2 or dy.ndim != 2:
        raise Mismatch(f"{site.gradient}: operands {x.dtype}{x.shape} and {dy.dtype}{dy.shape}, "
                       "expected float32 matrices")
    if len(site.product.input) > 2:
        raise Mismatch(f"{site.gradient}: the product adds {site.product.input[2]}")
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    if attribute(site.product, ("transA", "transB")[site.slot], 0):
        x = x.T
    if attribute(site.product, ("transA", "transB")[1 - site.slot], 0):
        dy = dy.T
    # X^T [D, N] dY [N, O], or dY^T [O, N] X [N, D]
    x, dy = (x.T, dy) if site.slot == 0 else (x, dy.T)
    return x, dy, attribute(site.product, "alpha", 1.0)


def sub_tokens(x, groups):
    """[N G, M], zero-padded where G does not divide D."""
    size = -(-x.shape[1] // groups)
    return np.pad(x, ((0, 0), (0, groups * size - x.shape[1]))).reshape(-1, size)


def direction_bound(sub, unit=UNIT, doubt_of_x=0.0):
    """The normalised mean over sub-tokens in float64, and how far a float32 evaluation may be from it, of an X
    that may itself be that far away.

    The sum s over R rows errs by at most |e| <= gamma(R) A with A the sum of absolute values (any order
    of summation; +1 for a mean in place of a sum). The norm moves by at most ||e||, squares, sum and root
    add gamma(M + 3), the quotient one rounding:
        |dv| <= (|e| + |v| ||e||) / (||s|| - ||e||), plus gamma(M + 4) of |v| and of that.
    Where ||e|| reaches ||s|| the data does not determine the direction, and the bound is infinite."""
    rows, size = sub.shape
    total = sub.sum(0)
    norm = np.linalg.norm(total)
    if norm == 0:
        return np.full(size, size**-0.5), gamma(3, unit) * np.full(size, size**-0.5)
    v = total / norm
    error = gamma(rows + 1, unit) * np.abs(sub).sum(0) + rows * doubt_of_x
    left = norm - np.linalg.norm(error)
    if left <= 0:
        return v, np.full(size, np.inf)
    doubt = (error + np.abs(v) * np.linalg.norm(error)) / left
    return v, doubt + gamma(size + 4, unit) * (np.abs(v) + doubt)


def gradient_bound(x, dy, groups, v, scale, unit=UNIT):
    """scale * v (x) (z^T dY) [D, O] in float64 for the given v, and its error bound in float32.

    A product of length n errs by at most gamma(n) times the product of absolute values (Higham 3.5):
    z by gamma(M) |X||v|; P = z^T dY by gamma(N) |z^|^T|dY| and by z's own error through |dY|; the outer
    product and the scale by three roundings more (v P, scale, and the original product's factor)."""
    tokens, features = x.shape
    sub = sub_tokens(x, groups)
    size = sub.shape[1]
    z = (sub @ v).reshape(tokens, groups)
    z_error = gamma(size, unit) * (np.abs(sub) @ np.abs(v)).reshape(tokens, groups)
    p = z.T @ dy
    p_error = z_error.T @ np.abs(dy) + gamma(tokens, unit) * ((np.abs(z) + z_error).T @ np.abs(dy))
    outer = lambda a, b: (a[:, None, :] * b[None, :, None]).reshape(groups * size, -1)[:features]
    error = (1 + gamma(3, unit)) * outer(p_error, np.abs(v)) + gamma(3, unit) * outer(np.abs(p), np.abs(v))
    return scale * outer(p, v), abs(scale) * error


def scale_gradient_bound(x, dy, groups, v, scale, unit=UNIT):
    """scale * v[m] * sum over n of z[n, g] dY[n, f] in float64, and its error bound in float32.

    As in `gradient_bound`, with an elementwise product in the place of P: z by gamma(M) |X||v|, the sum of N
    products by gamma(N), and two roundings for v and the scale."""
    tokens, features = x.shape
    sub = sub_tokens(x, groups)
    size = sub.shape[1]
    z = (sub @ v).reshape(tokens, groups)
    z_error = gamma(size, unit) * (np.abs(sub) @ np.abs(v)).reshape(tokens, groups)
    of_feature = np.arange(features) // size
    factor = scale * np.tile(v, groups)[:features]
    total = (z[:, of_feature] * dy).sum(0)
    error = (z_error[:, of_feature] * np.abs(dy)).sum(0)
    error += gamma(tokens, unit) * ((np.abs(z) + z_error)[:, of_feature] * np.abs(dy)).sum(0)
    return factor * total, np.abs(factor) * ((1 + gamma(3, unit)) * error + gamma(3, unit) * np.abs(total))


def reconstruction_bound(x, axis, groups, v, scaled, unit=UNIT):
    """z (x) scaled in float64, where z is that of X and v, and its error bound in float32: z by gamma(M) |X||v|,
    and one rounding."""
    rows = np.moveaxis(x, axis, -1)
    flat = rows.reshape(-1, rows.shape[-1])
    sub = sub_tokens(flat, groups)
    z, z_error = sub @ v, gamma(sub.shape[1], unit) * (np.abs(sub) @ np.abs(v))

    def spread(z):
        wide = (z[:, None] * scaled).reshape(len(flat), -1)[:, :flat.shape[1]]
        return np.moveaxis(wide.reshape(rows.shape), -1, axis)

    wanted = spread(z)
    return wanted, np.abs(spread(z_error)) * (1 + gamma(1, unit)) + gamma(1, unit) * np.abs(wanted)


def conv_weight_gradient(node, x, dy, shape):
    """dW of a ConvGrad node from X [B, C, H, W] and dY, by its definition; no groups, no automatic padding."""
    pads, strides = attribute(node, "pads"), attribute(node, "strides", [1, 1])
    dilations = attribute(node, "dilations", [1, 1])
    if attribute(node, "group", 1) != 1 or attribute(node, "auto_pad", b"NOTSET") != b"NOTSET" or x.ndim != 4:
        raise Mismatch(f"{node.name}: a convolution with groups, automatic padding or other than two axes")
    padded = np.pad(x, [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
    dw = np.zeros(shape)
    (high, wide) = dy.shape[2:]
    for i in range(shape[2]):
        for j in range(shape[3]):
            top, left = i * dilations[0], j * dilations[1]
            part = padded[:, :, top:top + (high - 1) * strides[0] + 1:strides[0],
                          left:left + (wide - 1) * strides[1] + 1:strides[1]]
            dw[:, :, i, j] = np.einsum("bohw,bchw->oc", dy, part)
    return dw


def ratio(error, bound):
    """Largest error / bound; where the bound is zero the error must be zero."""
    if error.size == 0:
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(error == 0, 0.0, error / bound)
    return float(np.max(np.where(np.isnan(quotient), np.inf, quotient)))


# --- the check -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Result:
    identical: int = 0
    sites: int = 0
    direction: float = 0.0
    gradient: float = 0.0
    optimised: float = 0.0
    undetermined: int = 0
    failures: list = dataclasses.field(default_factory=list)

    def __str__(self):
        text = (f"{self.identical} values bit-identical, {self.sites} gradients; largest error / bound: "
                f"v {self.direction:.2g}, dW {self.gradient:.2g}, optimised {self.optimised:.2g}")
        if self.undetermined:
            text += f"; {self.undetermined} mean directions not determined by the data"
        return text


def check_direction(site, init, v, x, result, unit=UNIT):
    size = -(-x.shape[1] // site.groups)
    if v.shape != (size,):
        result.failures.append(f"{site.gradient}: v has shape {v.shape}, expected ({size},)")
        return False
    # Squares, sum and root of a unit vector rounded to float32.
    if not abs(np.linalg.norm(v) - 1) <= gamma(size + 6, unit):
        result.failures.append(f"{site.gradient}: v has norm {np.linalg.norm(v)}, expected 1")
    if init == "random":
        return True
    if init == "none":
        wanted, bound = np.full(size, size**-0.5), gamma(3, unit) * np.full(size, size**-0.5)
    else:
        wanted, bound = direction_bound(sub_tokens(x, site.groups), unit)
    if not np.all(np.isfinite(bound)):
        result.undetermined += 1
        return True
    worst = ratio(np.abs(v - wanted), bound)
    result.direction = max(result.direction, worst)
    if not worst <= 1:
        result.failures.append(f"{site.gradient}: v is not the {init} direction (error / bound = {worst:.3g})")
    return True


def check(original, rewritten, init="batch-average", scale=1.0):
    """Checks a rewritten ModelProto (see `seeded`) against an `Original`."""
    result = Result()
    bare = unpinned(rewritten)
    found = list(sites(original, bare))
    result.sites = len(found)
    gradients = [s.gradient for s in found]
    touched = depends_on(bare, gradients)
    made = {o for n in rewritten.graph.node for o in n.output}
    operand_names = {n for s in found for o in s.product.input[:2] for n in chain(o, original.producers)}
    untouched = [n for n in original.outputs if n not in touched]
    untouched += sorted(n for n in operand_names if n in made and n in original.values and n not in untouched)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in rewritten.graph.initializer}
    after = run_all_values(rewritten, original.feed)
    before = original.values

    result.identical = len(untouched)
    result.failures += [f"{n}: not bit-identical" for n in untouched if before[n].tobytes() != after[n].tobytes()]

    behind = depends_on(original.model, gradients) - set(gradients)
    producers = {o: n for n in bare.graph.node for o in n.output}
    for name in sorted(behind):
        node = producers.get(name)
        if node is None or not same_node(original.producers[name], node):
            result.failures.append(f"{name}: the node behind the rewritten gradient changed")

    for site in found:
        check_site(site, constants, (before, after), (init, scale), result)

    check_optimised(original, rewritten, touched, after, result)
    return result


def check_values(name, problem, found, wanted, bound, result):
    worst = ratio(np.abs(found.astype(np.float64) - wanted), bound)
    result.gradient = max(result.gradient, worst)
    if not worst <= 1:
        result.failures.append(f"{name}: {problem} (error / bound = {worst:.3g})")


def check_site(site, constants, runs, settings, result):
    """A rewritten gradient, or what a node that stays reads; `runs` are the values before and after."""
    (before, after), (init, scale) = runs, settings
    if site.kind == "reconstructed":
        check_reconstructed(site, constants, runs, settings, result)
        return
    x, dy, alpha = matrices(site, before)
    v = np.asarray(constants[site.v] if site.v in constants else after[site.v])
    # v has the type of the activation, as z has.
    v, unit = v.astype(np.float64), max(UNIT, np.finfo(v.dtype).eps / 2)
    if init == "random" and site.v not in constants:
        result.failures.append(f"{site.gradient}: a random v must be a constant of the file")
    if not check_direction(site, init, v, x, result, unit):
        return
    if site.kind == "scale":
        dw, bound = scale_gradient_bound(x, dy, site.groups, v, scale, unit)
        dw, bound = (a.reshape(before[site.gradient].shape) for a in (dw, bound))
    else:
        dw, bound = gradient_bound(x, dy, site.groups, v, scale * alpha, unit)
    if site.kind == "weight" and site.slot == 1:
        dw, bound = dw.T, bound.T
    if after[site.gradient].shape != dw.shape:
        result.failures.append(f"{site.gradient}: shape {after[site.gradient].shape}, expected {dw.shape}")
        return
    check_values(site.gradient, "dW is not the formula's", after[site.gradient], dw, bound, result)


def check_reconstructed(site, constants, runs, settings, result):
    """What a node that stays reads in the place of X, and what it makes of it."""
    (before, after), (init, scale) = runs, settings
    node = site.product
    x = before[site.x].astype(np.float64)
    value = lambda name: np.asarray(constants[name] if name in constants else after[name]).astype(np.float64)
    scaled = value(site.v)
    # Where there is a scale, v is multiplied by it first.
    v = scaled / scale
    rows = np.moveaxis(x, site.axis, -1)
    if not check_direction(site, init, v, rows.reshape(-1, rows.shape[-1]), result):
        return
    wanted, bound = reconstruction_bound(x, site.axis, site.groups, v, scaled)
    # v of the file is this one up to the rounding of its product with the scale.
    bound = bound + (0 if scale == 1 else 2 * gamma(1)) * np.abs(wanted)
    found = after[site.reconstructed]
    check_values(site.gradient, "X is not z (x) v", found.reshape(wanted.shape), wanted, bound, result)
    others = [o for o in node.output if o and o != site.gradient]
    changed = [o for o in others if before[o].tobytes() != after[o].tobytes()]
    result.identical += len(others)
    result.failures += [f"{o}: not bit-identical, though it does not depend on X" for o in changed]
    if node.op_type == "ConvGrad":
        dy, shape = before[node.input[0]].astype(np.float64), before[site.gradient].shape
        dw = conv_weight_gradient(node, found.astype(np.float64), dy, shape)
        terms = dy.size // dy.shape[1]
        bound = gamma(terms) * conv_weight_gradient(node, np.abs(found).astype(np.float64), np.abs(dy), shape)
        check_values(site.gradient, "dW is not that of the reconstructed X", after[site.gradient], dw, bound, result)


def check_optimised(original, rewritten, touched, plain, result):
    """With the default optimisations: the same up to rounding, the rewritten gradients included.

    Only what leaves the graph anyway is read, since reading other values would switch fusions off."""
    default = run_as_is(rewritten, original.feed)
    changed = [n for n in original.outputs if n in touched]
    noise = dict(original.noise)
    if changed:
        noise.update(rounding_noise(rewritten, original.feed, plain, changed, trials=1))
    for name in original.outputs:
        if not np.issubdtype(plain[name].dtype, np.floating):
            worst = 0.0 if np.array_equal(plain[name], default[name]) else np.inf
        else:
            error = np.abs(plain[name].astype(np.float64) - default[name])
            worst = ratio(np.max(error, initial=0.0), np.float64(noise[name]))
        result.optimised = max(result.optimised, worst)
        if not worst <= 1:
            result.failures.append(
                f"{name}: default optimisations change it by more than rounding (error / noise = {worst:.3g})")


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("original")
    cli.add_argument("rewritten")
    cli.add_argument("--init", default="batch-average", choices=["batch-average", "none", "random"])
    cli.add_argument("--scale", type=float, default=1.0)
    cli.add_argument("--batch", type=int, default=6)
    cli.add_argument("--seq", type=int, default=16)
    opt = cli.parse_args()
    original = Original(opt.original, opt.batch, opt.seq)
    result = check(original, seeded(opt.rewritten), opt.init, opt.scale)
    print(f"{opt.rewritten}: {result}")
    for failure in result.failures:
        print(f"  FAILED {failure}")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
