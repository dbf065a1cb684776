"""Tokens of a mix's rows, counted a batch at a time."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curator.errors import RenderError
from curator.messages import load_messages
from curator.mix.manifest import TokenCount
from curator.render import MaskRule, Renderer

# Of a batch of rows whose tokens are counted together, about 30 bytes a character in memory.
BATCH_ROWS = 1_024
BATCH_CHARS = 3 << 19


@dataclass
class Sums:
    """Counts of the rows of one origin."""

    total: int = 0
    response: int = 0
    n_failed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


class TokenCounter:
    """Counts tokens of whole conversations and of their trained part."""

    def __init__(self, renderer: Renderer, mask_rule: MaskRule) -> None:
        self._renderer, self.mask_rule = renderer, mask_rule
        self.sums = {"task": Sums(), "safe": Sums()}

    @property
    def render_settings(self) -> dict[str, Any]:
        """The renderer's settings, without defaults."""
        return self._renderer.settings.document()

    def add(self, origins: Sequence[str], messages: Sequence[str]) -> None:
        """Count rows (canonical JSON texts); some hundreds at a time go fastest."""
        start = 0
        for end in _batch_ends(messages):
            self._count(origins[start:end], messages[start:end])
            start = end

    def add_sums(self, sums: Mapping[str, Sums]) -> None:
        """Add what another counter found."""
        for origin, other in sums.items():
            own = self.sums[origin]
            own.total += other.total
            own.response += other.response
            own.n_failed += other.n_failed
            own.dropped.update(other.dropped)

    def count(self, origin: str) -> TokenCount:
        """The sums over the rows of one origin so far."""
        sums = self.sums[origin]
        dropped = dict(sorted(sums.dropped.items()))
        return TokenCount(total=sums.total, response=sums.response, n_rows_not_rendered=sums.n_failed, dropped=dropped)

    def _count(self, origins: Sequence[str], messages: Sequence[str]) -> None:
        rows = self._renderer.count_all(map(load_messages, messages), self.mask_rule)
        for origin, row in zip(origins, rows, strict=True):
            sums = self.sums[origin]
            if isinstance(row, RenderError):
                sums.n_failed += 1
                continue
            sums.total += row.total
            sums.response += row.response
            if row.dropped:
                sums.dropped.update(row.dropped)


def _batch_ends(messages: Sequence[str]) -> Iterator[int]:
    """Where batches of rows end, one row in each at least."""
    n_chars = start = 0
    for end, text in enumerate(messages, start=1):
        n_chars += len(text)
        if end - start == BATCH_ROWS or n_chars >= BATCH_CHARS or end == len(messages):
            yield end
            n_chars, start = 0, end
