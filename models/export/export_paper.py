"""Export the graphs of the systems that the paper compares, each checked against eager PyTorch, to one archive.

    python export_paper.py --all --out ../paper             # graphs.zip
    python export_paper.py --case vit_lora --out /tmp/raw   # vit_lora.onnx and manifest.json
    python export_paper.py --case minilm_lora --out /tmp/raw --weights model.safetensors
    python export_paper.py --list

Needs the packages in requirements-torch.txt. Each graph is run in ONNX Runtime on two batches, the exported shape and
another one, before it is written. The graphs hold no weights. The archive has the same bytes each time; ../README.md
says what is in it.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
import zipfile

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.append(os.path.join(HERE, "../paper"))
import paper_zoo  # noqa: E402
import quantise  # noqa: E402
import zoo  # noqa: E402
from velora_export import check_against_eager, export_training_graph  # noqa: E402

# Rows and steps of the batch that is traced, and of another one for the check.
EXAMPLE, OTHER = (4, 16), (3, 9)

# The layers of a BERT block, and behind `query`, `key` and `value` what PyTorch's own encoder layer calls them.
BERT_PARTS = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
)  # fmt: skip
TORCH_PARTS = ("self_attn.out_proj", "norm1", "linear1", "linear2", "norm2")


# ---- weights of 4 bits
# How a weight is stored and read back, the type of its codes, and the length of a block.
KINDS = {
    "int4": (quantise.int4, quantise.from_int4, TensorProto.INT4, 32),
    "nf4": (quantise.nf4, quantise.from_nf4, TensorProto.UINT4, 64),
}


def dequantise(weight, shape, kind):
    """Inputs and nodes that make a weight of its codes and scales, and the initialisers that they need."""
    *_, code_type, block = KINDS[kind]
    codes, scales = f"{weight}.codes", f"{weight}.scales"
    rows, width = shape
    blocks = [rows, width // block] + ([1] if kind == "nf4" else [])
    inputs = [
        helper.make_tensor_value_info(codes, code_type, shape),
        helper.make_tensor_value_info(scales, TensorProto.FLOAT, blocks),
    ]
    if kind == "int4":
        return inputs, [helper.make_node("DequantizeLinear", [codes, scales], [weight], axis=1, block_size=block)], []
    constants = [
        numpy_helper.from_array(np.float32(1), "nf4.one"),
        numpy_helper.from_array(quantise.NF4, "nf4.table"),
        numpy_helper.from_array(np.array([rows, width // block, block]), f"nf4.blocks_{rows}x{width}"),
        numpy_helper.from_array(np.array(shape), f"nf4.whole_{rows}x{width}"),
    ]
    names = {step: f"{weight}.{step}" for step in ("float", "index", "levels", "blocks", "scaled")}
    nodes = [
        helper.make_node("DequantizeLinear", [codes, "nf4.one"], [names["float"]]),
        helper.make_node("Cast", [names["float"]], [names["index"]], to=TensorProto.INT32),
        helper.make_node("Gather", ["nf4.table", names["index"]], [names["levels"]], axis=0),
        helper.make_node("Reshape", [names["levels"], constants[2].name], [names["blocks"]]),
        helper.make_node("Mul", [names["blocks"], scales], [names["scaled"]]),
        helper.make_node("Reshape", [names["scaled"], constants[3].name], [weight]),
    ]
    return inputs, nodes, constants


def store_in_4_bits(proto, weights, kind):
    """Replace each of these inputs by its codes and scales; forward and backward read one dequantised weight."""
    graph = proto.graph
    inputs, made = [], {}
    for value in graph.input:
        if value.name not in weights:
            inputs.append(value)
            continue
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        new, nodes, constants = dequantise(value.name, shape, kind)
        inputs += new
        made[value.name] = nodes
        known = {constant.name for constant in graph.initializer}
        graph.initializer.extend(constant for constant in constants if constant.name not in known)
    replace(graph.input, inputs)
    insert(graph, made)


# ---- graphs
def replace(field, values):
    """Give a repeated field other values."""
    values = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(values)


def insert(graph, made):
    """Add the nodes that make each of these values, where it is read first."""
    nodes = []
    for node in graph.node:
        for name in node.input:
            nodes += made.pop(name, [])
        nodes.append(node)
    assert not made, f"read by no node: {', '.join(made)}"
    replace(graph.node, nodes)


def rename_inputs(proto, names):
    """Give the batch inputs, which come last, these names."""
    graph = proto.graph
    new = {value.name: name for value, name in zip(graph.input[-len(names) :], names, strict=True)}
    taken = {name for node in graph.node for name in node.output} | {value.name for value in graph.input[: -len(names)]}
    assert not taken & set(names)
    for value in graph.input[-len(names) :]:
        value.name = new[value.name]
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = new.get(name, name)


def expand_constants(graph):
    """Store a large constant of equal elements as one of them: the zeros that a gradient's rows are put into."""
    made, kept = {}, []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.size <= 4096 or (values != values.flat[0]).any():
            kept.append(tensor)
            continue
        one, shape = f"{tensor.name}.element", f"{tensor.name}.shape"
        kept += [numpy_helper.from_array(values.flat[0], one), numpy_helper.from_array(np.array(values.shape), shape)]
        made[tensor.name] = [helper.make_node("Expand", [one, shape], [tensor.name])]
    replace(graph.initializer, kept)
    insert(graph, made)


def slim(proto):
    """Drop what no tool needs: shapes that can be inferred, the exporter's notes, and names of nodes."""
    graph = proto.graph
    expand_constants(graph)
    del graph.value_info[:]
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    for node in graph.node:
        node.name = ""
    assert not proto.functions


def quantised(model, kind):
    """The model with its frozen projections rounded in place, and what the graph is fed for them."""
    weights = [layer["adapts"] for layer in paper_zoo.linear_layers(model) if layer["role"] == "lora_A"]
    params, stored = dict(model.named_parameters()), {}
    for weight in weights:
        store, read, _, block = KINDS[kind]
        codes, scales = store(params[weight].detach().numpy(), block)
        params[weight].data.copy_(torch.from_numpy(read(codes, scales, block)))
        # Of NF4 the graph has an axis of one more, for the entries of a block.
        stored[f"{weight}.codes"] = codes
        stored[f"{weight}.scales"] = scales[..., None] if kind == "nf4" else scales
    return weights, stored


def with_codes(proto, stored, kind):
    """A copy with the codes in it: NumPy has no integers of 4 bits to feed."""
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    for name, codes in stored.items():
        if codes.dtype != np.float32:
            whole.graph.initializer.append(helper.make_tensor(name, KINDS[kind][2], codes.shape, codes.flatten()))
    return whole


# ---- the manifest
def describe(case, model, proto, weights):
    """The entry of one graph."""
    named = dict(model.named_parameters())
    ways = paper_zoo.initial(model)
    sources = {f"{weight}.{part}": weight for weight in weights for part in ("codes", "scales")}
    inputs, batch = [], []
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        entry = {
            "name": value.name,
            "dtype": TensorProto.DataType.Name(tensor.elem_type).lower().replace("float", "float32"),
            "shape": [dim.dim_param or dim.dim_value for dim in tensor.shape.dim],
        }
        if value.name in case.inputs:
            batch.append(entry)
            continue
        source = sources.get(value.name, value.name)
        entry["trained"] = named[source].requires_grad
        if source == value.name:
            entry["init"] = ways[source]
        else:
            block = KINDS[case.stored][3]
            codes, scales = f"{source}.codes", f"{source}.scales"
            entry["quantised"] = {
                "base": paper_zoo.base_of(source), "kind": case.stored, "block": block,
                "codes": codes, "scales": scales,
            }  # fmt: skip
        if not any(part in source.split(".") for part in (*paper_zoo.DOWN, *paper_zoo.UP, "gamma", "beta")):
            entry["base_name"] = paper_zoo.base_of(source)
        inputs.append(entry)
    assert [entry["name"] for entry in batch] == list(case.inputs)
    scales = {module.scale for module in model.modules() if isinstance(module, zoo.LoraLinear)}
    sizes = {**case.sizes, **case.adapter}
    if scales:
        (sizes["scale"],) = scales
    return {
        "full": case.full,
        "opset": proto.opset_import[0].version,
        "sizes": sizes,
        "inputs": inputs,
        "batch": batch,
        "outputs": [value.name for value in proto.graph.output],
        "layers": paper_zoo.linear_layers(model),
        "nodes": len(proto.graph.node),
    }


# ---- real weights
def load(model, tensors):
    """Give every parameter that the model trained in full has, but the classifier, its real value."""
    params = dict(model.named_parameters())
    used = set()
    for name, param in params.items():
        base = paper_zoo.base_of(name)
        if base in tensors:
            param.data.copy_(tensors[base])
            used.add(base)
        else:
            assert "lora_" in name or name.startswith("classifier"), f"no value of {name}"
    left = {name for name in tensors if not name.startswith("pooler.")} - used
    assert not left, f"not used: {', '.join(sorted(left))}"


def plain_embedding(tensors, sizes, ids, mask):
    """The pooled embedding as PyTorch's own encoder layers give it, of the tensors alone."""
    x = tensors["embeddings.word_embeddings.weight"][ids] + tensors["embeddings.token_type_embeddings.weight"][0]
    x = x + tensors["embeddings.position_embeddings.weight"][: ids.shape[1]]
    norm = {part: tensors[f"embeddings.LayerNorm.{part}"] for part in ("weight", "bias")}
    x = torch.nn.functional.layer_norm(x, x.shape[-1:], **norm, eps=sizes["eps"])
    for i in range(sizes["layers"]):
        layer = torch.nn.TransformerEncoderLayer(
            sizes["dim"], sizes["heads"], sizes["hidden"], dropout=0.0, activation="gelu",
            layer_norm_eps=sizes["eps"], batch_first=True,
        )  # fmt: skip
        state = {}
        for part in ("weight", "bias"):
            values = [tensors[f"encoder.layer.{i}.{name}.{part}"] for name in BERT_PARTS]
            state[f"self_attn.in_proj_{part}"] = torch.cat(values[:3])
            state |= {f"{name}.{part}": value for name, value in zip(TORCH_PARTS, values[3:], strict=True)}
        layer.load_state_dict(state)
        x = layer.train()(x, src_key_padding_mask=mask == 0)
    return (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


def check_real(case, model, proto, path):
    """The graph with real weights: its pooled embedding, and loss, logits and gradients as always."""
    tensors = {name: tensor for name, tensor in load_file(path).items() if tensor.dtype == torch.float32}
    load(model, tensors)
    for name, param in model.named_parameters():  # an adapter begins as nothing
        param.data.mul_(0.0 if name.endswith("lora_B.weight") else 1.0)
    (ids, mask), labels = case.batch(case.sizes, *EXAMPLE)
    with torch.no_grad():
        want, got = plain_embedding(tensors, case.sizes, ids, mask), model.embed(ids, mask)
    error = float((want - got).abs().max())
    assert error <= 1e-5 * float(want.abs().max()), f"embedding: error {error:.3g}"
    worst = check(case, proto, model, ((ids, mask), labels))
    print(f"  real weights: embedding to {error:.1e} of {float(want.abs().max()):.1f}; {nearest([worst])}", flush=True)


# ---- export
def check(case, proto, model, batch, stored=None):
    """Compare the graph with eager PyTorch on a batch."""
    *names, labels = case.inputs
    given = {"labels_name": labels, "logits": case.logits, "names": names, "stored": stored}
    return check_against_eager(proto, model, zoo.loss_of, batch, **given)


def nearest(worst):
    """What of several comparisons came closest to its limit, in words."""
    worst = max(worst, key=lambda w: w["error"] / w["allowed"] if w["allowed"] else 0.0)
    return f"nearest to its limit {worst['output']}: {worst['error']:.1e} of {worst['allowed']:.1e}"


def export_case(name, real_weights=None):
    """One case's graph, checked, as bytes, and its entry of the manifest."""
    case = paper_zoo.CASES[name]
    torch.manual_seed(0)
    model = case.model(**case.sizes, **case.adapter).train()
    with torch.no_grad():  # no scale is exactly one, and no bias exactly zero, while it is checked
        for param in model.parameters():
            param.add_(torch.randn_like(param) * 0.02)
    weights, stored = quantised(model, case.stored) if case.stored else ([], {})
    batch = case.batch(case.sizes, *EXAMPLE)
    proto = export_training_graph(
        model,
        zoo.loss_of,
        batch,
        dynamic_axes=case.axes,
        opset=case.opset,
        labels_name=case.inputs[-1],
        logits=case.logits,
    )
    assert [value.name for value in proto.graph.input[: -len(case.inputs)]] == [n for n, _ in model.named_parameters()]
    rename_inputs(proto, case.inputs)
    slim(proto)
    if case.stored:
        store_in_4_bits(proto, weights, case.stored)
    onnx.checker.check_model(proto, full_check=True)

    whole = with_codes(proto, stored, case.stored) if case.stored else proto
    fed = {key: value for key, value in stored.items() if value.dtype == np.float32}
    worst = [check(case, whole, model, b, fed) for b in (batch, case.batch(case.sizes, *OTHER))]
    data = proto.SerializeToString(deterministic=True)
    print(f"{name}: {len(proto.graph.node)} nodes, {len(data)} bytes; {nearest(worst)}", flush=True)
    if real_weights:
        check_real(case, model, proto, real_weights)
    return data, describe(case, model, proto, weights)


def write(path, data):
    """Write a file, whole or not at all."""
    handle, partial = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.chmod(partial, 0o644)
    os.replace(partial, path)


def pack(files):
    """A zip archive of these files, whose bytes say nothing of when and where."""
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(files):
                entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                entry.create_system = 3
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, files[name], zipfile.ZIP_DEFLATED, 9)
        file.seek(0)
        return file.read()


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = cli.add_mutually_exclusive_group(required=True)
    what.add_argument("--case", action="append", choices=sorted(paper_zoo.CASES), help="may repeat; files as they are")
    what.add_argument("--all", action="store_true", help="every case, packed to graphs.zip")
    what.add_argument("--list", action="store_true", help="print the case names")
    cli.add_argument("--out", default="../paper", help="folder to write to (default: ../paper)")
    cli.add_argument("--weights", help="all-MiniLM-L6-v2's model.safetensors: check minilm_* with them too")
    opt = cli.parse_args()
    if opt.list:
        print("\n".join(paper_zoo.CASES))
        return 0
    warnings.filterwarnings("ignore")
    files, manifest, failed = {}, {}, 0
    for name in paper_zoo.CASES if opt.all else opt.case:
        try:
            real = opt.weights if name.startswith("minilm") else None
            files[f"{name}.onnx"], manifest[name] = export_case(name, real)
        except Exception as error:  # one failing model must not hide the others
            failed += 1
            print(f"{name}: FAILED {type(error).__name__}: {str(error)[:1500]}", file=sys.stderr)
    files["manifest.json"] = (json.dumps(manifest, indent=1) + "\n").encode()
    if failed and opt.all:
        return 1
    os.makedirs(opt.out, exist_ok=True)
    if opt.all:
        size = sum(map(len, files.values()))
        files = {"graphs.zip": pack(files)}
        print(f"graphs.zip: {len(files['graphs.zip'])} bytes, unpacked {size}")
    for name, data in files.items():
        write(os.path.join(opt.out, name), data)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
