"""What a type checker must refuse; `test_types.py` compares the lines."""

from pathlib import Path

import onnx

import velora_opt


def misuse(path: Path, model: onnx.ModelProto) -> None:
    velora_opt.optimize(path)  # error: no output
    velora_opt.optimize(path, "out.onnx", groups="32")  # error: type of an option
    velora_opt.optimize(path, "out.onnx", group=32)  # error: no such option
    velora_opt.optimize(path, "out.onnx", init="nonsense")  # error: no such kind
    report: velora_opt.Report = velora_opt.optimize(model)  # error: model and report
    count: str = velora_opt.inspect(path).totals.sites  # error: type of a field
    velora_opt.inspect(path, rank=8)  # error: not an option of inspect
    print(report, count)
