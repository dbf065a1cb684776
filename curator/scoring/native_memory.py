"""Memory that native libraries keep on a CPU, so that a long run needs no more than a short one.

Measured on SmolLM2-135M over ShareGPT rows, whose lengths are nearly all different: oneDNN keeps a compiled kernel for
each shape that it has met (1,024 of them unless told otherwise), and the C library keeps freed pages between large
pieces; together some 50 MiB more with every block of rows.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

# More than one batch of packed rows has; between batches hardly a shape comes again.
_KERNELS = "256"
_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


def bound_kernels() -> None:
    """Bound oneDNN's kernels, unless the environment has a bound; to be called before torch's first product."""
    os.environ.setdefault(_VARIABLE, _KERNELS)


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
