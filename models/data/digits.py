"""scikit-learn's handwritten digits as batches for the `digits_*` graphs.

    python digits.py [--out .] [--test 360] [--seed 0]

Writes digits_train.npz and digits_test.npz with `x`, float32 [n, 64], pixels in [0, 1], and `labels`,
int64 [n]. The 1797 images of 8x8 (UCI's test set of optical recognition of handwritten digits) come
with the scikit-learn package, so nothing is downloaded. The split is a permutation by the seed; the
same seed writes the same bytes.
"""

import argparse
import pathlib

import numpy as np
from sklearn.datasets import load_digits


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), help="folder (default: .)")
    cli.add_argument("--test", type=int, default=360, help="images held out (default: 360)")
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--names", default="x,labels", help="names of the arrays (default: x,labels)")
    opt = cli.parse_args()
    pixels_name, labels_name = opt.names.split(",")

    digits = load_digits()
    pixels = (digits.data / 16).astype(np.float32)  # 16 is the darkest
    labels = digits.target.astype(np.int64)
    if not 0 < opt.test < len(labels):
        cli.error(f"--test {opt.test}: expected 1 to {len(labels) - 1}")
    order = np.random.default_rng(opt.seed).permutation(len(labels))

    opt.out.mkdir(parents=True, exist_ok=True)
    for part, rows in (("test", order[: opt.test]), ("train", order[opt.test :])):
        path = opt.out / f"digits_{part}.npz"
        np.savez_compressed(path, **{pixels_name: pixels[rows], labels_name: labels[rows]})
        print(f"{path}: {len(rows)} images, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
