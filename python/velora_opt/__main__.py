"""``python -m velora_opt``: the command itself, with its arguments, output and exit status."""

from __future__ import annotations

import os
import subprocess
import sys

from ._binary import VeloraError, find_binary


def main() -> int:
    """Run the command in the place of this process where the system can, and as a child elsewhere."""
    try:
        binary = find_binary()
    except VeloraError as error:
        print(f"velora-opt: {error}", file=sys.stderr)
        return 1
    arguments = [binary, *sys.argv[1:]]
    if os.name == "posix":
        sys.stdout.flush()
        os.execv(binary, arguments)
    return subprocess.call(arguments)


if __name__ == "__main__":
    sys.exit(main())
