#!/usr/bin/env python3
"""Build the wheel: the command, portable to old systems, and the module that calls it.

    python build_wheel.py [--out ../target/wheel] [--glibc 2.17]

Run it in an environment with what requirements-build.txt pins: maturin, and zig as a linker that knows the symbols of
every glibc. Where target/release is built already, only the command's own crate is compiled anew: the linker is an
argument of its last step, not of the build (`maturin --zig` compiles everything for a target of its own). Linux on
x86-64 or AArch64.

maturin itself refuses a wheel whose binary does not keep what its tag promises; tests/python/test_wheel.py looks again.
"""

import argparse
import os
import pathlib
import platform
import subprocess
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--out", type=pathlib.Path, default=ROOT / "target/wheel", help="folder of the wheel")
    cli.add_argument("--glibc", default="2.17", help="the oldest glibc that it must run on")
    opt = cli.parse_args()
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ("x86_64", "aarch64"):
        raise SystemExit(f"expected Linux on x86_64 or aarch64, found {sys.platform} on {machine}")
    scripts = pathlib.Path(sysconfig.get_path("scripts"))
    out = opt.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("velora_opt-*.whl"):
        old.unlink()
    # `maturin zig` leaves out what rustc tells linkers and zig does not know.
    # rustc tells from a linker's name what it is: this one is a compiler.
    linker = out / f"glibc-{opt.glibc}" / "cc"
    linker.parent.mkdir(exist_ok=True)
    target = f"{machine}-linux-gnu.{opt.glibc}"
    linker.write_text(f'#!/bin/sh\nexec "{scripts}/maturin" zig cc -- -target {target} "$@"\n', encoding="utf-8")
    linker.chmod(0o755)
    command = [
        scripts / "maturin", "build", "--release", "--locked", "--out", out,
        "--compatibility", f"manylinux_{opt.glibc.replace('.', '_')}", "--", "-C", f"linker={linker}",
    ]
    # zig is a module of this environment, and maturin asks the `python3` that it finds first.
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        return done.returncode
    (wheel,) = out.glob("velora_opt-*.whl")
    print(wheel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
