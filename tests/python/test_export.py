"""A PyTorch module becomes a training graph, is rewritten, and runs in ONNX Runtime; where torch is installed.

Torch takes gigabytes of packages and minutes to install, so that CI has these tests skipped, and says so; with the
packages of models/export/requirements-torch.txt they run.
"""

import importlib.util
import pathlib
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import velora_opt

TORCH = all(importlib.util.find_spec(name) for name in ("torch", "onnxscript", "onnxruntime"))


class WithoutTorch(unittest.TestCase):
    def test_package_does_not_import_it(self):
        code = "import sys, velora_opt; velora_opt.VeloraError; print(sorted({'torch', 'onnx', 'numpy'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        self.assertEqual(done.stdout, "[]\n")

    def test_message_without_it(self):
        with mock.patch.dict(sys.modules, {"torch": None}):
            with self.assertRaisesRegex(velora_opt.VeloraError, r"needs torch .*pip install velora-opt\[torch\]"):
                velora_opt.export_training_graph(None, (None, None), loss=None)


@unittest.skipUnless(TORCH, "torch, onnxscript and onnxruntime are not installed: models/export/requirements-torch.txt")
class WithTorch(unittest.TestCase):
    def setUp(self):
        import torch
        from torch import nn

        torch.manual_seed(0)
        self.torch = torch
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.module = nn.Sequential(
            nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
        self.batch = torch.randn(16, 32), torch.randint(0, 10, (16,))
        self.loss = nn.functional.cross_entropy

    def eager(self, x, y):
        self.module.zero_grad()
        loss = self.loss(self.module(x), y)
        loss.backward()
        gradients = {f"grad.{name}": p.grad.numpy().copy() for name, p in self.module.named_parameters()}
        return {"loss": loss.detach().numpy(), **gradients}

    def run_model(self, model, feed):
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(names, feed)))

    def assert_near(self, found, expected):
        import numpy as np

        self.assertEqual(list(found), list(expected))
        for name, value in expected.items():
            # 64 terms in each sum, a few layers: far above the rounding of either, far below any wrong formula.
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5 * abs(value).max(), err_msg=name)

    def test_export_optimize_run(self):
        path = self.folder / "step.onnx"
        model = velora_opt.export_training_graph(self.module, self.batch, path, loss=self.loss)
        self.assertEqual(path.read_bytes(), model.SerializeToString(deterministic=True))
        # The batch is open: another size than the example's.
        x, y = self.torch.randn(5, 32), self.torch.randint(0, 10, (5,))
        feed = {"x": x.numpy(), "y": y.numpy()}
        expected = self.eager(x, y)
        self.assert_near(self.run_model(model, feed), expected)
        rewritten, report = velora_opt.optimize(model, groups=8)
        self.assertEqual([layer.param for layer in report.rewritten], ["4.weight", "2.weight"])
        found = self.run_model(rewritten, feed)
        changed = {f"grad.{layer.param}" for layer in report.rewritten}
        self.assert_near({n: v for n, v in found.items() if n not in changed},
                         {n: v for n, v in expected.items() if n not in changed})
        for name in changed:
            self.assertFalse(abs(found[name] - expected[name]).max() < 1e-6, "the gradient is not compressed")

    def test_static_sizes_and_no_values(self):
        model = velora_opt.export_training_graph(
            self.module, self.batch, loss=self.loss, dynamic_axes=(), param_values=False, labels_name="labels", logits=True)
        sizes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
        self.assertEqual((sizes["x"], sizes["labels"]), ([16, 32], [16]))
        self.assertEqual([o.name for o in model.graph.output][:2], ["loss", "logits"])
        self.assertFalse({t.name for t in model.graph.initializer} & set(sizes))
        _, report = velora_opt.optimize(model, groups=8)
        self.assertIsNotNone(report.totals.peak_bytes_after)

    def test_module_that_returns_its_loss(self):
        module, function = self.module, self.loss

        class Step(self.torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.module = module

            def forward(self, x, y):
                return function(self.module(x), y)

        model = velora_opt.export_training_graph(Step(), self.batch)
        x, y = self.batch
        expected = self.eager(x, y)
        found = self.run_model(model, {"x": x.numpy(), "y": y.numpy()})
        self.assert_near({n.replace("grad.module.", "grad."): v for n, v in found.items()}, expected)
        with self.assertRaisesRegex(ValueError, "logits needs a loss"):
            velora_opt.export_training_graph(Step(), self.batch, logits=True)

    def test_large_weights_go_beside_the_model(self):
        path = self.folder / "step.onnx"
        with mock.patch("velora_opt.export.LARGEST_FILE", 1000):
            model = velora_opt.export_training_graph(self.module, self.batch, path, loss=self.loss)
        self.assertTrue((self.folder / "step.onnx.data").exists())
        self.assertTrue(all(t.data_location == 0 for t in model.graph.initializer))
        self.assertEqual(velora_opt.optimize(path, self.folder / "out.onnx", groups=8).totals.sites_rewritten, 2)

    def test_optimiser_inside(self):
        model = velora_opt.export_training_graph(
            self.module, self.batch, loss=self.loss, sgd={"lr": 0.1, "momentum": 0.9})
        self.assertIn("updated.momentum.0.weight", [o.name for o in model.graph.output])

    def test_nothing_to_train(self):
        with self.assertRaisesRegex(ValueError, "no parameter that requires a gradient"):
            velora_opt.export_training_graph(self.module.requires_grad_(False), self.batch, loss=self.loss)


if __name__ == "__main__":
    unittest.main()
