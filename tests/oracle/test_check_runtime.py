"""`check_runtime.py` must refuse results that are wrong: each test breaks a right one in one way."""

import unittest

import numpy as np
import onnx

import check_rewrite
import check_runtime
import run_all

MODELS = run_all.ROOT / "models"


class Compare(unittest.TestCase):
    def setUp(self):
        original = check_rewrite.Original(str(MODELS / "aot/mlp.onnx"), 3, 5)
        self.values, self.noise = original.values, original.noise
        self.names = check_runtime.wanted(original.model)
        self.found = {name: self.values[value].copy() for name, value in self.names.items()}

    def failures(self):
        return check_runtime.compare(self.found, self.values, self.noise, self.names)[0]

    def test_the_same_passes(self):
        self.assertEqual(len(self.names), 7)
        self.assertEqual(self.failures(), [])

    def test_one_element_that_is_off(self):
        self.found["grad.fc1.weight"].flat[7] *= 1.01
        self.assertIn("grad.fc1.weight", self.failures()[0])

    def test_a_loss_that_is_no_number(self):
        self.found["loss"] = np.full_like(self.found["loss"], np.nan)
        self.assertIn("loss", self.failures()[0])

    def test_a_gradient_that_is_missing(self):
        del self.found["grad.fc2.bias"]
        self.assertIn("grad.fc2.bias", self.failures()[0])

    def test_a_gradient_of_another_size(self):
        self.found["grad.fc2.bias"] = self.found["grad.fc2.bias"][1:]
        self.assertIn("expected", self.failures()[0])


class Preparation(unittest.TestCase):
    def test_accumulated_gradients_are_found_by_parameter(self):
        model = onnx.load(str(MODELS / "ort/mlp.onnx"))
        self.assertEqual(check_runtime.wanted(model)["grad.fc1.weight"], "fc1.weight_grad")

    def test_no_dropout_is_left(self):
        model = onnx.load(str(MODELS / "ort/bert_tiny_dropout.onnx"))
        check_runtime.without_dropout(model)
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        ratios = [constants[n.input[1]] for n in model.graph.node if n.op_type == "Dropout"]
        self.assertTrue(ratios)
        self.assertTrue(all(r == 0 for r in ratios))


if __name__ == "__main__":
    unittest.main()
