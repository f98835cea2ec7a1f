#!/usr/bin/env python3
"""Time and peak memory of tools that rewrite ONNX files, on graphs whose weights lie beside them.

    cargo run --release -p velora-testgen --example make_graph -- llama-7b /tmp/llama
    python benchmarks/peers.py /tmp/llama/model.onnx --repeat 3 --json peers.json

Compared are, in processes of their own and in turn, so that what else happens on the machine falls on all alike:

  * velora-opt MODEL -o OUT, which analyses and rewrites; external data is kept,
  * onnx.load(load_external_data=False) and onnx.save: the least that a Python tool can do, and no analysis,
  * onnxslim and onnxsim, load and trivial save: all that they do in between is switched off.

The last two read all weights and write them again; nothing in them can leave that out. Each run has a limit of memory
(private memory, RLIMIT_DATA: files that are mapped do not count), of time, and of the size of a file that it writes;
what goes beyond is an outcome ("out of memory at the limit"), not tried again. Time is that of the whole process,
peak memory the greatest resident size (getrusage), interpreter and imports included in both, as users have them; the
row "python, imports" says what they are. Ratios are medians to medians within this run.

The Python that runs this needs what tests/tools/requirements.txt pins. Outputs are written beside the model and deleted.
Exit status 1 where velora-opt fails.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
OURS = "velora-opt"
ONNX = "import onnx, sys; m = onnx.load(sys.argv[1], load_external_data=False); onnx.save(m, sys.argv[2])"
SLIM = ["--no-shape-infer", "--save-as-external-data", "--skip-optimizations", "constant_folding", "graph_fusion",
        "dead_node_elimination", "subexpression_elimination", "weight_tying"]
SIM = ["--skip-optimization", "--skip-constant-folding", "--skip-shape-inference"]
GIB = 2**30


def commands(velora, model, out):
    """What is compared: name and command."""
    python = [sys.executable, "-W", "ignore"]
    yield OURS, [velora, model, "-o", out, "--quiet"]
    yield "onnx, no weights", [*python, "-c", ONNX, model, out]
    yield "onnxslim", [*python, "-m", "onnxslim", model, out, *SLIM]
    yield "onnxsim", [*python, "-m", "onnxsim", model, out, *SIM]
    yield "python, imports", [*python, "-c", "import onnx, onnxruntime, numpy"]


def run(command, limits):
    """One run: seconds, peak bytes, and the outcome; `ok` where it did what it should."""
    def restrict():
        resource.setrlimit(resource.RLIMIT_DATA, (limits["memory"], limits["memory"]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file"], limits["file"]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    with tempfile.TemporaryFile() as said:
        start = time.monotonic()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, preexec_fn=restrict,
                                 cwd=limits["folder"], env=os.environ | {"TMPDIR": str(limits["folder"])},
                                 start_new_session=True)
        late = False
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - start > limits["seconds"] and not late:
                late = True
                os.killpg(child.pid, signal.SIGKILL)
            time.sleep(0.002)
        seconds = time.monotonic() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0, os.SEEK_END)
        said.seek(max(0, said.tell() - 4000))
        text = said.read().decode(errors="replace")
    peak = usage.ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": peak, "outcome": outcome(child.returncode, late, text, peak, limits)}


def outcome(code, late, text, peak, limits):
    """What a run came to, in words; `ok` where it did what it should."""
    if late:
        return f"stopped at the limit of {limits['seconds']:.0f} s"
    if code == 0:
        return "ok"
    # Not every library notices that it got no memory: some crash.
    spent = code < 0 and peak > 0.9 * limits["memory"]
    if spent or re.search(r"MemoryError|bad_alloc|Unable to allocate|Cannot allocate|out of memory", text, re.I):
        return f"out of memory at the limit of {limits['memory'] / GIB:.0f} GiB"
    if code == -signal.SIGXFSZ or "File too large" in text:
        return f"a file reached the limit of {limits['file'] / GIB:.0f} GiB"
    lines = text.strip().splitlines()
    return f"failed ({code}): {lines[-1][:200] if lines else 'no message'}"


def measure(velora, model, opt):
    """All runs on one model, by name."""
    limits = {"memory": int(opt.memory * GIB), "file": int(opt.file * GIB), "seconds": opt.seconds}
    runs = {}
    for round_number in range(opt.repeat):
        with tempfile.TemporaryDirectory(prefix="peers-", dir=model.parent) as scratch:
            limits["folder"] = pathlib.Path(scratch)
            todo = list(commands(velora, str(model), str(model.parent / f"{pathlib.Path(scratch).name}.onnx")))
            for name, command in todo if round_number % 2 == 0 else reversed(todo):
                if not re.search(opt.only, name) or any(r["outcome"] != "ok" for r in runs.get(name, [])):
                    continue
                result = run(command, limits)
                runs.setdefault(name, []).append(result)
                written = list(model.parent.glob(f"{pathlib.Path(scratch).name}.onnx*"))
                if result["outcome"] == "ok" and name != "python, imports" and not written:
                    result["outcome"] = "failed: no file was written"
                for file in written:
                    file.unlink()
    return runs


def table(model, runs):
    """Markdown, with ratios to ours."""
    def median(name, key):
        good = [r[key] for r in runs[name] if r["outcome"] == "ok"]
        return statistics.median(good) if good else None

    data = sum(f.stat().st_size for f in model.parent.iterdir() if f.is_file() and f != model)
    yield f"{model.parent.name}/{model.name}: {model.stat().st_size / 2**20:.1f} MiB, and {data / GIB:.2f} GiB beside it\n"
    yield "| tool | s | ÷ ours | peak MiB | ÷ ours | runs | outcome |"
    yield "|---|---|---|---|---|---|---|"
    for name, results in runs.items():
        cells = []
        for key, scale, digits in (("seconds", 1, 2), ("peak_bytes", 2**20, 1)):
            value, ours = median(name, key), median(OURS, key) if OURS in runs else None
            # What a failed run took until then is a lower bound.
            shown = value if value is not None else max(r[key] for r in results)
            mark = "" if value is not None else "> "
            cells += [f"{mark}{shown / scale:.{digits}f}", f"{mark}{shown / ours:.1f}" if ours else "-"]
        yield f"| {name} | {' | '.join(cells)} | {len(results)} | {results[-1]['outcome']} |"


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("models", nargs="+", type=pathlib.Path, metavar="MODEL")
    cli.add_argument("--velora", default=str(ROOT / "target/release/velora-opt"))
    cli.add_argument("--repeat", type=int, default=3)
    cli.add_argument("--only", default="", metavar="RE", help="only these tools")
    cli.add_argument("--memory", type=float, default=12, metavar="GIB", help="private memory of each run")
    cli.add_argument("--file", type=float, default=40, metavar="GIB", help="size of a file that a run may write")
    cli.add_argument("--seconds", type=float, default=600, help="time of each run")
    cli.add_argument("--json", type=pathlib.Path, metavar="F")
    opt = cli.parse_args()
    report = {"schema": "velora-peers/1", "limits": {k: getattr(opt, k) for k in ("memory", "file", "seconds")}, "models": {}}
    failed = False
    for model in opt.models:
        model = model.resolve()
        runs = measure(opt.velora, model, opt)
        report["models"][str(model)] = runs
        failed |= any(r["outcome"] != "ok" for r in runs.get(OURS, []))
        print("\n".join(table(model, runs)), flush=True)
    if opt.json:
        opt.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
