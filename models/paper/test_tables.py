"""Tests of what the tables print, on numbers that can be checked by hand, and of the graphs that rows are made of.

    python models/paper/test_tables.py
"""

import pathlib
import tempfile
import unittest

import numpy as np
import onnx
import suite
import tables
from onnx import TensorProto, helper


def row(name, scores, losses, saved, **more):
    common = {"twin": None, "frozen_like": None, "frozen_row": None, "compressed": False, "frees": True, "paper": (), "rate": 0.001}
    memory = {name: 0 for name in suite.REGIONS} | {"activations": saved}
    return common | {"name": name, "scores": scores, "losses": losses, "saved": saved, "memory": memory, "seconds": [[1.0, 2.0]]} | more


def result(rows, metric="perplexity"):
    return {"task": "task", "metric": metric, "steps": 1, "batch": 1, "seeds": 2, "rows": rows}


class Statistics(unittest.TestCase):
    def setUp(self):
        self.full = row("full", [10.0, 10.2], [1.0, 1.1], 1000)
        self.frozen = row("frozen", [14.0, 14.2], [2.0, 2.1], 400, frozen_like="V")
        self.small = row("V", [11.0, 11.4], [1.25, 1.45], 500, twin="full", frozen_row="frozen", compressed=True)
        self.found = result([self.full, self.small, self.frozen])

    def test_the_gap_is_a_part_of_the_mean_distance(self):
        # Distances of the seeds: 1.0 and 1.0; recovered: 0.75 and 0.65.
        self.assertEqual([round(part, 9) for part in tables.gap(self.found, self.small)], [75.0, 65.0])
        self.assertIsNone(tables.gap(self.found, self.full))

    def test_a_gap_within_its_error_is_none(self):
        self.frozen["losses"] = [0.9, 1.3]
        # Distances -0.1 and 0.2: their mean, 0.05, is less than two standard errors, 0.3.
        self.assertEqual(tables.gap(self.found, self.small), "noise")
        self.frozen["losses"] = [0.5, 0.6]
        self.assertEqual(tables.gap(self.found, self.small), "none")

    def test_closeness_is_of_the_means(self):
        # 11.2 to 10.1 is 10.9 % more perplexity.
        close, small, worse, saved = tables.is_close(self.found, self.small)
        self.assertEqual((close, small, round(worse, 3), saved), (False, True, 10.891, 0.5))
        self.small["scores"] = [10.2, 10.4]
        self.assertTrue(tables.is_close(self.found, self.small)[0])
        accuracy = result(self.found["rows"], "accuracy")
        self.small["scores"] = [9.7, 9.6]
        # Half a point less of accuracy is 9.6, and the mean is 9.65.
        self.assertEqual(tables.is_close(accuracy, self.small)[:2], (True, True))

    def test_a_time_is_compared_with_that_beside_it(self):
        self.small["seconds"] = [[1.0, 2.0], [6.0, 4.0], [3.0, 3.0]]
        self.assertEqual(tables.ratios(self.small), [0.5, 1.5, 1.0])
        line = next(line for line in tables.lines(self.found) if line.startswith("| V "))
        self.assertIn("| 1.00 (0.50 to 1.50) |", line)

    def test_rows_without_a_time_are_refused(self):
        for each in self.found["rows"]:
            each["curves"] = [[4.0, 3.0, 2.0, 1.0]] * 2
        tables.check([self.found])
        for seconds in ([], [[1.0, 2.0], [0.0, 1.0]], [[1.0, 0.0]]):
            self.small["seconds"] = seconds
            with self.assertRaisesRegex(suite.Failed, "V: no time was measured"):
                tables.check([self.found])

    def test_lines_have_a_cell_for_each_column(self):
        lines = [line for line in tables.lines(self.found, ("paper's",)) if line.startswith("|")]
        self.assertEqual(len(lines), 5)
        self.assertEqual({line.count("|") for line in lines}, {lines[0].count("|")})
        self.assertIn("70 ± 7", lines[3])

    def test_checks_find_what_is_missing(self):
        for one in self.found["rows"]:
            one["curves"] = [[2.0, 1.9, 1.2, 1.0]] * 2
        tables.check([self.found])
        self.small["saved"] = 1000
        self.full["curves"] = [[1.0, 1.0, 1.0, 1.0]] * 2
        self.frozen["scores"] = [float("nan"), 1.0]
        with self.assertRaises(suite.Failed) as failed:
            tables.check([self.found])
        for problem in ("full: the loss does not fall", "V: nothing is saved against full", "frozen: not all runs"):
            self.assertIn(problem, str(failed.exception))


class Graphs(unittest.TestCase):
    def test_a_frozen_parameter_takes_what_only_it_needed_along(self):
        value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])  # noqa: E731
        nodes = [
            helper.make_node("Mul", ["a", "b"], ["product"]),
            helper.make_node("Neg", ["product"], ["loss"]),
            helper.make_node("Neg", ["b"], ["only"]),
            helper.make_node("Exp", ["only"], ["grad.a"]),
            helper.make_node("Exp", ["product"], ["grad.b"]),
        ]
        graph = helper.make_graph(nodes, "g", [value("a"), value("b")], [value(n) for n in ("loss", "grad.a", "grad.b")])
        with tempfile.TemporaryDirectory() as folder:
            source, target = pathlib.Path(folder, "a.onnx"), pathlib.Path(folder, "b.onnx")
            onnx.save(helper.make_model(graph), source)
            suite.freeze(source, {"a"}, target)
            left = onnx.load(target).graph
            self.assertEqual([output.name for output in left.output], ["loss", "grad.b"])
            self.assertEqual([node.output[0] for node in left.node], ["product", "loss", "grad.b"])
            with self.assertRaises(suite.Failed):
                suite.freeze(source, {"c"}, target)

    def test_every_row_of_every_table_is_of_a_graph_that_is_there(self):
        import ablations
        import checkpointing
        import decoder
        import encoder
        import pretraining
        import vision

        rates = {"full": (1.0,), "galore": (1.0,), "lora": (1.0,)}
        found = [
            vision.rows(), decoder.rows(), ablations.rows(), checkpointing.rows("llama_m_full"),
            encoder.rows("minilm_full", "minilm_lora", rates), pretraining.rows("llama_s_full", "llama_s_relora", 64, pretraining.SMALL),
        ]  # fmt: skip
        graphs = suite.manifest()
        for rows in found:
            names = {row.name for row in rows}
            self.assertEqual(len(names), len(rows))
            for row in rows:
                self.assertIn(row.graph, graphs)
                for other in (row.twin, row.frozen_like, row.frozen_row, row.same_as):
                    self.assertIn(other, names | {None})


class Parameters(unittest.TestCase):
    def test_draws_depend_on_seed_and_name(self):
        entry = {"name": "w", "shape": [3, 4], "init": {"kind": "normal", "std": 0.02}}
        first = suite.draw(entry, 0)
        self.assertEqual((first.shape, first.dtype), ((3, 4), np.float32))
        np.testing.assert_array_equal(first, suite.draw(entry, 0))
        self.assertFalse((first == suite.draw(entry, 1)).any())
        self.assertFalse((first == suite.draw(entry | {"name": "u"}, 0)).any())
        np.testing.assert_array_equal(suite.draw(entry | {"init": {"kind": "ones"}}, 0), np.ones((3, 4)))

    def test_rates_are_one_and_three_in_turn(self):
        self.assertEqual([suite.step(rate, 1) for rate in (1e-3, 3e-3, 1e-2)], [3e-3, 1e-2, 3e-2])
        self.assertEqual([suite.step(rate, -1) for rate in (1e-3, 3e-3, 1e-4)], [3e-4, 1e-3, 3e-5])


if __name__ == "__main__":
    unittest.main()
