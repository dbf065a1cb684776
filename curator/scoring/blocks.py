"""A corpus as blocks of rows, one block per part file, in an order and with bounds that never depend on what is
already scored: restarts and parallel workers see the same blocks."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from curator.corpus.manifest import Corpus
from curator.store.store import Store

CHARS_PER_TOKEN = 3  # a low estimate: blocks are bounded by it without rendering a row
_ROW_TOKENS = 16  # turn markers and the like


@dataclass(frozen=True)
class Block:
    """Rows of one part file to be: ids and canonical JSON texts, in corpus order."""

    ids: list[str]
    messages: list[str]


def corpus_ids(store: Store, corpus: Corpus) -> list[str]:
    """Every example id of the revision, in corpus order."""
    ids: list[str] = []
    for path in corpus.parts:
        ids += store.read_table(path, ["example_id"]).column("example_id").to_pylist()
    return ids


def corpus_rows(store: Store, corpus: Corpus, wanted: Collection[str]) -> Iterator[tuple[str, str]]:
    """(example_id, canonical JSON) of the wanted rows in corpus order; memory is one corpus part."""
    for path in corpus.parts:
        table = store.read_table(path, ["example_id", "messages"])
        ids = table.column("example_id")
        messages = table.column("messages")
        for index, example_id in enumerate(ids.to_pylist()):
            if example_id in wanted:
                yield example_id, messages[index].as_py()


def estimated_tokens(n_chars: int, window: int) -> int:
    """Tokens of a row from its characters, without rendering it."""
    return int(min(n_chars // CHARS_PER_TOKEN + _ROW_TOKENS, window))


def blocks(store: Store, corpus: Corpus, wanted: Collection[str], block_tokens: int, window: int) -> Iterator[Block]:
    """The wanted rows in blocks of about `block_tokens` tokens at most, none across corpus parts."""
    for path in corpus.parts:
        table = store.read_table(path, ["example_id", "messages", "n_chars"])
        ids, n_chars = table.column("example_id").to_pylist(), table.column("n_chars").to_pylist()
        chosen: list[int] = []
        n_tokens = 0
        for index, example_id in enumerate(ids):
            if example_id not in wanted:
                continue
            n_row = estimated_tokens(n_chars[index], window)
            if chosen and n_tokens + n_row > block_tokens:
                yield _block(table, chosen)
                chosen, n_tokens = [], 0
            chosen.append(index)
            n_tokens += n_row
        if chosen:
            yield _block(table, chosen)


def without(block: Block, done: Collection[str]) -> Block:
    """The rows of a block that are not done yet."""
    kept = [index for index, example_id in enumerate(block.ids) if example_id not in done]
    return Block([block.ids[index] for index in kept], [block.messages[index] for index in kept])


def _block(table: Any, chosen: list[int]) -> Block:
    taken = table.take(chosen)
    return Block(taken.column("example_id").to_pylist(), taken.column("messages").to_pylist())
