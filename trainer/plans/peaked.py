"""A module run as `python -m` does, in a process that writes its own peak memory into a file when it ends.

A parent cannot measure it: what the kernel reports of a child that ended survives exec, so that an idle child gets its
parent's peak.
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.runs.device import peak_rss_bytes

_START = "import sys; from trainer.plans.peaked import main; main(sys.argv[1:])"


def peaked(file: Path, module: str, *arguments: str) -> list[str]:
    """The command that runs `python -m MODULE ARGUMENTS` and leaves its peak in `file`, for `peak_mib`."""
    return [sys.executable, "-c", _START, str(file), module, *arguments]


def peak_mib(file: Path) -> float:
    """The peak resident memory in MiB of a run that ended (of its own process, not of its children); removes the
    file."""
    found = int(file.read_text()) / 2**20
    file.unlink()
    return found


def main(argv: Sequence[str]) -> None:
    """Run the module; the file is written also where it ends in an error or by sys.exit."""
    file, module, *arguments = argv
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        Path(file).write_text(str(peak_rss_bytes()))
