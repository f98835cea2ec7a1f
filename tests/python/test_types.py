"""mypy --strict over the installed package and over what uses it."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

from support import ROOT

HERE = pathlib.Path(__file__).resolve().parent


def mypy(*arguments, cwd=HERE):
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "mypy", "--cache-dir", cache, *map(str, arguments)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MYPY")}
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


class Types(unittest.TestCase):
    def test_package(self):
        done = mypy("--strict", "--config-file", ROOT / "pyproject.toml", "-p", "velora_opt")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_use(self):
        done = mypy("--strict", "--config-file=", "typed_example.py")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_misuse(self):
        done = mypy("--strict", "--config-file=", "typed_errors.py")
        found = {int(line) for line in re.findall(r"typed_errors\.py:(\d+): error", done.stdout)}
        text = (HERE / "typed_errors.py").read_text(encoding="utf-8").splitlines()
        expected = {number for number, line in enumerate(text, 1) if "# error" in line}
        self.assertEqual(found, expected, done.stdout)


if __name__ == "__main__":
    unittest.main()
