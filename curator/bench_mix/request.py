"""What a benchmark run is asked for: the sizes of each piece of work."""

from pydantic import Field

from curator.config.base import Strict

WORK = ("interleave", "without_replacement", "top", "strata", "mix", "validate", "near_duplicates")


class MixBenchRequest(Strict):
    """Sizes in rows; the defaults are those of the published table."""

    work: tuple[str, ...] = WORK
    repeats: int = Field(default=3, ge=1, le=100)
    index_rows: int = Field(default=1_000_000, ge=100)
    without_replacement_rows: tuple[int, ...] = (200_000, 2_000_000)
    choice_rows: int = Field(default=10_000_000, ge=10_000)
    pool_rows: int = Field(default=1_000_000, ge=2_000)
    user_rows: int = Field(default=20_000, ge=100)
    check_rows: int = Field(default=100_000, ge=100)
