"""Runs the tool, and works out from its JSON what a page must show: independent of the page's script."""

import json
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
CATEGORIES = ["inputs", "parameters", "optimizer", "saved-linear", "saved-other", "gradients", "temporaries"]
#: What an open dimension counts as.
NOMINAL = 64

OPERATIONS = {
    "CeilDiv": lambda a, b: -(-a // b),
    "Mod": lambda a, b: a % b,
    "Max": max,
    "Min": min,
}


def value(expression, sizes):
    """An expression of the report at some sizes, in Python's integers."""
    values = dict(OPERATIONS)

    def symbol(match):
        name = match[0]
        if name.startswith('"'):
            name = re.sub(r"\\(.)", r"\1", name[1:-1])
        elif name in OPERATIONS:
            return name
        values[f"s{len(values)}"] = sizes.get(name, NOMINAL)
        return f"s{len(values) - 1}"

    text = re.sub(r'"(?:[^"\\]|\\.)*"|[^\W\d]\w*', symbol, expression)
    return eval(text.replace("·", "*").replace("^", "**"), {"__builtins__": {}}, values)


def amount(holder, key, sizes):
    """An amount of the report: a number, an expression at some sizes, or None."""
    if holder[key] is None and f"{key}_symbolic" in holder:
        return value(holder[f"{key}_symbolic"], sizes)
    return holder[key]


class Run:
    """A report as JSON and as a page, by one run of the tool."""

    def __init__(self, tool, folder, name, arguments):
        self.page = folder / f"{name}.html"
        report = folder / f"{name}.json"
        command = [tool, *arguments, "-q", "--json", report, "--html", self.page]
        if arguments[0] != "inspect":
            command += ["-o", folder / f"{name}.onnx"]
        subprocess.run([str(part) for part in command], check=True, cwd=ROOT)
        self.json = json.loads(report.read_text())
        self.sizes = self.json["timeline"]["sizes"]
        before, after = (self.json["timeline"][side] for side in ("before", "after"))
        self.courses = [Course(course, self.sizes) for course in (before, after) if course]

    def total(self, key):
        return amount(self.json["totals"], key, self.sizes)


class Course:
    """A schedule of a report."""

    def __init__(self, course, sizes):
        self.course = course
        self.steps = [(step["node"], step["op"], step["half"]) for step in course["steps"]]
        self.buffers = course["buffers"]
        self.bytes = [amount(buffer, "bytes", sizes) for buffer in self.buffers]
        self.held = dict.fromkeys(CATEGORIES, 0)
        for resident in course["held"]:
            self.held[resident["category"]] += amount(resident, "bytes", sizes)
        # What is written over ends before the step that writes over it.
        self.ends = [buffer["last"] for buffer in self.buffers]
        for buffer in self.buffers:
            if buffer["over"] is not None:
                self.ends[buffer["over"]] = buffer["born"] - 1

    def alive(self, step):
        """The numbers of the tensors alive in a step, largest first."""
        numbers = [n for n, b in enumerate(self.buffers) if b["born"] <= step <= self.ends[n]]
        return sorted(numbers, key=lambda n: -self.bytes[n])

    def live(self):
        """Bytes by category in each step."""
        series = [dict.fromkeys(CATEGORIES, 0) for _ in self.steps]
        for number, buffer in enumerate(self.buffers):
            for step in range(buffer["born"], min(self.ends[number], len(series) - 1) + 1):
                series[step][buffer["category"]] += self.bytes[number]
        return series

    def saved(self):
        kept = ("saved-linear", "saved-other")
        return sum(b for b, buffer in zip(self.bytes, self.buffers) if buffer["category"] in kept)
