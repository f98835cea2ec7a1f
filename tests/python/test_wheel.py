"""The wheel's tag says manylinux, and its binary keeps what the tag promises (PEP 600).

    python test_wheel.py WHEEL
"""

import io
import re
import sys
import unittest
import zipfile

from elftools.elf.elffile import ELFFile

# What any manylinux system has (PEP 600 and auditwheel's policy), as far as a program of Rust may want it.
LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libgcc_s.so.1",
             "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
WHEEL = None


def promises(elf, glibc):
    """What a binary needs that a system with that glibc may not have."""
    for segment in elf.iter_segments("PT_DYNAMIC"):
        needed = {tag.needed for tag in segment.iter_tags("DT_NEEDED")}
        yield from (f"library {name}" for name in sorted(needed - LIBRARIES))
    section = elf.get_section_by_name(".gnu.version_r")
    for library, versions in section.iter_versions() if section else ():
        for version in versions:
            match = re.fullmatch(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", version.name)
            if match and (int(match[1]), int(match[2])) > glibc:
                yield f"{version.name} of {library.name}"


class Wheel(unittest.TestCase):
    def setUp(self):
        self.wheel = self.enterContext(zipfile.ZipFile(WHEEL))
        self.names = self.wheel.namelist()

    def binary(self):
        (name,) = [n for n in self.names if n.endswith(".data/scripts/velora-opt")]
        return ELFFile(io.BytesIO(self.wheel.read(name)))

    def glibc(self):
        """The oldest that the tag promises, of the wheel's own record."""
        (record,) = [n for n in self.names if n.endswith(".dist-info/WHEEL")]
        tags = re.findall(r"^Tag: py3-none-(\S+)$", self.wheel.read(record).decode(), re.M)
        self.assertTrue(tags)
        found = [re.fullmatch(r"manylinux_(\d+)_(\d+)_\w+", tag) for tag in tags]
        # manylinux2014 is the older name of manylinux_2_17.
        others = [tag for tag, match in zip(tags, found) if not match and not tag.startswith("manylinux2014_")]
        self.assertEqual(others, [])
        return min((int(m[1]), int(m[2])) for m in found if m)

    def test_tag(self):
        self.assertRegex(WHEEL, r"-py3-none-(\w+\.)?manylinux_2_\d+_(x86_64|aarch64)(\.\w+)?\.whl$")
        self.assertGreaterEqual(self.glibc(), (2, 17))

    def test_binary_keeps_the_promise(self):
        self.assertEqual(list(promises(self.binary(), self.glibc())), [])

    def test_check_can_fail(self):
        self.assertTrue(list(promises(self.binary(), (2, 4))))

    def test_binary_is_stripped(self):
        self.assertIsNone(self.binary().get_section_by_name(".symtab"))

    def test_contents(self):
        for wanted in ("velora_opt/__init__.py", "velora_opt/py.typed"):
            self.assertIn(wanted, self.names)
        for licence in ("LICENSE-MIT", "LICENSE-APACHE"):
            self.assertTrue(any(n.endswith(f"licenses/{licence}") for n in self.names))
        strangers = [n for n in self.names if not re.match(r"velora_opt(-[\d.]+\.(dist-info|data))?/", n)]
        self.assertEqual(strangers, [])
        (metadata,) = [n for n in self.names if n.endswith("METADATA")]
        requires = re.findall(r"^Requires-Dist: (.*)$", self.wheel.read(metadata).decode(), re.M)
        self.assertEqual([r for r in requires if "extra ==" not in r], [])


if __name__ == "__main__":
    WHEEL = sys.argv.pop(1)
    unittest.main()
