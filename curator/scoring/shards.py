"""Shards: one corpus scored by several commands that know nothing of each other but `--shard i/n`.

Which rows are whose follows from corpus, sample, window and n alone, so machines need not agree on anything else. A
shard that is done checks its own new rows and leaves a record of that; whoever finds every row scored and every part
checked lists the parts in scorer.json.
"""

import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from curator.corpus.manifest import Corpus
from curator.errors import BadInputError, MissingError
from curator.scoring.blocks import estimated_tokens
from curator.store.store import Store

FOLDER = "shards"
# Runs of neighbouring rows that each shard gets, from all over the corpus: so the rows of one source, whose characters
# may make more tokens than others', are shared out.
N_RUNS = 64
MIN_RUN_ROWS = 8


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`, counted from 1."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise BadInputError(f"shard {self}: shards are counted from 1/{self.count} to {self.count}/{self.count}")

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From `i/n`; BadInputError for anything else."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(count)):
            raise BadInputError(f"shard {text!r}: write I/N, such as 2/8, the first being 1/8")
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def deal(store: Store, corpus: Corpus, wanted: Collection[str], window: int, count: int) -> Iterator[tuple[str, int]]:
    """(example_id, shard counted from 1) of each wanted row in corpus order; shards get like numbers of tokens.

    Tokens are estimated from characters, as `blocks` does. Each shard gets every `count`-th run of rows, `N_RUNS` of
    them, but fewer where a run would have fewer than `MIN_RUN_ROWS` rows: rows of like length would then pass over the
    runs of one shard in step.
    """
    rows: list[tuple[str, int]] = []
    for path in corpus.parts:
        table = store.read_table(path, ["example_id", "n_chars"])
        for example_id, n_chars in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if example_id in wanted:
                rows.append((example_id, estimated_tokens(n_chars, window)))
    n_runs = min(N_RUNS, max(1, len(rows) // (MIN_RUN_ROWS * count)))
    total, before = sum(n for _, n in rows), 0
    for example_id, n_tokens in rows:
        yield example_id, before * n_runs * count // total % count + 1
        before += n_tokens


def shard_ids(store: Store, corpus: Corpus, wanted: Collection[str], window: int, shard: Shard) -> frozenset[str]:
    """The wanted rows of one shard."""
    dealt = deal(store, corpus, wanted, window, shard.count)
    return frozenset(example_id for example_id, index in dealt if index == shard.index)


def write_record(store: Store, folder: str, shard: Shard, record: dict[str, Any]) -> None:
    """Keep what a shard did: `parts` it checked (as in scorer.json), `check`, `seconds`, `dropped`."""
    name = f"{shard.index}-of-{shard.count}-{secrets.token_hex(6)}.json"
    store.write_json(f"{folder}/{FOLDER}/{name}", {"index": shard.index, "count": shard.count, **record})


def read_records(store: Store, folder: str, listed: Collection[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of shards by shard number, without those whose parts are all `listed` in scorer.json already."""
    known, found = {(part["name"], part["sha256"]) for part in listed}, []
    for name in store.list(f"{folder}/{FOLDER}", "*.json"):
        try:
            record = store.read_json(f"{folder}/{FOLDER}/{name}")
        except MissingError:  # another process has just published
            continue
        if any((part["name"], part["sha256"]) not in known for part in record["parts"]):
            found.append(record)
    return sorted(found, key=lambda record: (record["index"], record["count"]))


def sweep(store: Store, folder: str) -> None:
    """Remove the records: scorer.json has what they say."""
    store.delete(f"{folder}/{FOLDER}")
