"""Export the zoo's training graphs from PyTorch, each checked against eager PyTorch.

    python export_models.py --case llama_tiny --out ../aot
    python export_models.py --all --out ../aot
    python export_models.py --list

Needs the packages in requirements-torch.txt. Each graph is run in ONNX Runtime on two batches,
the exported shape and another one (symbolic axes must really be symbolic), before it is written.
"""

import argparse
import os
import sys
import tempfile
import warnings

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import zoo  # noqa: E402
from velora_export import check_against_eager, export_training_graph  # noqa: E402


def export_case(name, out, *, opset, static, param_values):
    """Export one case to `<out>/<name>.onnx`; nothing is written if the check fails."""
    case = zoo.CASES[name]
    torch.manual_seed(0)
    model = case.model().train()
    batch = case.batch(*case.example_size)
    given = {"labels_name": case.labels, "logits": case.logits, "sgd": case.sgd}
    proto = export_training_graph(
        model,
        zoo.loss_of,
        batch,
        dynamic_axes=() if static else case.axes,
        opset=opset,
        param_values=param_values or case.param_values,
        **given,
    )
    checks = [batch] if static else [batch, case.batch(*case.other_size)]
    worst = [check_against_eager(proto, model, zoo.loss_of, b, **given) for b in checks]

    os.makedirs(out, exist_ok=True)
    path = os.path.join(out, f"{name}.onnx")
    handle, partial = tempfile.mkstemp(dir=out, suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        file.write(proto.SerializeToString(deterministic=True))
    os.chmod(partial, 0o644)
    os.replace(partial, path)
    nearest = max(worst, key=lambda w: w["error"] / w["allowed"] if w["allowed"] else 0.0)
    print(
        f"{name}: {len(proto.graph.node)} nodes, {os.path.getsize(path)} bytes; nearest to its "
        f"limit {nearest['output']}: {nearest['error']:.1e} of {nearest['allowed']:.1e}",
        flush=True,
    )


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = cli.add_mutually_exclusive_group(required=True)
    what.add_argument("--case", action="append", choices=sorted(zoo.CASES), help="may repeat")
    what.add_argument("--all", action="store_true")
    what.add_argument("--list", action="store_true", help="print the case names")
    cli.add_argument("--out", default="aot", help="folder to write to (default: aot)")
    cli.add_argument("--opset", type=int, default=18)
    cli.add_argument("--static", action="store_true", help="bake the batch shape in")
    cli.add_argument("--param-values", action="store_true", help="store the parameter values too")
    opt = cli.parse_args()
    if opt.list:
        print("\n".join(zoo.CASES))
        return 0
    warnings.filterwarnings("ignore")
    failed = 0
    for name in zoo.CASES if opt.all else opt.case:
        try:
            export_case(
                name, opt.out, opset=opt.opset, static=opt.static, param_values=opt.param_values
            )
        except Exception as error:  # one failing model must not hide the others
            failed += 1
            print(f"{name}: FAILED {type(error).__name__}: {str(error)[:1500]}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
