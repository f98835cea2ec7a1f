"""Writes the files that tests/data.rs reads. Needs numpy, ml_dtypes and safetensors (with torch)."""

import io
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from numpy.lib import format as npy
from safetensors.torch import save_file

here = Path(__file__).parent
names = "float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split()


def numbers(name):
    plain = np.arange(24)
    if name == "bool":
        plain = plain % 2
    elif not name.startswith("u"):
        plain = plain - 12
    kind = ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)
    return plain.astype(kind).reshape(2, 3, 4)


arrays = {}
for name in names:
    array = numbers(name)
    arrays[name] = array
    if name != "bfloat16":
        arrays[name + "_fortran"] = np.asfortranarray(array)
        if array.itemsize > 1:
            big = array.astype(array.dtype.newbyteorder(">"))
            arrays[name + "_big"] = big
            arrays[name + "_big_fortran"] = np.asfortranarray(big)
arrays["scalar"] = np.float32(3.5)
arrays["empty"] = np.zeros((3, 0, 2), np.int64)
arrays["line"] = np.array([7, 8, 9], np.int64)

for file, method in [("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)]:
    save = np.savez if file == "stored" else np.savez_compressed
    save(here / f"{file}.npz", **arrays)
    with zipfile.ZipFile(here / f"{file}.npz", "a", method) as archive:
        for version in [(2, 0), (3, 0)]:
            buffer = io.BytesIO()
            npy.write_array(buffer, arrays["float32"], version=version)
            archive.writestr(f"version{version[0]}.npy", buffer.getvalue())
        archive.writestr("note.txt", "not an array")

np.savez(here / "complex.npz", z=np.zeros(2, np.complex64))
np.savez(here / "text.npz", t=np.array(["hello"]))
np.savez(here / "record.npz", r=np.zeros(2, [("a", "<f4")]))
np.save(here / "one.npy", np.zeros(2))

tensors = {}
for name in names:
    array = arrays[name]
    if name == "bfloat16":
        tensors[name] = torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    else:
        tensors[name] = torch.from_numpy(array)
save_file(tensors, here / "tensors.safetensors", metadata={"format": "pt"})
