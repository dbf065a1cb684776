"""One line of the table: what was done, beside whom, how often faster, and the seconds it comes from."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

Figure = dict[str, Any]


def figure(
    work: str, beside: str, reach: float, ratio: float, seconds: Mapping[str, Sequence[float]], **more: Any
) -> Figure:
    """The figure as plain values: `ratio` is the peer's time over ours, `reach` what the product aims at."""
    return {
        "work": work,
        "peer": beside,
        "reach": reach,
        "ratio": ratio,
        "seconds": {name: {"median": median(found), "rounds": list(found)} for name, found in seconds.items()},
        **more,
    }
