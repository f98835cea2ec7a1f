"""Measure how far one run of an ONNX graph raises the resident memory of ONNX Runtime.

    python measure_memory.py ../../models/aot/deep_mlp.onnx --dim batch=8192
    python measure_memory.py a.onnx b.onnx --dim batch=64 --dim seq=128 --repeat 3 --json out.json

Needs onnxruntime and numpy, and Linux (peak resident memory is read from /proc). Every
measurement is a process of its own, because freed memory stays with the allocator. It runs the
graph once on random inputs, with ONNX Runtime's default session options, on the CPU: the memory
arena and memory pattern are on. `growth_bytes` is the peak resident size during that first run
minus the resident size just before it, so the model, the session and the inputs are not in it.

The JSON result is one object: `schema`, `versions`, `dims`, `options`, and `measurements`, a list
with one entry per model and repetition.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time

SCHEMA = "velora-memory/1"


def feeds(inputs, dims, int_high, seed):
    """Random values for the inputs; floats are scaled so that activations stay of order one."""
    import numpy as np

    random = np.random.default_rng(seed)
    values = {}
    for spec in inputs:
        shape = []
        for size in spec.shape:
            size = dims.get(size, size)
            if not isinstance(size, int):
                raise SystemExit(f"{spec.name}: give a size with --dim {size or 'NAME'}=N")
            shape.append(size)
        kind = spec.type.removeprefix("tensor(").removesuffix(")")
        if kind in ("float", "float16", "double"):
            dtype = {"float": np.float32, "float16": np.float16, "double": np.float64}[kind]
            fan_in = shape[-1] if shape else 1
            value = random.standard_normal(shape, dtype=np.float32) / np.float32(fan_in**0.5)
            values[spec.name] = np.asarray(value, dtype=dtype)
        elif kind in ("int64", "int32"):
            values[spec.name] = random.integers(0, int_high, shape, dtype=kind)
        elif kind == "bool":
            values[spec.name] = np.ones(shape, dtype=bool)
        else:
            raise SystemExit(f"{spec.name}: inputs of type {spec.type} are not supported")
    return values


def status_bytes(key):
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {key}")


def reset_peak():
    with open("/proc/self/clear_refs", "w", encoding="ascii") as refs:
        refs.write("5")


def measure(job):
    """Run in the child process: one session, one run."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # warnings off; changes nothing that is measured
    if not job["arena"]:
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
    if not job.get("optimise", True):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if job["order"] == "priority":
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if job["threads"]:
        options.intra_op_num_threads = job["threads"]
    session = ort.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
    feed = feeds(session.get_inputs(), job["dims"], job["int_high"], job["seed"])

    reset_peak()
    before = status_bytes("VmRSS")
    start = time.perf_counter()
    outputs = session.run(None, feed)
    seconds = time.perf_counter() - start
    peak = status_bytes("VmHWM")
    names = [o.name for o in session.get_outputs()]
    scalars = {n: float(v) for n, v in zip(names, outputs) if getattr(v, "shape", None) == ()}
    return {
        "before_bytes": before,
        "peak_bytes": peak,
        "growth_bytes": peak - before,
        "output_bytes": sum(getattr(v, "nbytes", 0) for v in outputs),
        "seconds": round(seconds, 4),
        "scalar_outputs": scalars,
    }


def measure_in_fresh_process(job):
    """One measurement; a failure is an `error` entry, so that the others still appear."""
    child = subprocess.run(
        [sys.executable, os.path.abspath(__file__), "--child", json.dumps(job)],
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        lines = child.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"exit status {child.returncode}"}
    return json.loads(child.stdout)


def parse_dim(text):
    name, _, size = text.partition("=")
    if not name or not size.isdigit() or int(size) < 1:
        raise argparse.ArgumentTypeError(f"expected NAME=N, found {text!r}")
    return name, int(size)


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--child":
        print(json.dumps(measure(json.loads(sys.argv[2]))))
        return 0
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("models", nargs="+", metavar="MODEL")
    cli.add_argument("--dim", action="append", default=[], type=parse_dim, metavar="NAME=N")
    cli.add_argument("--repeat", type=int, default=1, help="measurements of each model")
    cli.add_argument("--json", default="-", metavar="FILE", help="default: standard output")
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--int-high", type=int, default=2, help="integer inputs are below this")
    changed = cli.add_argument_group("session options other than the defaults")
    changed.add_argument("--no-arena", action="store_true", help="memory arena and pattern off")
    changed.add_argument("--order", choices=["default", "priority"], default="default")
    changed.add_argument("--threads", type=int, default=0, help="0: ONNX Runtime chooses")
    opt = cli.parse_args()

    import numpy as np
    import onnxruntime as ort

    options = {"arena": not opt.no_arena, "order": opt.order, "threads": opt.threads}
    common = {"dims": dict(opt.dim), "seed": opt.seed, "int_high": opt.int_high, **options}
    measurements = []
    for repetition in range(opt.repeat):
        for model in opt.models:  # interleaved, so that a slow drift meets all models alike
            result = measure_in_fresh_process({"model": model, **common})
            measurements.append({"model": model, "repetition": repetition, **result})
            if "error" in result:
                print(f"{model}: {result['error']}", file=sys.stderr)
    report = {
        "schema": SCHEMA,
        "versions": {
            "onnxruntime": ort.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "dims": common["dims"],
        "options": options,
        "measurements": measurements,
    }
    text = json.dumps(report, indent=1) + "\n"
    if opt.json == "-":
        sys.stdout.write(text)
    else:
        with open(opt.json, "w", encoding="utf-8") as file:
            file.write(text)
    return 1 if any("error" in m for m in measurements) else 0


if __name__ == "__main__":
    sys.exit(main())
