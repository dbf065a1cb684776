"""Memory that native libraries keep on a CPU, so that a long run needs little more than a short one.

Measured on SmolLM2-135M over ShareGPT rows, whose lengths are nearly all different: oneDNN, and torch's layer over it
once more, keep a compiled kernel for each shape that they have met (1,024 unless told otherwise), and the C library
keeps freed pages between large pieces: some 50 MiB more with every block, and less than half when bounded.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

# More than one batch of packed rows has; between batches hardly a shape comes again.
_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "128"}


def bound_kernels() -> None:
    """Bound both caches, unless the environment has a bound; to be called before torch's first product."""
    for variable, most in _KERNELS.items():
        os.environ.setdefault(variable, most)


def give_back() -> None:
    """Return freed pages to the system, where the C library can (glibc); a few milliseconds."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], Any] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # musl, macOS, Windows
        return None
