import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from curator.select import duplicates
from curator.select.minhash import SHINGLE_WORDS
from curator.select.ngrams import hash_words, jaccard, word_ngrams


def document(seed: int, n_words: int = 60) -> list[str]:
    draw = random.Random(seed)
    return [f"w{draw.randrange(5000)}" for _ in range(n_words)]


def changed(words: list[str], n: int) -> list[str]:
    """The words with `n` of them replaced, evenly apart."""
    step = len(words) // n if n else len(words)
    return [f"x{i}" if n and i % step == 0 and i // step < n else word for i, word in enumerate(words)]


def chunks_of(texts: list[str], size: int = 7) -> duplicates.Chunks:
    return lambda rows: ([texts[i] for i in rows[k : k + size]] for k in range(0, len(rows), size))


def near_earlier(texts: list[str], bound: float) -> list[bool]:
    rows = np.arange(len(texts))
    found = duplicates.near_earlier(chunks_of(texts), rows, duplicates.signed(chunks_of(texts)(rows)), bound)
    return np.isin(rows, found).tolist()


def near_reference(texts: list[str], references: Callable[[], Iterator[list[str]]], bound: float) -> list[bool]:
    rows = np.arange(len(texts))
    found = duplicates.near_reference(
        chunks_of(texts), rows, duplicates.signed(chunks_of(texts)(rows)), references, bound
    )
    return np.isin(rows, found).tolist()


def similarity(one: str, two: str) -> float:
    grams = word_ngrams(hash_words([one, two]), SHINGLE_WORDS)
    return jaccard(np.unique(grams.of(0)), np.unique(grams.of(1)))


@pytest.mark.parametrize("bound", [0.4, 0.6, 0.8, 0.95])
def test_pairs_at_the_bound_or_above_are_found_and_no_others(bound: float) -> None:
    originals = [document(i) for i in range(40)]
    texts, expected = [], []
    for i, words in enumerate(originals):
        copy = changed(words, i % 8)
        texts += [" ".join(words), " ".join(copy)]
        expected += [False, similarity(texts[-2], texts[-1]) >= bound]
    found = near_earlier(texts, bound)
    assert found == expected
    assert 5 <= sum(expected) <= 40

    references = lambda: iter([[" ".join(words)] for words in originals])  # noqa: E731
    against = near_reference(texts, references, bound)
    assert against == [True if i % 2 == 0 else expected[i] for i in range(len(texts))]


def test_one_of_each_group_stays() -> None:
    words = document(1)
    texts = [" ".join(words)] * 3 + [" ".join(document(2))] + [" ".join(words).upper() + "!"]
    assert near_earlier(texts, 0.9) == [False, True, True, False, True]


def test_a_chain_is_judged_against_rows_that_stay() -> None:
    words = document(3)
    chain = [" ".join(changed(words, n)) for n in (0, 1, 2, 3, 4, 5, 6)]
    found = near_earlier(chain, 0.8)
    kept = [text for text, drop in zip(chain, found, strict=True) if not drop]
    for i, text in enumerate(chain):
        if found[i]:
            assert any(similarity(text, other) >= 0.8 for other in kept)
    assert all(similarity(a, b) < 0.8 for k, a in enumerate(kept) for b in kept[:k])


def test_rows_without_words_are_near_to_nothing() -> None:
    assert not any(near_earlier(["", "!?", ""], 0.5))
    assert not any(near_reference(["", "!?"], lambda: iter([["", "…"]]), 0.5))
    assert near_earlier([], 0.5) == []


def test_many_references_go_through_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "REFERENCE_ROWS", 5)
    references = [" ".join(document(i)) for i in range(23)]
    pool = [" ".join(document(i)) for i in (22, 100, 0, 101, 11)]

    def batches() -> Iterator[list[str]]:
        return (references[k : k + 3] for k in range(0, len(references), 3))

    assert near_reference(pool, batches, 0.9) == [True, False, True, False, True]
