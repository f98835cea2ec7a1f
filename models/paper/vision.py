"""Vision: a small ViT, trained on one set of handwritten digits and fine-tuned to another (the paper's table 1).

    python models/paper/vision.py [--quick]

Run from anywhere, after `cargo build --release`; requirements.txt has what it needs. Everything is kept in the work folder,
and a second run repeats nothing.
"""

import suite
import tables
from suite import Row, Task, group

PAPER = ("VTAB-1k mean, %", "GB")
FULL, PROBE, ADAPTERS = (3e-4, 1e-3, 3e-3), (3e-3, 1e-2, 3e-2), (1e-3, 3e-3, 1e-2)
REMARKS = []


def rows():
    """The rows of the paper's table 1, each with the same layers frozen; adapters have rank 8 everywhere."""
    found = [
        Row("full", "vit_full", FULL, paper=("69.7", "4.25")),
        *group("full", "vit_full", "v, down", ("--select", "paper"), ("71.2", "4.02")),
        *group("full", "vit_full", "all", suite.ALL),
        *group("full", "vit_full", "planned", (*suite.PLANNED, *suite.ALL)),
        *group("full", "vit_full", "planned, down alone", (*suite.PLANNED, "--select", "down")),
        Row("full, exact plan", "vit_full", "full", rewrite=suite.EXACT, same_as="full"),
        Row("linear probe", "vit_probe", PROBE, paper=("59.1", "1.84")),
    ]
    for name, graph, plain, compressed in (
        ("SSF", "vit_ssf", ("72.7", "4.13"), ("72.6", "3.46")),
        ("Hydra", "vit_hydra", ("74.7", "3.10"), ("74.8", "2.88")),
        ("LoRA", "vit_lora", ("72.1", "2.86"), ("72.7 (at rank 16)", "2.74")),
    ):
        found += [
            Row(name, graph, ADAPTERS, paper=plain),
            *group(name, graph, "adapters", suite.ALL, compressed),
            *group(name, graph, "planned", (*suite.PLANNED, *suite.ALL)),
        ]
    return found


def build(opt):
    sets = suite.files(opt, "digits28") | suite.files(opt, "mnist")
    steps = 24 if opt.quick else 150
    results = []
    for source, target, names in (("mnist", "digits28", "MNIST to digits"), ("digits28", "mnist", "digits to MNIST")):
        first = Task(f"{names}, before", sets[f"{source}_train"], sets[f"{source}_test"], {"batch": 32}, 32, 60 if opt.quick else 600, "accuracy")
        base = suite.pretrained(opt, first, "vit_full", 1e-3, without=("head.",))
        task = Task(names, sets[f"{target}_small"], sets[f"{target}_test"], {"batch": 32}, 32, steps, "accuracy", base)
        results.append(suite.Suite(opt, "vision", task, rows()).execute())
    tables.write(
        opt, "vision", "Vision: fine-tuning a small ViT", "python models/paper/vision.py", results, REMARKS, PAPER
    )


if __name__ == "__main__":
    suite.main(__doc__, build)
