"""Where the command is, and how it is called: never through a shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from typing import List, NamedTuple, Optional, Sequence

NAME = "velora-opt"


class VeloraError(Exception):
    """The command refused, with its one-line message.

    Attributes:
        status: its exit status: 1 where the model cannot be handled, 2 for wrong usage, negative where a signal
            ended it, None where it was not run.
    """

    def __init__(self, message: str, status: Optional[int] = None) -> None:
        super().__init__(message)
        self.status = status


class AlreadyRewritten(VeloraError):
    """The model is one that velora-opt wrote: it is handed on unchanged, and there is nothing to report."""


class VeloraWarning(UserWarning):
    """What the command said on standard error although it did its work."""


def find_binary() -> str:
    """The command's path.

    The first of: the environment variable ``VELORA_OPT``; the scripts folders of this Python, where the wheel puts
    it; the search path.

    Raises:
        VeloraError: it is in none of these, or ``VELORA_OPT`` is no program.
    """
    given = os.environ.get("VELORA_OPT")
    if given:
        if os.path.isfile(given) and os.access(given, os.X_OK):
            return os.path.abspath(given)
        raise VeloraError(f"the environment variable VELORA_OPT names {given!r}, which is no program")
    program = NAME + (sysconfig.get_config_var("EXE") or "")
    for folder in _script_folders():
        path = os.path.join(folder, program)
        if os.path.isfile(path):
            return path
    found = shutil.which(NAME)
    if found:
        return found
    raise VeloraError(
        f"cannot find the command {NAME}: it is in no scripts folder of {sys.executable} and not on PATH; install "
        "the package from a wheel, or set VELORA_OPT to the program"
    )


def _script_folders() -> List[str]:
    """Scripts of the environment, of the user's packages, and of a folder given to ``pip install --target``."""
    folders = [sysconfig.get_path("scripts")]
    user = f"{os.name}_user"
    if user in sysconfig.get_scheme_names():
        folders.append(sysconfig.get_path("scripts", user))
    folders.append(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bin"))
    return folders


class Outcome(NamedTuple):
    """A run that succeeded."""

    output: bytes  # standard output
    said: List[str]  # lines of standard error, without the command's name


def run(arguments: Sequence[str], stdin: Optional[bytes] = None, *, chatty: bool = False) -> Outcome:
    """Run the command.

    Args:
        arguments: what stands behind its name.
        stdin: what it reads from standard input; nothing where absent.
        chatty: what it says on standard error was asked for, and goes to this process's.

    Raises:
        VeloraError: it failed.
    """
    command = [find_binary(), *arguments]
    closed = subprocess.DEVNULL if stdin is None else None
    try:
        done = subprocess.run(command, input=stdin, stdin=closed, capture_output=True, check=False)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise VeloraError(f"cannot run {command[0]}: {error}") from error
    said = done.stderr.decode("utf-8", errors="replace").strip()
    if done.returncode:
        raise VeloraError(_message(said, done.returncode), done.returncode)
    if chatty:
        print(said, file=sys.stderr)
        said = ""
    prefix = f"{NAME}: "
    lines = [line[len(prefix) :] if line.startswith(prefix) else line for line in said.splitlines()]
    return Outcome(done.stdout, lines)


def _message(said: str, status: int) -> str:
    """The line that says what is wrong; other lines are what was asked for beside it, or hints on usage."""
    if status < 0:
        return f"{NAME} was ended by signal {-status}" + (f": {said.splitlines()[-1]}" if said else "")
    lines = said.splitlines()
    for prefix in (f"{NAME}: ", "error: "):
        found = [line[len(prefix) :] for line in lines if line.startswith(prefix)]
        if found:
            return found[-1]
    return lines[-1] if lines else f"{NAME} failed with exit status {status} and no message"
