"""Weights in 4 bits: symmetric integers (int4) and the NormalFloat of QLoRA (nf4), and files of them.

    codes, scales = quantise.int4(weight)
    quantise.save("base.safetensors", {"weight.scales": scales}, {"weight": codes})

The blocks lie along the last axis, one scale each; the last block of a row may be short. safetensors has no
elements of 4 bits: a packed tensor is written as bytes of two elements each, the first in the low half, and
the metadata `velora.packed` gives its type and shape, which is what `velora-opt` reads.
"""

import json
import os
import pathlib

import numpy as np
import safetensors.numpy

# NormalFloat 4 (arXiv 2305.14314, appendix E), as float32: quantiles of the normal distribution, and 0.
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
RANGES = {np.dtype(np.int8): ("int4", -8, 7), np.dtype(np.uint8): ("uint4", 0, 15)}


def blocks(weight, block):
    """`weight` as float32 [..., blocks, block], filled with zeros at the end of each row."""
    weight = np.asarray(weight, np.float32)
    if weight.ndim == 0 or weight.shape[-1] == 0 or block < 1:
        raise ValueError(f"shape {weight.shape}, blocks of {block}: there is nothing to cut into blocks")
    if not np.isfinite(weight).all():
        raise ValueError("a weight is not finite")
    count = -(-weight.shape[-1] // block)
    short = count * block - weight.shape[-1]
    padded = np.pad(weight, [(0, 0)] * (weight.ndim - 1) + [(0, short)])
    return padded.reshape(*weight.shape[:-1], count, block)


def rows(blocked, length):
    """The inverse of `blocks`."""
    return blocked.reshape(*blocked.shape[:-2], -1)[..., :length]


def each(scales, block, length):
    """The scale of every element of a row."""
    return np.repeat(scales, block, axis=-1)[..., :length]


def divided(blocked, scales):
    """Every block over its scale; a block of zeros, whose scale is 0, stays."""
    return blocked / np.where(scales > 0, scales, np.float32(1))[..., None]


def int4(weight, block=32):
    """Codes, int8 in -7..7 of the shape of `weight`, and scales, float32 [..., blocks]: w ≈ code · scale."""
    blocked = blocks(weight, block)
    scales = np.abs(blocked).max(axis=-1) / np.float32(7)
    codes = np.clip(np.rint(divided(blocked, scales)), -7, 7).astype(np.int8)
    return rows(codes, np.shape(weight)[-1]), scales


def from_int4(codes, scales, block=32):
    """The weights, float32, that `int4` wrote."""
    return codes.astype(np.float32) * each(scales, block, codes.shape[-1])


def nf4(weight, block=64):
    """Codes, uint8 in 0..15 of the shape of `weight`, and scales, float32 [..., blocks]: w ≈ NF4[code] · scale."""
    blocked = blocks(weight, block)
    scales = np.abs(blocked).max(axis=-1)
    codes = np.searchsorted((NF4[1:] + NF4[:-1]) / 2, divided(blocked, scales)).astype(np.uint8)
    return rows(codes, np.shape(weight)[-1]), scales


def from_nf4(codes, scales, block=64):
    """The weights, float32, that `nf4` wrote."""
    return NF4[codes] * each(scales, block, codes.shape[-1])


def pack(codes):
    """Codes, int8 or uint8, as bytes: two elements each, the first in the low half; an odd last one alone."""
    name, low, high = RANGES[codes.dtype]
    if codes.size and not low <= codes.min() <= codes.max() <= high:
        raise ValueError(f"{codes.min()}..{codes.max()} does not fit {name}")
    halves = codes.reshape(-1).view(np.uint8) & 15
    halves = np.append(halves, np.zeros(halves.size % 2, np.uint8))
    return halves[::2] | halves[1::2] << 4


def unpack(data, dtype, shape):
    """The codes that `pack` wrote; `dtype` is int4 or uint4."""
    halves = np.stack([data & 15, data >> 4], axis=-1).reshape(-1)[: int(np.prod(shape))]
    if dtype == "int4":
        halves = (halves << 4).view(np.int8) >> 4
    return halves.reshape(shape)


def save(path, tensors, packed=None):
    """Writes a safetensors file of `tensors` and of `packed`, codes by name: int8 as int4, uint8 as uint4."""
    packed = packed or {}
    taken = tensors.keys() & packed.keys()
    if taken:
        raise ValueError(f"{sorted(taken)}: tensors of one name")
    # The package writes other strides than these as if they were these.
    content = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}
    content |= {name: pack(codes) for name, codes in packed.items()}
    types = {name: {"dtype": RANGES[codes.dtype][0], "shape": codes.shape} for name, codes in sorted(packed.items())}
    metadata = {"velora.packed": json.dumps(types, separators=(",", ":"))} if types else None
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(safetensors.numpy.save(content, metadata))
    os.replace(partial, path)
