"""The installed package: the command is found and called, and what it says comes back."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import unittest
import warnings
from unittest import mock

import onnx

import velora_opt
from support import DATA, DIGITS, MLP
from velora_opt import _binary, _options


def command(*arguments, **options):
    return subprocess.run([velora_opt.find_binary(), *map(str, arguments)], capture_output=True, check=False, **options)


class InFolder(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        # A test says which warnings it expects.
        self.enterContext(warnings.catch_warnings())
        warnings.simplefilter("error", velora_opt.VeloraWarning)


class Finding(InFolder):
    def test_package_is_the_installed_one(self):
        self.assertIn("site-packages", velora_opt.__file__)
        self.assertTrue(pathlib.Path(velora_opt.__file__).with_name("py.typed").exists())

    def test_scripts_folder_comes_before_the_search_path(self):
        other = self.folder / "velora-opt"
        other.write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
        other.chmod(0o755)
        scripts = pathlib.Path(sysconfig.get_path("scripts"))
        with mock.patch.dict(os.environ, {"PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}"}):
            os.environ.pop("VELORA_OPT", None)
            self.assertEqual(pathlib.Path(velora_opt.find_binary()), scripts / "velora-opt")
            os.environ["VELORA_OPT"] = str(other)
            self.assertEqual(velora_opt.find_binary(), str(other))
            with self.assertRaises(velora_opt.VeloraError) as caught:
                velora_opt.inspect(MLP)
        self.assertEqual(caught.exception.status, 3)

    def test_variable_that_names_no_program(self):
        for value in (str(self.folder), str(self.folder / "none"), str(MLP)):
            with mock.patch.dict(os.environ, {"VELORA_OPT": value}):
                with self.assertRaisesRegex(velora_opt.VeloraError, "VELORA_OPT names .* no program"):
                    velora_opt.find_binary()

    def test_nowhere(self):
        with mock.patch.dict(os.environ, {"PATH": str(self.folder)}):
            os.environ.pop("VELORA_OPT", None)
            with mock.patch.object(_binary, "_script_folders", return_value=[str(self.folder)]):
                with self.assertRaisesRegex(velora_opt.VeloraError, "cannot find the command"):
                    velora_opt.find_binary()

    def test_search_path(self):
        shutil.copy(velora_opt.find_binary(), self.folder / "velora-opt")
        with mock.patch.dict(os.environ, {"PATH": str(self.folder)}):
            os.environ.pop("VELORA_OPT", None)
            with mock.patch.object(_binary, "_script_folders", return_value=[]):
                self.assertEqual(velora_opt.find_binary(), str(self.folder / "velora-opt"))

    def test_module_is_the_command(self):
        for arguments in (["--version"], ["inspect", str(MLP)], ["inspect", "none.onnx"], ["--bad"]):
            ours = subprocess.run([sys.executable, "-m", "velora_opt", *arguments], capture_output=True, check=False)
            its = command(*arguments)
            for part in ("returncode", "stdout", "stderr"):
                self.assertEqual(getattr(ours, part), getattr(its, part), arguments)


class Optimizing(InFolder):
    def test_path(self):
        out = self.folder / "out.onnx"
        report = velora_opt.optimize(MLP, out, groups=4, dims={"batch": 32})
        expected = self.folder / "expected.onnx"
        done = command(MLP, "-o", expected, "--groups", "4", "--dim", "batch=32", "--json", "-", cwd=self.folder)
        self.assertEqual(out.read_bytes(), expected.read_bytes())
        self.assertEqual(report.raw, json.loads(done.stdout))
        self.assertEqual(report.totals.sites_rewritten, 2)
        self.assertEqual(len(report.rewritten), 2)
        self.assertLess(report.totals.saved_bytes_after, report.totals.saved_bytes_before)
        self.assertIsNone(report.totals.saved_bytes_after_symbolic)

    def test_proto(self):
        model = onnx.load(MLP)
        before = model.SerializeToString()
        rewritten, report = velora_opt.optimize(model, groups=4)
        self.assertEqual(model.SerializeToString(), before)
        out = self.folder / "out.onnx"
        of_path = velora_opt.optimize(MLP, out, groups=4)
        self.assertEqual(rewritten, onnx.load(out))
        self.assertEqual(report.totals, of_path.totals)
        self.assertEqual(report.layers, of_path.layers)
        self.assertIsNone(report.totals.peak_bytes_after)
        self.assertIn("batch", report.totals.peak_bytes_after_symbolic)

    def test_proto_to_path(self):
        out = self.folder / "out.onnx"
        report = velora_opt.optimize(onnx.load(MLP), out)
        self.assertEqual(report.totals.sites_rewritten, 2)
        self.assertTrue(any(n.domain == "ai.velora" for n in onnx.load(out).graph.node))

    def test_proto_verbose_still_returns_the_model(self):
        with mock.patch("sys.stderr") as stream:
            rewritten, _ = velora_opt.optimize(onnx.load(MLP), verbose=True)
        self.assertTrue(rewritten.functions)
        self.assertTrue(stream.write.called)

    def test_in_place(self):
        own = self.folder / "own.onnx"
        shutil.copy(MLP, own)
        velora_opt.optimize(own, own)
        self.assertNotEqual(own.read_bytes(), MLP.read_bytes())

    def test_strange_names(self):
        for name in ("-", "--groups", "inspect", "a b; echo $HOME", "é.onnx"):
            with self.subTest(name):
                shutil.copy(MLP, self.folder / name)
                here = os.getcwd()
                os.chdir(self.folder)
                try:
                    report = velora_opt.optimize(name, f"{name}.out")
                finally:
                    os.chdir(here)
                self.assertEqual(report.totals.sites_rewritten, 2)
                self.assertTrue((self.folder / f"{name}.out").exists())

    def test_options_do_what_they_say(self):
        out = self.folder / "out.onnx"
        def names(model):
            return {n.op_type for n in model.graph.node}

        inlined, _ = velora_opt.optimize(onnx.load(MLP), inline=True, pin=False, init="none")
        self.assertFalse(inlined.functions)
        self.assertFalse([n for n in inlined.graph.node if "velora.pin" in n.name])
        _, report = velora_opt.optimize(onnx.load(MLP), include=r"fc2", groups=2)
        self.assertEqual([layer.param for layer in report.rewritten], ["fc2.weight"])
        _, report = velora_opt.optimize(onnx.load(MLP), exclude=["fc2", "fc3"])
        self.assertEqual(report.rewritten, [])
        plan, page = self.folder / "plan.toml", self.folder / "page.html"
        velora_opt.optimize(MLP, out, sub_token_size=8, emit_plan=plan, html=page)
        self.assertIn("sub_token_size = 8", plan.read_text())
        self.assertIn("<html", page.read_text())
        planned = velora_opt.optimize(MLP, self.folder / "again.onnx", plan=plan)
        self.assertEqual({layer.sub_token_size for layer in planned.rewritten}, {8})
        self.assertEqual(out.read_bytes(), (self.folder / "again.onnx").read_bytes())
        factored, report = velora_opt.optimize(onnx.load(MLP), gradients="factored", init="random", seed=3)
        self.assertIn("grad.fc2.weight.P", [o.name for o in factored.graph.output])
        self.assertNotIn("FactoredWeightGrad", names(factored))

    def test_every_option_of_the_command_is_reachable(self):
        for function, arguments, known in (("optimize", [], _options.OPTIMIZE), ("inspect", ["inspect"], _options.INSPECT)):
            offered = set(re.findall(r"^\s+(?:-\w, )?--([\w-]+)", command(*arguments, "--help").stdout.decode(), re.M))
            reached = {name.replace("_", "-") for name in known}
            reached = reached - {"dims", "hoist", "pin"} | ({"dim", "no-hoist", "no-pin"} if function == "optimize" else {"dim"})
            # What the functions give themselves, and what talks to terminals.
            self.assertEqual(offered - {"help", "version", "json", "output", "quiet"}, reached, function)

    def test_typed_options_are_those_of_the_tables(self):
        source = pathlib.Path(_options.__file__).read_text(encoding="utf-8")
        typed = {
            name: set(re.findall(r"^        (\w+): ", body, re.M))
            for name, body in re.findall(r"class (\w+)\(.*?\):\n(.*?)(?=\n\n)", source, re.S)
        }
        bodies = re.split(r"\n    class |\nelse:", source)
        fields = {b.split("(")[0]: set(re.findall(r"^        (\w+): ", b, re.M)) for b in bodies[1:]}
        self.assertTrue(typed)
        self.assertEqual(fields["OptimizeOptions"] | fields["SourceOptions"], set(_options.OPTIMIZE))
        self.assertEqual(fields["InspectOptions"] | fields["SourceOptions"], set(_options.INSPECT))

    def test_pathological_text_in_options(self):
        with self.assertRaises(velora_opt.VeloraError):
            velora_opt.optimize(MLP, self.folder / "out.onnx", loss="$(touch pwned)\n; x")
        with self.assertRaises(velora_opt.VeloraError):
            velora_opt.optimize(MLP, self.folder / "out\0.onnx")
        self.assertEqual(list(self.folder.iterdir()), [])


class Refusals(InFolder):
    def refused(self, status, pattern, *arguments, **options):
        with self.assertRaisesRegex(velora_opt.VeloraError, pattern) as caught:
            velora_opt.optimize(*arguments, **options)
        self.assertEqual(caught.exception.status, status)
        self.assertNotIn("\n", str(caught.exception))

    def test_message_is_the_commands(self):
        bad = self.folder / "bad.onnx"
        bad.write_bytes(b"no model")
        self.refused(1, "is this an ONNX model", bad, self.folder / "out.onnx")
        said = command(bad, "-o", self.folder / "out.onnx").stderr.decode()
        with self.assertRaises(velora_opt.VeloraError) as caught:
            velora_opt.optimize(bad, self.folder / "out.onnx")
        self.assertEqual(f"velora-opt: {caught.exception}\n", said)
        self.assertEqual(os.listdir(self.folder), ["bad.onnx"])

    def test_no_file(self):
        self.refused(1, "none.onnx", self.folder / "none.onnx", self.folder / "out.onnx")

    def test_usage(self):
        self.refused(2, "init", MLP, self.folder / "out.onnx", init="nonsense")
        self.refused(2, "groups", MLP, self.folder / "out.onnx", groups=4, sub_token_size=4)
        self.refused(2, "json|html", MLP, self.folder / "out.onnx", html=self.folder / "out.onnx")

    def test_inference_graph(self):
        graph = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) { y = Relu(x) }')
        self.refused(1, "training graph", graph)

    def test_already_rewritten(self):
        rewritten, _ = velora_opt.optimize(onnx.load(MLP))
        with self.assertRaisesRegex(velora_opt.AlreadyRewritten, "already rewritten"):
            velora_opt.optimize(rewritten)
        with self.assertRaises(velora_opt.AlreadyRewritten):
            velora_opt.optimize(rewritten, self.folder / "out.onnx")
        self.assertEqual(onnx.load(self.folder / "out.onnx"), rewritten)

    def test_what_the_command_doubts_is_a_warning(self):
        model = onnx.load(MLP)
        for node in model.graph.node:
            node.output[:] = ["mystery" if o == "grad.fc3.bias" else o for o in node.output]
        next(o for o in model.graph.output if o.name == "grad.fc3.bias").name = "mystery"
        with self.assertWarnsRegex(velora_opt.VeloraWarning, "'mystery' has the shape of input 'fc3.bias'") as caught:
            velora_opt.optimize(model)
        self.assertEqual(caught.filename, __file__)

    def test_wrong_arguments(self):
        with self.assertRaisesRegex(TypeError, "unexpected keyword argument 'group'"):
            velora_opt.optimize(MLP, self.folder / "out.onnx", group=4)
        with self.assertRaisesRegex(TypeError, "needs an output"):
            velora_opt.optimize(MLP)
        with self.assertRaisesRegex(TypeError, "expected a path or an onnx.ModelProto, found bytes"):
            velora_opt.optimize(MLP.read_bytes())

    def test_external_data_of_a_proto(self):
        model = onnx.load(DIGITS)
        path = self.folder / "external.onnx"
        onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
        self.refused(None, "stored in another file", onnx.load(path, load_external_data=False))
        report = velora_opt.optimize(path, self.folder / "out.onnx")
        self.assertEqual(report.totals.sites_rewritten, 2)
        whole, _ = velora_opt.optimize(onnx.load(path))
        self.assertEqual(len(whole.graph.initializer), len(onnx.load(self.folder / "out.onnx").graph.initializer))

    def test_over_two_gigabytes(self):
        # Without two gigabytes: the limit is lowered instead.
        with mock.patch("velora_opt.rewrite.LARGEST_MESSAGE", 1000):
            self.refused(None, "2 GB", onnx.load(MLP))
        class ModelProto:  # what protobuf does beyond its limit
            graph = onnx.GraphProto()

            def SerializeToString(self):
                raise ValueError("Message onnx.ModelProto exceeds maximum protobuf size of 2GB")

        self.refused(None, "2 GB", ModelProto())


class Inspecting(InFolder):
    def test_path_and_proto(self):
        report = velora_opt.inspect(MLP, groups=8)
        self.assertEqual(report.raw, json.loads(command("inspect", MLP, "--groups", "8", "--json", "-").stdout))
        self.assertEqual([p.preset for p in report.presets], ["none", "freeable", "value", "down", "paper", "all"])
        self.assertEqual(velora_opt.inspect(onnx.load(MLP), groups=8).layers, report.layers)
        skipped = [layer for layer in report.layers if not layer.rewritten]
        self.assertEqual([layer.reason for layer in skipped], ["graph-input"])

    def test_fidelity_and_sweep(self):
        report = velora_opt.inspect(DIGITS, data=DATA, batch=16, sweep=[4, 8])
        self.assertEqual([trial.groups for trial in report.sweep], [4, 8])
        self.assertTrue(0 < report.totals.fidelity.cosine <= 1)
        self.assertEqual(report.data["samples"], 16)
        self.assertGreater(len(velora_opt.inspect(DIGITS, sweep=True).sweep), 2)


class Reports(unittest.TestCase):
    def setUp(self):
        self.value = dict(velora_opt.inspect(MLP).raw)

    def test_unknown_keys_are_kept(self):
        self.value["novel"] = 1
        self.value["totals"] = {**self.value["totals"], "novel_bytes": 2}
        report = velora_opt.Report.from_json(json.dumps(self.value))
        self.assertEqual((report.extra, report.totals.extra), ({"novel": 1}, {"novel_bytes": 2}))
        self.assertEqual(report.raw, self.value)

    def test_known_keys_are_fields(self):
        """Every key that the command writes today has a field."""
        report = velora_opt.inspect(DIGITS, data=DATA, batch=16, sweep=[4])
        parts = [report, report.totals, report.totals.fidelity, *report.layers, *report.saved, *report.hoisted,
                 *report.presets, *report.sweep]
        parts += [reader for saved in report.saved for reader in saved.readers]
        parts += [reader for layer in report.layers for reader in layer.kept_alive_by]
        self.assertEqual([part for part in parts if part.extra], [])

    def test_what_is_no_report(self):
        del self.value["totals"]
        for text in (json.dumps(self.value), "{}", "[]", "no JSON", '{"schema": "velora-report/2"}'):
            with self.assertRaises(velora_opt.VeloraError):
                velora_opt.Report.from_json(text)


if __name__ == "__main__":
    unittest.main()
