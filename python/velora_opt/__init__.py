"""VeLoRA for exported ONNX training graphs: the ``velora-opt`` command, from Python.

>>> import velora_opt
>>> report = velora_opt.optimize("model.onnx", "model.velora.onnx", groups=32)
>>> report.totals.sites_rewritten

Everything runs in the command, which this package brings along; a model is never run or changed in this process.
"""

from ._binary import AlreadyRewritten, VeloraError, VeloraWarning, find_binary
from ._options import InspectOptions, OptimizeOptions
from .export import export_training_graph
from .report import Hoisted, KeptAlive, Layer, Preset, Reader, Report, Saved, Totals, Trial
from .rewrite import inspect, optimize

__all__ = [
    "AlreadyRewritten",
    "Hoisted",
    "InspectOptions",
    "KeptAlive",
    "Layer",
    "OptimizeOptions",
    "Preset",
    "Reader",
    "Report",
    "Saved",
    "Totals",
    "Trial",
    "VeloraError",
    "VeloraWarning",
    "export_training_graph",
    "find_binary",
    "inspect",
    "optimize",
]
