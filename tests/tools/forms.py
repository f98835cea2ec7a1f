"""Every form in which velora-opt writes a graph of models/, for the checks in this folder."""

import dataclasses
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
GROUPS = 4
# One for each way to write new nodes: functions, standard operators, factors that leave the graph, weights with
# adapters, directions that are inputs and outputs, compressed activations of another type, several directions.
# (Bases of 4 bits need opset 21, which no graph of models/ has.)
FORMS = {
    "functions": [],
    "inline": ["--inline"],
    "no pins": ["--no-pin"],
    "factored": ["--gradients", "factored"],
    "adapter": ["--adapter", "f32"],
    "adapter bf16": ["--adapter", "bf16"],
    "running average": ["--init", "running-average"],
    "int8": ["--storage", "int8"],
    "rank 2": ["--init", "random", "--rank", "2"],
}


@dataclasses.dataclass
class Written:
    """A graph as it came, and one form of what velora-opt made of it."""

    original: pathlib.Path
    form: str
    path: pathlib.Path

    @property
    def name(self):
        return f"{self.original.parent.name}/{self.original.stem}, {self.form}"


def default_tool():
    """The tool to check: VELORA_OPT, or the release build."""
    return os.environ.get("VELORA_OPT", str(ROOT / "target/release/velora-opt"))


def graphs(dialects=("aot", "ort")):
    """The graphs of models/, in a fixed order."""
    return [path for dialect in dialects for path in sorted((ROOT / "models" / dialect).glob("*.onnx"))]


def write(tool, graph, form, folder):
    """Write one form of a graph into a folder.

    Returns None where the graph does not have the form (an adapter needs the value of a weight, an operator of
    the form a newer operator set); any other refusal is an error.
    """
    path = pathlib.Path(folder) / f"{graph.parent.name}.{graph.stem}.{form.replace(' ', '_')}.onnx"
    command = [tool, str(graph), "-o", str(path), "--quiet", "--groups", str(GROUPS), *FORMS[form]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Written(graph, form, path)
    if form.startswith("adapter") and "pass adapt" in done.stderr:
        return None
    raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.strip()}")
