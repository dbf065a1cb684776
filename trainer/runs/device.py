"""Memory of a process and of the device that it trains on, in bytes: the largest so far, and what is free."""

import os
import resource
from pathlib import Path

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def peak_rss_bytes() -> int:
    """Largest resident set so far, in bytes.

    The kernel's mark of this very program where it has one: getrusage's survives exec, and so gives the parent's where
    that is larger.
    """
    found = _status_bytes("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if found is None else found


def peak_bytes(device: str) -> int:
    """Largest memory so far: allocated by torch on a GPU, resident of the process (libraries included) on a CPU."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated())
    return peak_rss_bytes()


def peak_of(device: str) -> str:
    """What `peak_bytes` counts on the device."""
    return "tensors on the GPU" if device.startswith("cuda") else "the process, libraries included"


def free_bytes(device: str) -> int | None:
    """What this process may still take on the device; None where the system does not say.

    On a CPU the least of what the machine has available, its cgroup allows and its address space limit leaves.
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info()[0])
    found = [item for item in (_available(), _left_in_cgroup(), _left_of_address_space()) if item is not None]
    return max(0, min(found)) if found else None


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:  # no Linux: all of it, which is too much, so nothing that might fit is taken for too large
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _left_in_cgroup() -> int | None:
    for limit, used in _CGROUPS:
        try:
            most, taken = Path(limit).read_text(encoding="ascii").strip(), int(Path(used).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        return int(most) - taken if most.isdigit() else None
    return None


def _left_of_address_space() -> int | None:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    taken = _status_bytes("VmSize")
    return None if most == resource.RLIM_INFINITY or taken is None else most - taken


def _status_bytes(name: str) -> int | None:
    """A figure of this process in /proc, in bytes; None on systems without it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
