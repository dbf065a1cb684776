"""PIVOT without values, as one SELECT: `pivot gap on domain using avg(gap_abs)`.

DuckDB runs it as several statements, for it makes a type of the values first. Here a SELECT of its own reads the values
of each column, and they are written into the statement (`on domain in ('a', 'b')`). So whatever is run is one SELECT,
which a guard can check: a statement that is cut wrongly fails, and never becomes another kind.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import duckdb

from curator.errors import BadInputError

MAX_VALUES = 1000  # of one column: each is a column of the answer
_ENDS = frozenset({"USING", "GROUP", "ORDER", "LIMIT", "OFFSET", "UNION", "EXCEPT", "INTERSECT", ";"})


@dataclass(frozen=True)
class _Token:
    """One token outside of any bracket, by bytes of the statement; `word` in capitals."""

    word: str
    start: int


@dataclass(frozen=True)
class Pivot:
    """A PIVOT with columns whose values it does not name; places are bytes of `statement`."""

    statement: bytes
    common: bytes  # the WITH clause before it
    source: bytes
    columns: tuple[tuple[int, int], ...]

    @property
    def queries(self) -> tuple[str, ...]:
        """For each column the SELECT of its values as texts, MAX_VALUES + 1 of them at most."""
        common, source = self.common.decode(), self.source.decode()
        columns = map(self._text, self.columns)
        return tuple(
            f"{common} select distinct ({column}\n)::varchar as value from {source}\n"
            f"where ({column}\n) is not null order by 1 limit {MAX_VALUES + 1}"
            for column in columns
        )

    def filled(self, values: Sequence[Sequence[str]]) -> str:
        """The statement with the values of each column; raises BadInputError for none or too many."""
        text = self.statement
        for place, found in reversed(list(zip(self.columns, values, strict=True))):
            column = self._text(place)
            if not 0 < len(found) <= MAX_VALUES:
                said = "no value" if not found else f"more than {MAX_VALUES:,} values"
                raise BadInputError(f"PIVOT finds {said} of {column}: each would be a column of the answer")
            listed = ", ".join("'" + value.replace("'", "''") + "'" for value in found)
            text = text[: place[0]] + f" ({column}\n) in ({listed}) ".encode() + text[place[1] :]
        return text.decode()

    def _text(self, place: tuple[int, int]) -> str:
        return self.statement[slice(*place)].decode().strip()


def find_pivot(statement: str) -> Pivot | None:
    """The PIVOT that a statement is, after its WITH clause; None for others and where every column names its values."""
    text = statement.encode()
    tokens = [*_outer_tokens(text), _Token(";", len(text))]
    words = [token.word for token in tokens]
    if words[0] not in ("WITH", "PIVOT") or "PIVOT" not in words:
        return None
    first = words.index("PIVOT")
    end = next((i for i in range(first, len(tokens)) if words[i] in _ENDS), len(tokens) - 1)
    if "ON" not in words[first:end]:
        return None
    on = end - 1 - words[first:end][::-1].index("ON")  # the last: one before it belongs to a join of the source
    borders = [on, *(i for i in range(on + 1, end) if words[i] == ","), end]
    columns = tuple(
        (tokens[one + 1].start, tokens[two].start) for one, two in pairwise(borders) if "IN" not in words[one:two]
    )
    source = text[tokens[first + 1].start : tokens[on].start]
    return Pivot(text, text[: tokens[first].start], source, columns) if columns else None


def _outer_tokens(text: bytes) -> Iterator[_Token]:
    """The tokens outside of brackets, without comments."""
    found = duckdb.tokenize(text.decode())
    ends = [*(start for start, _ in found), len(text)][1:]
    depth = 0
    for (start, kind), end in zip(found, ends, strict=False):
        word = text[start:end].decode().strip()
        if kind == duckdb.token_type.comment:
            continue
        if kind == duckdb.token_type.operator and word in tuple(")]}"):
            depth -= 1
        elif depth == 0:
            is_word = kind in (duckdb.token_type.keyword, duckdb.token_type.operator)
            yield _Token(word.upper() if is_word else "", start)
        if kind == duckdb.token_type.operator and word in tuple("([{"):
            depth += 1
