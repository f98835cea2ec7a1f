#!/usr/bin/env python3
"""What PyTorch's partitioners keep for the backward pass, and what they recompute, on the models of the zoo.

    python benchmarks/partitioner.py --check
    python benchmarks/partitioner.py llama_256x4 --size 16,128 --json partitioner.json
    python benchmarks/partitioner.py llama_tiny mlp --size llama_tiny=8,32 --decompositions inductor --joint-passes

`torch.compile` traces each model with its loss (zoo.loss_of: mean cross-entropy; float32, CPU, static shapes; of the
default models all parameters are trained, of others what the case trains) with a backend that compiles nothing: it
takes the joint graph of forward and backward that AOTAutograd makes, has it partitioned, and keeps the two halves.
Going through `torch.compile` matters: called on a plain module, `aot_module_simplified` does not tell the partitioner
which inputs are parameters, and these are free to save. The partitions are

  * default: `default_partition`, which keeps all that the backward nodes read of the forward ones, as eager does,
  * min-cut: `min_cut_rematerialization_partition(compiler="inductor")` as it is configured, and with
    `activation_memory_budget` at each of --budgets. 0 keeps nothing but inputs and recomputes all. The others are a
    share of what plain min-cut saves (with parameters, and each view by its size) beyond the size of all inputs;
    where that is nothing, as in the small MLPs, PyTorch ignores the budget,
  * min-cut, aggressive: the same with `aggressive_recomputation`.

Counted for each:

  * saved bytes: the storages of the tensors that the forward graph hands to the backward graph, each storage once and
    as a whole, whatever the number of views of it. Storages of parameters, buffers and the batch count nothing: they
    are alive anyway. Integers and booleans count.
  * recomputed nodes: operators that occur in the forward graph and again, under the same name, in the backward graph;
    how many of these are views, which cost nothing; the bytes of the storages that the others make; and the FLOPs of
    the matrix products among them (2 m n k). What a backward operator computes again inside its own decomposition (the
    normalised input of a layer norm, the erf of GELU) occurs once in the graphs, and is not recomputation here.

By default operators are decomposed as for the exported ONNX graphs. `inductor` is the table of `torch.compile`, and
--joint-passes are its passes over the joint graph, which among others replace the ViTs' attention by a fused kernel.
With --check, forward and backward graphs are run on random data: gradients must be those of eager PyTorch, and the
storages of the saved tensors, as they are in memory, must have the counted bytes in sum.

Needs what models/export/requirements-torch.txt pins. Exit status 1 where a check fails.
"""

import argparse
import json
import operator
import pathlib
import sys
import warnings

import torch
import torch._functorch.config as functorch_config
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import default_partition, min_cut_rematerialization_partition
from torch.utils.flop_counter import flop_registry

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "models/export"), str(ROOT / "python")]
import zoo  # noqa: E402
from velora_opt._torch_export import _decompositions  # noqa: E402

MODELS = ["llama_256x4", "llama_768x4", "bert_tiny", "vit_tiny", "llama_tiny", "mlp", "deep_mlp", "digits_vit"]
SIZES = {"llama_256x4": (16, 128), "llama_768x4": (16, 128)}
MIB = 2**20
# Largest error of a gradient, relative to its largest entry; entries of less than FLOOR of the largest of all
# gradients are rounding noise (the gradient of a key's bias is zero in theory).
TOLERANCE, FLOOR = 1e-4, 1e-3


def partitions(budgets):
    """What is compared: name, budget, and the settings of functorch."""
    yield "default", None, {}
    yield "min-cut", 1.0, {}
    for budget in budgets:
        yield "min-cut", budget, {"activation_memory_budget": budget}
    yield "min-cut, aggressive", 1.0, {"aggressive_recomputation": True}


def decompositions(name):
    """The table of operators that are traced as others."""
    if name == "export":
        return _decompositions()
    if name == "inductor":
        from torch._inductor.decomposition import select_decomp_table

        return select_decomp_table()
    return {}


# ---- the graphs
class Recorder:
    """A backend of `torch.compile` that records the halves of the graph, and runs them as they are."""

    def __init__(self, kind, settings, opt):
        self.kind, self.settings, self.joint_passes = kind, settings, opt.joint_passes
        self.forward = self.backward = self.outputs = self.bytes_in_memory = None
        self.backend = aot_autograd(
            fw_compiler=self.run_forward,
            bw_compiler=lambda graph, _: boxed(lambda args: graph(*args)),
            partition_fn=self.partition,
            decompositions=decompositions(opt.decompositions),
        )

    def partition(self, joint, inputs, **given):
        assert self.forward is None, "the model became more than one graph"
        if self.kind == "default":
            halves = default_partition(joint, inputs, **given)
        else:
            # Without the parameters among them the partition would not be that of torch.compile.
            assert given["static_lifetime_input_indices"], "no input is known to be a parameter"
            with functorch_config.patch(self.settings):
                if self.joint_passes:
                    from torch._inductor.compile_fx import partition_fn

                    halves = partition_fn(joint, inputs, **given)
                else:
                    halves = min_cut_rematerialization_partition(joint, inputs, compiler="inductor", **given)
        self.forward, self.backward = halves
        self.outputs = given["num_fwd_outputs"]
        return halves

    def run_forward(self, graph, _):
        def run(args):
            given = {t.untyped_storage()._cdata for t in args}
            results = graph(*args)
            saved = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in results[self.outputs :]}
            self.bytes_in_memory = sum(size for storage, size in saved.items() if storage not in given)
            return results

        return boxed(run)

    def saved(self):
        """The nodes of the forward graph that are handed to the backward graph."""
        nodes = self.forward.graph.output_node().args[0][self.outputs :]
        taken = {n.name for n in self.backward.graph.nodes if n.op == "placeholder"}
        tangents = {name for name in taken if name.startswith("tangents")}
        assert {n.name for n in nodes} == taken - tangents and len(tangents) == 1, "the halves do not fit"
        return [n for n in nodes if isinstance(n.meta["val"], torch.Tensor)]


def boxed(run):
    """A function of one list of arguments, marked as AOTAutograd wants it."""
    run._boxed_call = True
    return run


# ---- what is in them
def viewed(node):
    """The node whose storage the result of this one lies in; None where it has a storage of its own.

    The operators' schemas say so: view, permute, t, transpose, expand, unsqueeze, slice, alias, detach and the like
    return `Tensor(a)` of an argument `Tensor(a)`. _unsafe_view is a view without saying it. reshape and contiguous,
    which may copy or not, are in no traced graph, only what they came to. --check compares all this with memory.
    """
    if node.op == "placeholder":
        return None
    if node.target is operator.getitem:
        # Of a list of views (split), or an output of its own of an operator that has several.
        return viewed(node.args[0])
    if not isinstance(node.target, torch._ops.OpOverload):
        raise ValueError(f"{node.target}: not known whether its result is a view")
    if node.target is torch.ops.aten._unsafe_view.default:
        return node.args[0]
    schema = node.target._schema
    alias = schema.returns[0].alias_info
    if alias is None:
        return None
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.before_set & alias.before_set:
            return node.args[position] if position < len(node.args) else node.kwargs[argument.name]
    raise ValueError(f"{node.target}: a view of none of its arguments")


def base(node):
    """The node that made the storage which the result of `node` lies in."""
    while (source := viewed(node)) is not None:
        node = source
    return node


def storage_bytes(node):
    """Bytes of the storages that a node makes."""
    value = node.meta["val"]
    tensors = value if isinstance(value, (tuple, list)) else [value]
    return sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, torch.Tensor))


def matmul_flops(nodes):
    """FLOPs of the matrix products (and fused attention) among nodes."""
    total = 0
    for node in nodes:
        if formula := flop_registry.get(getattr(node.target, "overloadpacket", None)):
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
            total += formula(*args, **kwargs, out_val=node.meta["val"])
    return total


def saved_tensors(recorder):
    """One entry for each saved tensor that is no view of an input; all but the first of one storage have 0 bytes."""
    entries, seen = [], set()
    for node in recorder.saved():
        made = base(node)
        if made.op == "placeholder":
            continue
        value = node.meta["val"]
        entries.append({
            "name": node.name,
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "bytes": 0 if made in seen else storage_bytes(made),
            "op": str(node.target),
            "storage_of": made.name,
            "storage_op": str(made.target),
        })
        seen.add(made)
    return entries


def recomputed(recorder):
    """Nodes of the backward graph that are copies of nodes of the forward graph; both keep the joint graph's names."""
    forward = {n.name: n for n in recorder.forward.graph.nodes if n.op == "call_function"}
    copies = [n for n in recorder.backward.graph.nodes if n.op == "call_function" and n.name in forward]
    for node in copies:
        assert node.target == forward[node.name].target, f"{node.name}: one name, two operators"
    return copies


def makes_nothing(node):
    """Views, and the selection of one output of an operator, which is counted with the operator."""
    return node.target is operator.getitem or viewed(node) is not None


# ---- the measurement
def measure(name, size, kind, budget, settings, opt):
    """One row; with --check, what is wrong with it under `errors`."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    case = zoo.CASES[name]
    model = case.model().train()
    x, y = case.batch(*size)
    recorder = Recorder(kind, settings, opt)
    compiled = torch.compile(
        lambda x, y: zoo.loss_of(model(x), y), backend=recorder.backend, fullgraph=True, dynamic=False
    )
    loss = compiled(x, y)
    tensors, copies = saved_tensors(recorder), recomputed(recorder)
    working = [n for n in copies if not makes_nothing(n)]
    row = {
        "model": name,
        "batch": size[0],
        "sequence": size[1] if len(size) > 1 else None,
        "decompositions": opt.decompositions,
        "joint_passes": opt.joint_passes and kind != "default",
        "partition": kind,
        "budget": budget,
        "saved_bytes": sum(t["bytes"] for t in tensors),
        "saved_tensors": tensors,
        "recomputed_nodes": len(copies),
        "recomputed_views": len(copies) - len(working),
        "recomputed_bytes": sum(map(storage_bytes, working)),
        "recomputed_matmul_flops": matmul_flops(working),
        "forward_matmul_flops": matmul_flops(recorder.forward.graph.nodes),
    }
    return row, check(model, loss, (x, y), row, recorder) if opt.check else []


def check(model, loss, batch, row, recorder):
    """What is wrong with the graphs of a row, or with its count, in words."""
    errors = []
    if recorder.bytes_in_memory != row["saved_bytes"]:
        errors.append(f"{row['saved_bytes']} bytes counted, {recorder.bytes_in_memory} in memory")
    loss.backward()
    got = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    eager = zoo.loss_of(model(batch[0]), batch[1])
    eager.backward()
    want = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    if abs(loss - eager) > TOLERANCE * abs(eager):
        errors.append(f"the loss is {loss.item()}, eager {eager.item()}")
    least = FLOOR * max(g.abs().max() for g in want.values())
    for name, gradient in want.items():
        error = (got[name] - gradient).abs().max() / max(gradient.abs().max(), least)
        if not error <= TOLERANCE:
            errors.append(f"the gradient of {name} is off by {error:.1e}")
    return errors


def table_line(row):
    sizes = str(row["batch"]) + (f" x {row['sequence']}" if row["sequence"] else "")
    budget = "-" if row["budget"] is None else f"{row['budget']:g}"
    counted = sum(t["bytes"] > 0 for t in row["saved_tensors"])
    share = row["recomputed_matmul_flops"] / max(row["forward_matmul_flops"], 1)
    cells = [
        row["model"], sizes, row["partition"], budget, row["saved_bytes"], f"{row['saved_bytes'] / MIB:.2f}", counted,
        row["recomputed_nodes"], row["recomputed_views"], f"{row['recomputed_bytes'] / MIB:.2f}",
        f"{row['recomputed_matmul_flops'] / 1e9:.3f}", f"{100 * share:.0f} %",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def size_option(text):
    """`16`, `16,128` or `llama_tiny=8,32`: the model, or None for all, and the sizes."""
    model, _, sizes = text.rpartition("=")
    if model and model not in zoo.CASES:
        raise argparse.ArgumentTypeError(f"no model {model}")
    try:
        return model or None, tuple(int(s) for s in sizes.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: not sizes as in 16,128") from None


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("models", nargs="*", metavar="MODEL", help=f"cases of the zoo (default: {' '.join(MODELS)})")
    cli.add_argument("--size", action="append", type=size_option, default=[], metavar="[MODEL=]BATCH[,SEQUENCE]",
                     help="of all models or one; models without a sequence take the first (may repeat)")
    cli.add_argument("--budgets", nargs="*", type=float, default=[0.75, 0.5, 0.25, 0.0], metavar="B")
    cli.add_argument("--decompositions", choices=["export", "inductor", "none"], default="export")
    cli.add_argument("--joint-passes", action="store_true", help="with Inductor's passes before min-cut partitions")
    cli.add_argument("--check", action="store_true", help="run the graphs, and compare gradients and bytes")
    cli.add_argument("--json", type=pathlib.Path, metavar="F")
    opt = cli.parse_args()
    if unknown := [m for m in opt.models if m not in zoo.CASES]:
        cli.error(f"no model {unknown[0]}")
    warnings.filterwarnings("ignore")
    given = dict(opt.size)
    rows, failed = [], False
    print(f"PyTorch {torch.__version__}, decompositions: {opt.decompositions}\n")
    print("| model | batch | partition | budget | saved bytes | MiB | storages | recomputed nodes | of these views "
          "| MiB recomputed | GFLOP recomputed | of the forward's |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for name in opt.models or MODELS:
        usual = zoo.CASES[name].example_size
        size = given.get(name) or given.get(None) or SIZES.get(name, usual)
        if len(size) < len(usual):
            cli.error(f"{name} needs a batch and a sequence")
        for kind, budget, settings in partitions(opt.budgets):
            row, errors = measure(name, size[: len(usual)], kind, budget, settings, opt)
            rows.append(row)
            print(table_line(row), flush=True)
            for error in errors:
                failed = True
                print(f"{name}, {kind}, budget {budget}: {error}", file=sys.stderr, flush=True)
    if opt.check:
        print(f"\nChecked: {'FAILED' if failed else 'all gradients and all bytes are right'}.")
    if opt.json:
        opt.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
