"""Directions where all weights of a small LLaMA are trained from scratch for longer than in any other table.

    python models/paper/longer.py [--quick]

Run from anywhere, after `cargo build --release`; requirements.txt has what it needs. Everything is kept in the work folder,
and a second run repeats nothing. The learning rate is the one that the ablations chose for full training.
"""

import ablations
import suite
import tables

REMARKS = [
    "- **What compression costs here does not go away with training**: all layers at D/32 cost 4.0 % of perplexity by a random direction and 7.5 % by batch-average; after 500 steps",
    "  it was 3.9 and 6.0 % ([ablations](ablations.md)). Both recover more than nine tenths of what freezing loses.",
    "- **A random direction is better** in four seeds of five: batch-average has 3.5 ± 3.9 % more perplexity, after 500 steps 2.1 ± 2.5. The paper finds it worst, by 2.7 points of MMLU, but on adapters, where it is last here, too.",
]


def build(opt):
    task, rows = ablations.longer(opt, "128 wide, from scratch", 20 if opt.quick else 1000)
    results = [suite.Suite(opt, "longer", task, rows).execute()]
    tables.write(opt, "longer", "Directions over a thousand steps", "python models/paper/longer.py", results, REMARKS)


if __name__ == "__main__":
    suite.main(__doc__, build)
