"""Memory that native libraries keep on a CPU, so that a long run needs little more than a short one.

Measured on SmolLM2-135M over ShareGPT rows, whose lengths are nearly all different: oneDNN, and torch's layer over it
once more, keep a compiled kernel for each shape that they have met (1,024 by default), and the C library
keeps freed pages between large pieces: some 50 MiB more with every block, and less than half when bounded.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt (malloc.h)
_LARGE = 2**30  # bytes
_MALLOC_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")  # the user's own choice

# More than one batch of packed rows has; between batches hardly a shape comes again.
_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "128"}


def bound_kernels() -> None:
    """Bound both caches, unless the environment has a bound; to be called before torch's first product."""
    for variable, most in _KERNELS.items():
        os.environ.setdefault(variable, most)


def keep_pages() -> None:
    """Keep freed pages for the next step instead of returning them, where the C library can (glibc).

    A training step on a CPU frees and takes the same large pieces again and again; with the C library's usual bounds
    the system clears every page each time, a fifth of SmolLM2-135M's step in bfloat16.
    """
    mallopt = _library_function("mallopt")
    if mallopt is not None and not any(name in os.environ for name in _MALLOC_VARIABLES):
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _LARGE)


def give_back() -> None:
    """Return freed pages to the system, where the C library can (glibc); a few milliseconds."""
    trim = _library_function("malloc_trim")
    if trim is not None:
        trim(0)


@cache
def _library_function(name: str) -> Callable[..., Any] | None:
    try:
        function: Callable[..., Any] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):  # musl, macOS, Windows
        return None
    return function
