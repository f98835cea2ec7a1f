"""English text as sequences of bytes, for the language models `llama_256x4` and `llama_768x4`.

    python text.py [--out .] [--seq 128] [--text FILE]

The text is the King James Bible of the Debian packages bible-kjv-text and bible-kjv, 4.1 MB of prose
without the verse numbers, one verse a line. `apt-get download` fetches the packages and `dpkg-deb`
unpacks them to a temporary folder; nothing is installed. --text takes any other file instead.

Writes text_train.npz and text_test.npz with `x`, int64 [n, seq], and `y`, int64 [n, seq]: the bytes,
and the byte that follows each. --names calls them otherwise. The text is cut every seq + 1 bytes, so
that no two sequences share a byte, and every 20th sequence is held out.
"""

import argparse
import hashlib
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np

PACKAGES = ["bible-kjv-text", "bible-kjv"]  # the compressed text, and the program that prints it
# Of the text that version 4.38 gives (Debian 12).
KNOWN = "b5c4940bcfeee072c0935b5200d0f9d88a00a0199cb0961d16133458fcdfae5d"
HELD_OUT = 20  # every 20th sequence


def unpack(packages, scratch):
    """Downloads Debian packages and unpacks them to a folder of `scratch`, which is returned."""
    run = lambda *command: subprocess.run(command, cwd=scratch, check=True, capture_output=True)  # noqa: E731
    try:
        run("apt-get", "download", *packages)
    except subprocess.CalledProcessError:
        # A new machine has no lists of packages yet.
        run("apt-get", "update", "-qq")
        run("apt-get", "download", *packages)
    for package in pathlib.Path(scratch).glob("*.deb"):
        run("dpkg-deb", "-x", str(package), "unpacked")
    return pathlib.Path(scratch, "unpacked")


def verses():
    """The verses of the King James Bible, one a line: `Ge1:1 In the beginning ...`."""
    with tempfile.TemporaryDirectory() as scratch:
        usr = unpack(PACKAGES, scratch) / "usr"
        command = [usr / "bin/bible", "-f", "-p", usr / "lib", "Gen1:1-Rev22:21"]
        return subprocess.run(command, check=True, capture_output=True).stdout


def prose(lines):
    """What `verses` gives, without the numbers."""
    text = re.sub(rb"^\w+:\d+ ", b"", lines, flags=re.MULTILINE)
    digest = hashlib.sha256(text).hexdigest()
    if digest != KNOWN:
        print(f"text.py: the text is not that of version 4.38: sha256 {digest}", file=sys.stderr)
    return text


def bible():
    """The verses of the King James Bible, one a line, without their numbers."""
    return prose(verses())


def sequences(text, length):
    """`text` cut into rows of length + 1 bytes; what is left over at the end goes."""
    count = len(text) // (length + 1)
    return np.frombuffer(text, np.uint8)[: count * (length + 1)].reshape(count, length + 1).astype(np.int64)


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), help="folder (default: .)")
    cli.add_argument("--seq", type=int, default=128, help="bytes of a sequence (default: 128)")
    cli.add_argument("--text", type=pathlib.Path, help="a text file in the place of the Bible")
    cli.add_argument("--names", default="x,y", help="names of the arrays (default: x,y)")
    opt = cli.parse_args()
    tokens_name, labels_name = opt.names.split(",")

    try:
        text = opt.text.read_bytes() if opt.text else bible()
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or b""
        sys.exit(f"text.py: {error}\n{said.decode(errors='replace')}--text FILE takes another text")
    rows = sequences(text, opt.seq)
    if len(rows) < HELD_OUT:
        sys.exit(f"text.py: {len(text)} bytes give {len(rows)} sequences of {opt.seq}, expected {HELD_OUT}")
    held_out = np.arange(len(rows)) % HELD_OUT == HELD_OUT - 1

    opt.out.mkdir(parents=True, exist_ok=True)
    for part, chosen in (("test", rows[held_out]), ("train", rows[~held_out])):
        path = opt.out / f"text_{part}.npz"
        np.savez_compressed(path, **{tokens_name: chosen[:, :-1], labels_name: chosen[:, 1:]})
        print(f"{path}: {len(chosen)} sequences of {opt.seq}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
