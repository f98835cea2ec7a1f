"""Memory and speed against gradient checkpointing, alone and together with compression (the paper's table 7).

    python models/paper/checkpointing.py [--quick]

Run from anywhere, after `cargo build --release`; requirements.txt has what it needs. Two sizes; all rows take turns in each round of the
measurement of time. What only computes again must have the losses of the original to the last bit: exit status 1 where it has not.
"""

import dataclasses
import statistics

import suite
import tables
from suite import Row, Task

FULL = "full"
# Iterations per second and GB, of LLaMA-60M and 130M, of 7B and 13B.
PAPER = ("it/s, 60M / 130M / 7B / 13B", "GB")
CHECKPOINTED = ("2.47 / 1.03 / 1.14 / 0.78", "1.19 / 1.85 / 7.31 / 11.72")
COMPRESSED = ("2.90 / 1.34 / 1.50 / 1.15", "1.18 / 1.83 / 8.35 / 13.28")
REMARKS = [
    "- **Agrees**: checkpointing saves most and VeLoRA is faster. Checkpointing every layer leaves 0.28 and 0.29 of the activations (0.35 and 0.52 of everything; the paper has 0.92, 0.80,",
    "  0.54 and 0.55) at 0.81 of the speed (0.79, 0.74, 0.70, 0.63).",
    "- **VeLoRA makes steps faster here**, by 6 to 8 % (value and down) and 15 to 21 % (all), since weight gradients from z are smaller products; the paper's are 4 to 9 % slower.",
    "- **It frees less**: value and down 6 and 8 % of everything (the paper 9 to 39 %), all of it from down.",
    "- **What the paper has no row for**: to compute again only what is cheap leaves 0.60 and 0.59 of the activations, changes no bit, and costs no time that can be told. With compression it is 0.54 to 0.59, and",
    "  steps are 23 to 32 % faster.",
    "- **Together with checkpointing compression frees nothing**: inputs of linear layers are computed again anyway. Every √n-th layer saves less than every layer, because there are only four:",
    "  two of them are alive at once.",
    "- Frozen layers are faster still, and their gradients and state are gone; what compression is worth against that, the other tables say.",
]


def rows(graph):
    found = [Row(FULL, graph, (1e-3,), paper=("3.12 / 1.40 / 1.64 / 1.24", "1.30 / 2.32 / 13.64 / 21.35"))]
    exact = {
        "checkpointing, every layer": ("--recompute", "layers"),
        "checkpointing, every √n-th layer": ("--recompute", "sqrt"),
        "cheap recomputation": ("--recompute", "cheap"),
    }
    for name, options in exact.items():
        found.append(Row(name, graph, FULL, rewrite=("--exact", *options), paper=CHECKPOINTED if "every layer" in name else ()))
    for layers, select in (("v, down", ("--select", "paper")), ("all", suite.ALL)):
        name = f"VeLoRA ({layers})"
        found += [
            Row(name, graph, FULL, rewrite=select, twin=FULL, frozen_row=f"{layers} frozen", paper=COMPRESSED if layers != "all" else ()),
            Row(f"{layers} frozen", graph, FULL, frozen_like=name),
        ]
    for name, options in exact.items():
        found.append(Row(f"VeLoRA (all), {name}", graph, FULL, rewrite=(*options, *suite.ALL)))
    return found


def measured(opt, task, found):
    """Bytes, seconds by round, and the losses of the first steps, by row."""
    task = dataclasses.replace(task, test=suite.first(task.test, 32, opt.work / "data"))
    work = suite.Suite(opt, "checkpointing", task, found)
    rates = {row.name: 1e-3 for row in found}
    work.graph_of = {row.name: work.graph(row) for row in found}
    work.parameters_of = {(row.graph, 0): work.parameters(row, 0) for row in found}
    outcomes = {row.name: work.train(row, 1e-3, 0) for row in found}
    # Held-out losses are in no table here.
    exact = [row.name for row in found if row.rewrite is None and not row.frozen_like or "--exact" in (row.rewrite or ())]
    different = [name for name in exact if outcomes[name]["losses"] != outcomes[FULL]["losses"]]
    if different:
        raise suite.Failed(f"the losses of {', '.join(different)} are not those of the original")
    bytes_ = {row.name: work.measure(row, 1e-3) for row in found}
    times = work.times(rates)
    return [
        {
            "name": row.name,
            "twin": None,
            "compressed": row.rewrite is not None and "--exact" not in row.rewrite,
            "exact": row.name in exact,
            "frozen_like": row.frozen_like,
            "frozen_row": row.frozen_row,
            "paper": row.paper,
            "saved": bytes_[row.name]["saved"],
            "memory": bytes_[row.name]["memory"],
            "seconds": times[row.name],
        }
        for row in found
    ]


def lines(result):
    """The table of a size."""
    first = result["rows"][0]
    head = [
        "", "saved, KiB", "÷ full", "activations, KiB", "÷ full", "everything, KiB", "÷ full", "steps per second ÷ full", *PAPER,
    ]  # fmt: skip
    said = f"Batches of {result['batch']} sequences of 128, {result['rounds']} rounds; the middle of the ratios, and the least and the greatest."
    cells_of = []
    for row in result["rows"]:
        speeds = [1 / ratio for ratio in tables.ratios(row)]
        arena, everything = row["memory"]["activations"], tables.total(row)
        cells = [
            row["name"],
            f"{row['saved'] / 1024:,.0f}", f"{row['saved'] / first['saved']:.2f}",
            f"{arena / 1024:,.0f}", f"{arena / first['memory']['activations']:.2f}",
            f"{everything / 1024:,.0f}", f"{everything / tables.total(first):.2f}",
            f"{statistics.median(speeds):.2f} ({min(speeds):.2f} to {max(speeds):.2f})",
            *(row["paper"] or ("", "")),
        ]  # fmt: skip
        cells_of.append(cells)
    exact = ", ".join(row["name"] for row in result["rows"] if row["exact"])
    return [said, "", *tables.grid(head, cells_of), "", f"The same losses to the last bit: {exact}."]


def build(opt):
    text = suite.files(opt, "bytes")
    results = []
    for name, graph, batch in (("128 wide", "llama_s_full", 16), ("256 wide", "llama_m_full", 8)):
        dims = {"batch": batch, "seq": 128}
        task = Task(name, text["kjv_train"], text["kjv_test"], dims, batch, 4 if opt.quick else 20, "perplexity")
        results.append({"task": name, "metric": "perplexity", "batch": batch, "rounds": opt.rounds, "rows": measured(opt, task, rows(graph))})
    tables.write(
        opt, "checkpointing", "Speed and memory against gradient checkpointing", "python models/paper/checkpointing.py", results, REMARKS,
        sections=[lines(result) for result in results],
    )  # fmt: skip


if __name__ == "__main__":
    suite.main(__doc__, build)
