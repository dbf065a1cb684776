"""The request of a benchmark run: the sizes of each piece of work."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from curator.recipe.base import Strict

Piece = Literal["interleave", "without_replacement", "top", "strata", "mix", "validate", "near_duplicates"]
Turns = Annotated[int, Field(ge=1, le=100)]
WORK: tuple[Piece, ...] = get_args(Piece)
SLOW_PEER_ROWS = 200_000  # rows without replacement from which on one turn of the peer takes minutes


class MixBenchRequest(Strict):
    """Sizes in rows; the defaults are those of the published table.

    `repeats` are the turns of every piece of work, `repeats_of` those of single ones.
    """

    work: tuple[Piece, ...] = WORK
    repeats: Turns = 3
    repeats_of: dict[Piece, Turns] = Field(default_factory=dict)
    index_rows: int = Field(default=1_000_000, ge=100)
    without_replacement_rows: tuple[int, ...] = (200_000, 2_000_000)
    choice_rows: int = Field(default=10_000_000, ge=10_000)
    pool_rows: int = Field(default=1_000_000, ge=2_000)
    user_rows: int = Field(default=20_000, ge=100)
    check_rows: int = Field(default=100_000, ge=100)

    def turns(self, piece: Piece) -> int:
        """How often each way of a piece of work is timed."""
        return self.repeats_of.get(piece, self.repeats)

    def turns_without_replacement(self, n_rows: int) -> int:
        """Those of an index of `n_rows`: where the peer is slow, one says enough of a ratio in the hundreds."""
        slow = n_rows > SLOW_PEER_ROWS and "without_replacement" not in self.repeats_of
        return 1 if slow else self.turns("without_replacement")
