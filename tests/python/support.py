"""Where the models are, and what the tests share."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
MLP = ROOT / "models/aot/mlp.onnx"
DIGITS = ROOT / "models/aot/digits_mlp.onnx"
DATA = ROOT / "models/data/digits_test.npz"
