"""A module run as `python -m` does, in a process that writes its own peak memory into a file when it ends.

A parent cannot measure it: what the kernel reports of a child that ended survives exec, so that an idle child gets its
parent's peak.
"""

import resource
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

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


def peak_rss_bytes() -> int:
    """Largest resident set so far, in bytes.

    The kernel's mark of this very program where it has one: getrusage's survives exec, and so gives the parent's where
    that is larger.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
