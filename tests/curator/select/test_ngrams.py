import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.select.ngrams import hash_words, jaccard, word_ngrams
from curator.select.tfidf import portable_log

TEXTS = st.lists(st.text(alphabet="ab Ä,.0-\n'漢", max_size=30), max_size=8)


def plain_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9\u0080-\uffff]+", text.casefold())


@given(TEXTS)
def test_words_are_those_of_a_plain_reading(texts: list[str]) -> None:
    hashed = hash_words(texts)
    seen: dict[str, int] = {}
    for i, text in enumerate(texts):
        words = plain_words(text)
        assert hashed.counts[i] == len(words)
        for word, value in zip(words, hashed.of(i).tolist(), strict=True):
            assert seen.setdefault(word, value) == value
    assert len(set(seen.values())) == len(seen)


@given(TEXTS, st.integers(1, 5))
def test_ngrams_are_runs_of_words(texts: list[str], n: int) -> None:
    grams = word_ngrams(hash_words(texts), n)
    seen: dict[tuple[str, ...], int] = {}
    for i, text in enumerate(texts):
        words = plain_words(text)
        runs = [tuple(words[k : k + n]) for k in range(max(1, len(words) - n + 1))] if words else []
        assert grams.counts[i] == len(runs)
        for run, value in zip(runs, grams.of(i).tolist(), strict=True):
            assert seen.setdefault(run, value) == value
    assert len(set(seen.values())) == len(seen)


def test_a_run_has_one_hash_in_any_text_and_place() -> None:
    whole = word_ngrams(hash_words(["so one two three, and so on", "ONE, two: three"]), 3).hashes
    part = word_ngrams(hash_words(["one two three"]), 7).hashes
    assert part.tolist() == whole[-1:].tolist()
    assert part[0] in whole[:-1]


def test_hashes_are_pinned() -> None:
    # Another hash would propose other near duplicates, and so give old mix ids to other rows.
    assert hash_words(["Hello world"]).hashes.tolist() == PINNED


PINNED = [2163324483675975834, 12200089241319927280]


def test_jaccard() -> None:
    one, two = (np.array(items, dtype=np.uint64) for items in ([1, 2, 3], [2, 3, 4, 5]))
    assert jaccard(one, two) == 2 / 5
    assert jaccard(one, one) == 1.0
    assert jaccard(one, one[:0]) == 0.0


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_the_portable_logarithm_is_the_logarithm(value: float) -> None:
    assert float(portable_log(value)) == pytest.approx(math.log(value), rel=1e-14, abs=1e-15)


def test_the_portable_logarithm_is_pinned() -> None:
    values = portable_log(np.array([0.1, 0.7071067811865476, 3.0, 1e-16]))
    assert [value.hex() for value in values.tolist()] == PINNED_LOGS


PINNED_LOGS = ["-0x1.26bb1bbb55515p+1", "-0x1.62e42fefa39eep-2", "0x1.193ea7aad030ap+0", "-0x1.26bb1bbb55515p+5"]
