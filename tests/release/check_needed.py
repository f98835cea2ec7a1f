"""What the release binary needs at run time: the C library, and nothing else.

    python3 tests/release/check_needed.py target/release/velora-opt

Reads the dynamic section of the ELF file itself, so that no tool has to be there. Then runs the binary: an error
still ends in a message and not in a crash, and without CUDA's libraries `run` still falls back to the CPU. (That
panics unwind with this unwinder, every failing Rust test shows: test programs are linked in the same way.)
"""

import os
import pathlib
import struct
import subprocess
import sys
import tempfile

# The loader is named by the C library's own symbols on some architectures.
ALLOWED = {"libc.so.6", "libm.so.6"}
LOADERS = ("ld-linux", "ld64.so")
NEEDED, STRTAB, RPATH, RUNPATH = 1, 5, 15, 29
LOAD, DYNAMIC = 1, 2


def entries(data: bytes) -> list[tuple[int, str]]:
    """The names in the dynamic section of a 64-bit little-endian ELF file, with their tags."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = []
    for index in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, start + index * size)
        segments.append((kind, offset, address, length))
    tags = []
    for kind, offset, _, length in segments:
        if kind == DYNAMIC:
            tags = list(struct.iter_unpack("<QQ", data[offset : offset + length]))
    if not tags:
        raise ValueError("no dynamic section")
    (table,) = [value for tag, value in tags if tag == STRTAB]
    (strings,) = [
        offset + table - address
        for kind, offset, address, length in segments
        if kind == LOAD and address <= table < address + length
    ]
    named = [(tag, value) for tag, value in tags if tag in (NEEDED, RPATH, RUNPATH)]
    return [(tag, data[strings + at : data.index(b"\0", strings + at)].decode()) for tag, at in named]


def check_needed(binary: pathlib.Path) -> None:
    found = entries(binary.read_bytes())
    needed = [name for tag, name in found if tag == NEEDED]
    paths = [name for tag, name in found if tag != NEEDED]
    print(f"{binary} needs {', '.join(needed)}")
    others = [name for name in needed if name not in ALLOWED and not name.startswith(LOADERS)]
    if others:
        sys.exit(f"it should need {' and '.join(sorted(ALLOWED))} alone, and needs {', '.join(others)}")
    if "libc.so.6" not in needed:
        sys.exit("it does not need the C library: was the dynamic section read rightly?")
    if paths:
        sys.exit(f"it looks for libraries in {', '.join(paths)}")


def check_runs(binary: pathlib.Path) -> None:
    models = pathlib.Path(__file__).resolve().parents[2] / "models"
    with tempfile.TemporaryDirectory() as folder:
        # Nothing of the environment: no path, no libraries beside the system's.
        def tool(*arguments: str, **options: object) -> subprocess.CompletedProcess:
            environment = {"HOME": folder, "CUDA_VISIBLE_DEVICES": ""}
            return subprocess.run(
                [binary, *arguments], cwd=folder, env=environment, capture_output=True, text=True, **options
            )

        rewritten = tool(str(models / "llama_tiny.onnx"), "-o", "out.onnx", "-q")
        assert rewritten.returncode == 0, rewritten
        trained = tool(
            "run", str(models / "aot/digits_mlp.onnx"), "--data", str(models / "data/digits_train.npz"), "--steps", "1"
        )
        assert trained.returncode == 0 and "running on the CPU" in trained.stderr, trained
        forced = tool(
            "run", str(models / "aot/digits_mlp.onnx"), "--data", str(models / "data/digits_train.npz"),
            "--device", "cuda",
        )
        assert forced.returncode == 1 and len(forced.stderr.splitlines()) == 1, forced
        assert "panicked" not in forced.stderr, forced
        missing = tool("missing.onnx", "-o", "out.onnx")
        assert missing.returncode == 1 and len(missing.stderr.splitlines()) == 1, missing


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    check_needed(pathlib.Path(os.path.abspath(sys.argv[1])))
    check_runs(pathlib.Path(os.path.abspath(sys.argv[1])))
