"""Typed use of the package, for `test_types.py`: this file must have no error, `typed_errors.py` one on each line
that says so."""

from pathlib import Path
from typing import Optional

import onnx

import velora_opt


def use(path: Path, model: onnx.ModelProto) -> Optional[int]:
    report: velora_opt.Report = velora_opt.optimize(path, "out.onnx", groups=32, init="svd", dims={"batch": 8})
    rewritten, second = velora_opt.optimize(model, select="paper", include=["fc"], adapter="bf16", inline=True)
    checked: onnx.ModelProto = rewritten
    written: velora_opt.Report = velora_opt.optimize(model, path, sub_token_size=16, external_data="copy")
    seen = velora_opt.inspect(path, sweep=[8, 16], data="d.npz", init_params="normal")
    for layer in seen.layers:
        name: str = layer.param
        kept: "list[velora_opt.KeptAlive]" = layer.kept_alive_by
        print(name, [reader.why for reader in kept])
    print(checked, second.totals.sites, written.model, report.raw["schema"])
    try:
        velora_opt.inspect(path)
    except velora_opt.VeloraError as error:
        return error.status
    return report.totals.saved_bytes_after
