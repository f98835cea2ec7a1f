#!/usr/bin/env python3
"""Check that Netron opens what velora-opt writes, and shows what is in the file.

    python check_netron.py [--velora ../../target/release/velora-opt] [--graphs REGEX] [--plant]

Every form (`forms.py`) of every graph in models/ is opened by Netron's own code in node (`netron_dump.mjs`). What it
shows must be what the onnx package reads: format, operator sets, inputs and outputs with types, nodes in order with
names, operators, values, attributes and metadata (velora.* among it), functions with their bodies, values of
initialisers. Calls of ai.velora must lead to the bodies of their functions. Netron draws a Constant that one node
reads as an initialiser and lists no input that has a default: the same is expected of it here.

Netron's sources come with its package on PyPI (npm has none); they are copied to target/netron, because node takes
them for modules only where a package.json says so. `--plant` breaks files in some ways, each of which must be found.
Needs node 18 or newer. Exit status 1 where anything differs.
"""

import argparse
import collections
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import netron
import onnx

import forms

HERE = pathlib.Path(__file__).resolve().parent
SHOWN = 5
# Where Netron calls types otherwise than NumPy.
TYPES = {"BOOL": "boolean", "FLOAT": "float32", "DOUBLE": "float64"}


def netron_sources(folder):
    """Netron's sources as modules, in a folder of their own."""
    package = pathlib.Path(netron.__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    for file in [*package.glob("*.js"), *package.glob("*.json")]:
        shutil.copy(file, folder)
    (folder / "package.json").write_text('{"type": "module"}\n', encoding="utf-8")
    return folder


def dump(sources, paths):
    command = ["node", "--max-old-space-size=2048", str(HERE / "netron_dump.mjs"), str(sources), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None, done.stderr.strip()
    return [json.loads(line) for line in done.stdout.splitlines()], None


# --- what Netron should show, from the file ------------------------------------------------------


def type_text(proto):
    tensor = proto.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
    dims = [d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?") for d in tensor.shape.dim]
    return TYPES.get(kind, kind.lower()) + (f"[{','.join(dims)}]" if dims else "")


def domain(name):
    return name or "ai.onnx"


def drawn(nodes, outputs):
    """The nodes that are drawn: all but Constants that become initialisers."""
    # Netron counts here a node's reads of one value once for each; a name that is read twice stays a node.
    reads = collections.Counter(name for node in nodes for name in node.input)
    hidden = {
        node.output[0]
        for node in nodes
        if node.op_type == "Constant" and [a.name for a in node.attribute] == ["value"]
        and reads[node.output[0]] == 1 and node.output[0] not in outputs
    }
    return [node for node in nodes if not (node.op_type == "Constant" and node.output[0] in hidden)]


def node_wanted(node, bodies):
    return {
        "name": node.name,
        "op": node.op_type,
        "domain": domain(node.domain),
        "body": bodies.get((node.domain, node.op_type)),
        "inputs": [name for name in node.input if name],
        "outputs": [name for name in node.output if name],
        "attributes": [a.name for a in node.attribute],
        "metadata": [[p.key, p.value] for p in node.metadata_props],
    }


def wanted(model):
    """What a dump of the model should say, by key."""
    graph = model.graph
    held = {tensor.name for tensor in graph.initializer}
    bodies = {(f.domain, f.name): len(drawn(f.node, f.output)) for f in model.functions}
    return {
        "format": f"ONNX v{model.ir_version}",
        "imports": [f"{domain(o.domain)} v{o.version}" for o in model.opset_import],
        "metadata": [[p.key, p.value] for p in model.metadata_props],
        "inputs": [[i.name, type_text(i.type)] for i in graph.input if i.name not in held],
        "outputs": [[o.name, type_text(o.type)] for o in graph.output],
        "nodes": [node_wanted(n, bodies) for n in drawn(graph.node, {o.name for o in graph.output})],
        "functions": [
            {
                "name": f.name, "domain": f.domain, "inputs": list(f.input), "outputs": list(f.output),
                "nodes": [node_wanted(n, bodies) for n in drawn(f.node, f.output)],
            }
            for f in model.functions
        ],
    }


# --- comparison ----------------------------------------------------------------------------------


def differences(found, expected, where=""):
    """Sentences, one for each place where the two differ."""
    if isinstance(expected, dict):
        for key in expected:
            yield from differences(found.get(key), expected[key], f"{where}.{key}" if where else key)
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for number, (one, other) in enumerate(zip(found, expected)):
            yield from differences(one, other, f"{where}[{number}]")
    elif isinstance(expected, list) and isinstance(found, list):
        yield f"{where}: Netron shows {len(found)}, the file has {len(expected)}"
    elif found != expected:
        yield f"{where}: Netron shows {found!r}, the file has {expected!r}"


def check(found, model):
    """What is wrong with a dump of a model."""
    yield from differences(found, wanted(model))
    read = {name for node in model.graph.node for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in read:
            shown = found["initializers"].get(tensor.name)
            if shown is None or shown[1] != (0 not in tensor.dims):
                yield f"initialiser {tensor.name}: Netron shows {shown}"
    for node in found["nodes"]:
        if node["domain"] == "ai.velora" and not node["body"]:
            yield f"{node['name']}: {node['op']} leads to no body"
        # Some of ONNX Runtime's training operators lie in the standard domain (MaxPoolGrad).
        standard = node["domain"] == "ai.onnx" and onnx.defs.has(node["op"])
        if standard and not node["known"]:
            yield f"{node['name']}: Netron does not know {node['op']}"


# --- planted faults ------------------------------------------------------------------------------


def planted(model):
    """Pairs of a fault's name and a model that Netron shows otherwise than `model`."""
    def copy():
        return onnx.ModelProto.FromString(model.SerializeToString())

    broken = copy()
    del broken.functions[0]
    yield "a function is gone", broken
    broken = copy()
    call = next(n for n in broken.graph.node if n.domain == "ai.velora")
    call.metadata_props[0].value += "x"
    yield "metadata of a call", broken
    broken = copy()
    broken.graph.node[3].name += "x"
    yield "the name of a node", broken
    broken = copy()
    broken.graph.output[1].type.tensor_type.shape.dim[0].dim_value += 1
    yield "the shape of an output", broken
    broken = copy()
    del broken.functions[0].node[-1]
    yield "a node in a body", broken


def check_planted(tool, sources, folder):
    written = forms.write(tool, forms.ROOT / "models/aot/mlp.onnx", "functions", folder)
    model = onnx.load(written.path)
    failures = 0
    for fault, broken in planted(model):
        path = folder / "planted.onnx"
        path.write_bytes(broken.SerializeToString())
        dumps, error = dump(sources, [path])
        found = [error] if error else list(check(dumps[0], model))
        print(f"planted: {fault}: {'found: ' + found[0] if found else 'NOT FOUND'}")
        failures += not found
    return failures


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--velora", default=forms.default_tool())
    cli.add_argument("--graphs", default="", help="only graphs whose folder/name this matches")
    cli.add_argument("--plant", action="store_true", help="only plant faults, and see that they are found")
    opt = cli.parse_args()
    sources = netron_sources(forms.ROOT / "target/netron")
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        if opt.plant:
            return 1 if check_planted(opt.velora, sources, folder) else 0
        chosen = [g for g in forms.graphs() if re.search(opt.graphs, f"{g.parent.name}/{g.stem}")]
        files = [w for g in chosen for form in forms.FORMS if (w := forms.write(opt.velora, g, form, folder))]
        failures = nodes = calls = 0
        dumps, error = dump(sources, [w.path for w in files])
        if error:
            print(f"FAILED Netron stopped: {error}")
            return 1
        for written, found in zip(files, dumps, strict=True):
            wrong = list(check(found, onnx.load(written.path)))
            failures += len(wrong)
            nodes += len(found["nodes"])
            calls += sum(node["domain"] == "ai.velora" for node in found["nodes"])
            for sentence in wrong[:SHOWN]:
                print(f"  FAILED {written.name}: {sentence}")
    print(f"Netron {netron.__version__}: {len(files)} files of {len(chosen)} graphs, {nodes} nodes, "
          f"{calls} calls of ai.velora, {failures} failures")
    return 1 if failures or not calls else 0


if __name__ == "__main__":
    sys.exit(main())
