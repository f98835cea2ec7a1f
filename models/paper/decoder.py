"""Decoder fine-tuning: a small LLaMA that has read one text learns another, with adapters (the paper's table 3).

    python models/paper/decoder.py [--quick]

Run from anywhere, after `cargo build --release`; requirements.txt has what it needs. Everything is kept in the work folder,
and a second run repeats nothing.
"""

import suite
import tables
from suite import Row, Task, group

PAPER = ("MMLU, 7B, %", "GB (estimated)")
RATES = (1e-3, 3e-3, 1e-2)
VALUE_AND_DOWN = ("--select", "all", "--include", r"(v|down)_proj\.lora_A")
REMARKS = [
    "- **4 bits cost nothing that can be seen** (8.82 in 32 bits, 8.84 as integers, 8.85 as NF4, with deviations of 0.02 to 0.04), as in the",
    "  paper's last three rows. Here they also free next to nothing: the base is 3 of 64 MB, and as exported the weights in 32 bits live",
    "  from the forward to the backward half, which only a plan changes.",
    "- **VeLoRA gains in the paper (39.0 to 39.5), and costs here**: 1.1 % of perplexity on value and down adapters, 2.1 % on all. The paper's",
    "  difference is one run each, without error bars.",
    "- **It beats the frozen row**: 54 ± 32 % of the gap to untrained A is recovered for value and down, 73 ± 3 % for all.",
    "- **Value adapters free nothing**: q, k and v read one input, and A of q and k still need it. The paper counts it as freed (15 % of",
    "  its estimate); by lifetimes 8 % of what is saved goes, all of it from down.",
    "- **What limits it**: inputs of linear layers are 17 % of what this graph saves. An exact plan at 1.1 of the predicted time leaves 0.44 of the saved bytes and loses",
    "  nothing; with compression it is 0.41, for 1.9 % of perplexity. Where time for recomputation is there, compression adds little to it.",
]


def rows():
    """The rows of the paper's table 3; adapters of rank 8 on all seven projections."""
    return [
        Row("LoRA", "llama_s_lora", RATES, paper=("38.4", "8.79")),
        Row("LoRA, 4-bit integers", "llama_s_int4", RATES, paper=("37.2", "5.77")),
        Row("QLoRA", "llama_s_nf4", RATES, paper=("39.0", "5.77")),
        *group("QLoRA", "llama_s_nf4", "v, down", VALUE_AND_DOWN, ("39.5", "4.88")),
        *group("QLoRA", "llama_s_nf4", "all", ()),
        *group("QLoRA", "llama_s_nf4", "planned", suite.PLANNED),
        Row("QLoRA, exact plan", "llama_s_nf4", "QLoRA", rewrite=suite.EXACT, same_as="QLoRA"),
        *group("LoRA", "llama_s_lora", "all", ()),
    ]


DIMS = {"batch": 8, "seq": 128}


def base(opt):
    """The weights of the model that has read the first text."""
    text = suite.files(opt, "bytes")
    before = Task("King James Bible, before", text["kjv_train"], text["kjv_test"], DIMS, 8, 30 if opt.quick else 1200, "perplexity")
    return suite.pretrained(opt, before, "llama_s_full", 2e-3)


def task(opt):
    """Fine-tuning of that model to the second text."""
    text = suite.files(opt, "bytes")
    return Task(
        "Bible to fortunes", text["fortunes_train"], text["fortunes_test"], DIMS, 8, 40 if opt.quick else 150, "perplexity", base(opt)
    )


def build(opt):
    results = [suite.Suite(opt, "decoder", task(opt), rows()).execute()]
    tables.write(
        opt, "decoder", "Decoder: fine-tuning with adapters", "python models/paper/decoder.py", results, REMARKS, PAPER
    )


if __name__ == "__main__":
    suite.main(__doc__, build)
