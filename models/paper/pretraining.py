"""Pre-training: small LLaMAs of two sizes learn a text by bytes, from scratch (the paper's table 4).

    python models/paper/pretraining.py [--quick]

Run from anywhere, after `cargo build --release`; requirements.txt has what it needs. Everything is kept in the work folder,
and a second run repeats nothing.
"""

import suite
import tables
from suite import Row, Task, group

PAPER = ("C4 perplexity", "GB")
RATES = (1e-3, 3e-3, 1e-2)
REMARKS = []


def rows(full, lora, rank, paper):
    """The rows of the paper's table 4; ranks are the same in all of them."""
    projected = ("--rank", str(rank), "--update-period", "50", "--project", r"self_attn|mlp", "--weight-decay", "0.01")
    return [
        Row("full", full, RATES, paper=paper["full"]),
        Row("GaLore", full, (3e-3, 1e-2, 3e-2), optimizer=("--optimizer", "galore", *projected), paper=paper["galore"]),
        Row("LoRA", lora, RATES, paper=paper["lora"]),
        Row("FLORA", full, (1e-3, 3e-3, 1e-2), optimizer=("--optimizer", "flora", *projected), paper=paper["flora"]),
        *group("full", full, "v, down", ("--select", "paper"), paper["velora"]),
        *group("full", full, "all", suite.ALL),
        *group("full", full, "planned", (*suite.PLANNED, *suite.ALL)),
        *group("full", full, "planned, down alone", (*suite.PLANNED, "--select", "down")),
        Row("full, exact plan", full, "full", rewrite=suite.EXACT, same_as="full"),
    ]


SMALL = {
    "full": ("33.52", "1.30"), "galore": ("34.88", "1.27"), "lora": ("34.99", "0.86"), "flora": ("34.35", "1.27"),
    "velora": ("33.76", "1.18"),
}  # fmt: skip
MEDIUM = {
    "full": ("25.08", "2.32"), "galore": ("25.36", "2.02"), "lora": ("33.92", "1.24"), "flora": ("25.88", "2.01"),
    "velora": ("25.29", "1.83"),
}  # fmt: skip


def build(opt):
    text = suite.files(opt, "bytes")
    steps = 16 if opt.quick else None
    results = []
    for name, graphs, rank, batch, full_steps, paper in (
        ("128 wide (the paper's 60M)", ("llama_s_full", "llama_s_relora"), 64, 8, 200, SMALL),
        ("256 wide (the paper's 130M)", ("llama_m_full", "llama_m_relora"), 96, 4, 100, MEDIUM),
    ):
        dims = {"batch": batch, "seq": 128}
        task = Task(name, text["kjv_train"], text["kjv_test"], dims, batch, steps or full_steps, "perplexity")
        results.append(suite.Suite(opt, "pretraining", task, rows(*graphs, rank, paper)).execute())
    tables.write(
        opt, "pretraining", "Pre-training: small LLaMAs by bytes", "python models/paper/pretraining.py", results, REMARKS, PAPER
    )


if __name__ == "__main__":
    suite.main(__doc__, build)
