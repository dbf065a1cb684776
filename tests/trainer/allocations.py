"""What torch allocates on a CPU, piece by piece, as its profiler reports it; libraries' own memory is not in it."""

from collections.abc import Callable
from typing import Any

import torch
from torch._C._profiler import _EventType


def peak_allocated(work: Callable[[], object]) -> int:
    """Largest sum of bytes that torch allocated within `work` and had not freed yet.

    Blocks are followed by address: freeing what was allocated before `work` began does not count.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    held: dict[int, int] = {}
    total = peak = 0
    for event in sorted(_allocations(profile), key=lambda event: int(event.start_time_ns)):
        address, n_bytes = event.extra_fields.ptr, event.extra_fields.alloc_size
        if n_bytes > 0:
            held[address] = n_bytes
            total += n_bytes
            peak = max(peak, total)
        else:
            total -= held.pop(address, 0)
    return peak


def _allocations(profile: Any) -> list[Any]:
    found, rest = [], list(profile.profiler.kineto_results.experimental_event_tree())
    while rest:
        event = rest.pop()
        rest += event.children
        if event.tag == _EventType.Allocation:
            found.append(event)
    return found
