"""How much memory this process has had at most."""

import resource
from pathlib import Path


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
