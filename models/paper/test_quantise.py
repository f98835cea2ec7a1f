"""quantise.py: what rounding costs, and the bytes of a file.

    python test_quantise.py
"""

import json
import pathlib
import tempfile
import unittest

import numpy as np
import safetensors.numpy

import quantise

SHAPES = [(5, 128), (3, 4, 100), (7,), (2, 1)]  # whole blocks, short ones, one axis, one element


def weights(shape):
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    return values * np.logspace(-3, 3, shape[-1], dtype=np.float32)


class Int4(unittest.TestCase):
    def test_half_a_step(self):
        for shape in SHAPES:
            weight = weights(shape)
            codes, scales = quantise.int4(weight)
            self.assertEqual((codes.dtype, codes.shape), (np.int8, shape))
            self.assertEqual((scales.dtype, scales.shape), (np.float32, (*shape[:-1], -(-shape[-1] // 32))))
            error = np.abs(quantise.from_int4(codes, scales) - weight)
            step = quantise.each(scales, 32, shape[-1])
            self.assertTrue((error <= step * (0.5 + 1e-6)).all())

    def test_largest_is_kept(self):
        codes, scales = quantise.int4(np.array([3.5, -14.0, 1.0, 0.9], np.float32))
        self.assertEqual((codes.tolist(), scales.tolist()), ([2, -7, 0, 0], [2.0]))

    def test_levels_are_exact(self):
        codes, scales = quantise.int4(np.arange(-7, 8, dtype=np.float32) * 0.25)
        self.assertEqual((codes.tolist(), scales.tolist()), (list(range(-7, 8)), [0.25]))


class Nf4(unittest.TestCase):
    def test_nearest_level(self):
        for shape in SHAPES:
            weight = weights(shape)
            codes, scales = quantise.nf4(weight)
            self.assertEqual((codes.dtype, codes.shape), (np.uint8, shape))
            self.assertEqual((scales.dtype, scales.shape), (np.float32, (*shape[:-1], -(-shape[-1] // 64))))
            scale = quantise.each(scales, 64, shape[-1])
            error = np.abs(quantise.from_nf4(codes, scales) - weight)
            least = np.abs(quantise.NF4 * scale[..., None] - weight[..., None]).min(axis=-1)
            self.assertTrue((error <= least + scale * 1e-6).all())
            self.assertTrue((error <= scale * (np.diff(quantise.NF4).max() / 2 + 1e-6)).all())

    def test_levels_are_exact(self):
        self.assertEqual(len(quantise.NF4), 16)
        self.assertTrue((np.diff(quantise.NF4) > 0).all())
        codes, scales = quantise.nf4(quantise.NF4 * 4)
        self.assertEqual((codes.tolist(), scales.tolist()), (list(range(16)), [4.0]))


class Blocks(unittest.TestCase):
    def test_zeros(self):
        weight = np.ones((2, 128), np.float32)
        weight[0, :64] = 0
        for to, back, zero in [(quantise.int4, quantise.from_int4, 0), (quantise.nf4, quantise.from_nf4, 7)]:
            codes, scales = to(weight)
            self.assertTrue((codes[0, :64] == zero).all())
            self.assertEqual(scales[0, 0], 0)
            self.assertTrue((back(codes, scales) == weight).all())

    def test_one_block_does_not_change_another(self):
        weight = weights((4, 128))
        for to, block in [(quantise.int4, 32), (quantise.nf4, 64)]:
            codes, scales = to(weight)
            first, scale = to(weight[:, :block])
            self.assertTrue((codes[:, :block] == first).all() and (scales[:, :1] == scale).all())

    def test_smallest_number(self):
        for to in (quantise.int4, quantise.nf4):
            codes, scales = to(np.full(3, 1e-45, np.float32))
            self.assertTrue(np.isfinite(scales).all() and (codes == codes[0]).all())

    def test_refusals(self):
        for weight in (np.float32(1), np.ones((3, 0), np.float32), np.array([np.nan], np.float32)):
            for to in (quantise.int4, quantise.nf4):
                self.assertRaises(ValueError, to, weight)


class Files(unittest.TestCase):
    def test_first_in_the_low_half(self):
        self.assertEqual(quantise.pack(np.array([[1, -2], [7, -8]], np.int8)).tolist(), [0xE1, 0x87])
        self.assertEqual(quantise.pack(np.array([15, 2, 3], np.uint8)).tolist(), [0x2F, 0x03])
        self.assertEqual(quantise.pack(np.array([], np.uint8)).tolist(), [])

    def test_order_is_that_of_the_elements(self):
        codes = np.arange(6, dtype=np.int8).reshape(2, 3)
        self.assertEqual(quantise.pack(codes.T).tolist(), [0x30, 0x41, 0x52])

    def test_too_large(self):
        self.assertRaises(ValueError, quantise.pack, np.array([8], np.int8))
        self.assertRaises(ValueError, quantise.pack, np.array([16], np.uint8))

    def test_save(self):
        weight = weights((3, 33))
        signed, scales = quantise.int4(weight)
        unsigned, _ = quantise.nf4(weight)
        with tempfile.TemporaryDirectory() as scratch:
            path = pathlib.Path(scratch, "base.safetensors")
            plain = {"scales": scales, "turned": weight.T, "one": np.float32(2)}
            quantise.save(path, plain, {"signed": signed, "unsigned": unsigned})
            data = path.read_bytes()
            quantise.save(path, plain, {"unsigned": unsigned, "signed": signed})
            self.assertEqual(data, path.read_bytes())
            self.assertEqual([file.name for file in path.parent.iterdir()], [path.name])
            self.assertRaises(ValueError, quantise.save, path, plain, {"scales": signed})
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        types = json.loads(header["__metadata__"]["velora.packed"])
        shape = [3, 33]
        self.assertEqual(
            types, {"signed": {"dtype": "int4", "shape": shape}, "unsigned": {"dtype": "uint4", "shape": shape}}
        )
        tensors = safetensors.numpy.load(data)
        for name, codes in [("signed", signed), ("unsigned", unsigned)]:
            self.assertEqual((tensors[name].dtype, tensors[name].shape), (np.uint8, (50,)))
            self.assertTrue((quantise.unpack(tensors[name], **types[name]) == codes).all())
        self.assertTrue((tensors["turned"] == weight.T).all() and (tensors["scales"] == scales).all())
        self.assertEqual((tensors["one"].shape, tensors["one"]), ((), 2))


if __name__ == "__main__":
    unittest.main()
