"""Ablations on a small LLaMA, fine-tuned and from scratch (the paper's tables 5 and 6): sub-tokens, directions, layers, rank, scale.

    python models/paper/ablations.py [--quick]

Run from anywhere, after `cargo build --release`; requirements.txt has what it needs. Everything is kept in the work folder,
and a second run repeats nothing. Where nothing else is said, all layers are rewritten that free something, with default settings.
"""

import decoder
import suite
import tables
from suite import Row, Task

GRAPH, TWIN, ALL_FROZEN = "llama_s_full", "none", "all frozen"
LAYERS = {
    "q": r"q_proj", "k": r"k_proj", "v": r"v_proj", "down": r"down_proj", "v, down": r"(v|down)_proj",
    "all seven": r"(q|k|v|o|gate|up|down)_proj",
}  # fmt: skip
# The paper's: MMLU of LLaMA-7B, and its memory of activations.
PAPER = ("MMLU, %", "memory")
REMARKS = [
    "- **From scratch, 100 steps**: deviations over seeds are 0.3 to 0.8, so that only large differences count.",
    "- **Sub-tokens**: finer is better throughout (0.4, 0.6, 1.2 and 1.5 more perplexity than none for D/64 to D/8); the paper's best is D/32, and its bytes fall by",
    "  more than a formula gives.",
    "- **Directions** cannot be told apart (0.4 to 0.6); the paper's differ by 2.7 points, without error bars.",
    "- **Layers**: q, k and v alone free nothing, and cost the bytes of z, since the other two keep their common input alive; the paper counts 0.25 GB for each. Down frees 9 %.",
    "  For value, and value and down, frozen layers are better here.",
    "- **Rank** 2 and 4 lose nothing that can be seen, at 0.87 and 0.94 of the saved bytes and 1.25 and 1.16 of the time. **Scale** does not matter to AdamW.",
]


def compressed(name, rewrite, frozen=ALL_FROZEN, paper=(), frees=True):
    return Row(name, GRAPH, TWIN, rewrite=(*rewrite, *suite.ALL), twin=TWIN, frozen_row=frozen, frees=frees, paper=paper)


def rows():
    found = [Row(TWIN, GRAPH, (1e-3, 3e-3, 1e-2), paper=("38.1", "1.67 GB"))]
    found += [
        compressed(f"sub-token D/{groups}", ("--groups", str(groups)), paper=paper)
        for groups, paper in (
            (64, ("37.9", "865 MB")), (32, ("39.5", "808 MB")), (16, ("39.3", "779 MB")), (8, ("37.2", "764 MB")),
        )
    ]  # fmt: skip
    found += [
        compressed(f"direction: {kind}", ("--init", kind), paper=paper)
        for kind, paper in (
            ("random", ("36.8", "")), ("svd", ("37.1", "")), ("first-batch", ("39.5", "")), ("running-average", ("38.9", "")),
            ("batch-average", ("", "")),
        )
    ]  # fmt: skip
    memory = {"q": "1.42", "k": "1.42", "v": "1.42", "down": "1.01", "v, down": "0.76", "all seven": "0.24"}
    score = {"q": "36.2", "k": "36.2", "v": "36.7", "down": "38.9", "v, down": "39.5", "all seven": "37.0"}
    for layers, pattern in LAYERS.items():
        name = f"layers: {layers}"
        frozen = f"layers: {layers} frozen"
        found += [
            compressed(
                name, ("--select", "all", "--include", pattern), frozen, (score[layers], f"{memory[layers]} GB"), layers not in "qkv"
            ),
            Row(frozen, GRAPH, TWIN, frozen_like=name),
        ]
    found += [compressed(f"rank {rank} (svd)", ("--init", "svd", "--rank", str(rank))) for rank in (2, 4)]
    found += [compressed(f"scale {scale}", ("--scale", scale)) for scale in ("0.5", "2")]
    found.append(Row(ALL_FROZEN, GRAPH, TWIN, frozen_like="sub-token D/32"))
    return found


def build(opt):
    text = suite.files(opt, "bytes")
    dims, steps = {"batch": 8, "seq": 128}, 16 if opt.quick else 100
    tuned = Task(
        "Fine-tuning all weights", text["fortunes_train"], text["fortunes_test"], dims, 8, steps, "perplexity", decoder.base(opt)
    )
    scratch = Task("128 wide, from scratch", text["kjv_train"], text["kjv_test"], dims, 8, steps, "perplexity")
    results = [suite.Suite(opt, "ablations", task, rows()).execute() for task in (tuned, scratch)]
    tables.write(opt, "ablations", "Ablations", "python models/paper/ablations.py", results, REMARKS, PAPER)


if __name__ == "__main__":
    suite.main(__doc__, build)
