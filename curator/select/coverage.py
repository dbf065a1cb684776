"""Choosing rows of which no few kinds of prompt take all places: a greedy choice that discounts what is covered.

The `coverage` strategy (ours). Rows of the best scores are often about the same few matters; a row whose words many
chosen prompts have adds little. Likeness is counted in words: each distinct word of a prompt weighs its inverse
document frequency among the candidates, and of a word that k chosen prompts have 1 / (1 + k) is new. The new share of
a prompt's weight is its novelty, 1 before any row is chosen. A row's key is

    (score - lowest score of the candidates) * (1 - spread * (1 - novelty))

so only differences of scores count, not their size. Weights are whole numbers: every machine chooses the same rows.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from curator.select.candidates import Rows
from curator.select.ngrams import hash_words
from curator.select.tfidf import N_BUCKETS, Weights, distinct_buckets, inverse_frequencies

_PARTS = 1 << 20  # of a word's weight: 1 / (1 + k) is rounded down to one of them


@dataclass(frozen=True)
class Prompts:
    """The distinct words of several prompts: prompt i has `buckets[offsets[i] : offsets[i + 1]]`."""

    buckets: Weights
    offsets: Weights
    weights: Weights  # (N_BUCKETS + 1,) of each word

    @classmethod
    def of(cls, chunks: Iterable[list[str]]) -> "Prompts":
        """Prompts given chunk by chunk. All those without a word share one that no other has."""
        buckets, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for texts in chunks:
            found, owner = distinct_buckets(hash_words(texts))
            wordless = np.setdiff1d(np.arange(len(texts)), owner)
            order = np.argsort(np.concatenate([owner, wordless]), kind="stable")
            buckets.append(np.concatenate([found, np.full(len(wordless), N_BUCKETS)])[order])
            counts.append(np.bincount(np.concatenate([owner, wordless]), minlength=len(texts)))
        held, n_words = np.concatenate(buckets), np.concatenate(counts)
        weights = inverse_frequencies(np.bincount(held, minlength=N_BUCKETS + 1), len(n_words))
        return cls(held, np.concatenate([np.zeros(1, np.int64), np.cumsum(n_words)]), weights)

    def words(self, place: int) -> Weights:
        """The words of one prompt."""
        return self.buckets[self.offsets[place] : self.offsets[place + 1]]


class _Covered:
    """How often the chosen prompts have each word."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        self._chosen = np.zeros(len(prompts.weights), dtype=np.int64)

    def add(self, place: int) -> None:
        self._chosen[self._prompts.words(place)] += 1

    def novelty(self, place: int) -> float:
        words = self._prompts.words(place)
        weights = self._prompts.weights[words]
        new = int((weights * (_PARTS // (1 + self._chosen[words]))).sum())
        return new / (int(weights.sum()) * _PARTS)


def cover(found: pl.DataFrame, prompts: Prompts, n: int, spread: float, most_capped: int) -> Rows:
    """Up to `n` rows in the order in which they are chosen; at most `most_capped` of those marked `capped`.

    `found` has columns row, score and capped, a line for each prompt. Equal keys go to the row with more novelty, then
    to the one with the higher score, then to the first by id. With `spread` 0 these are the best rows by score.
    """
    rows, scores, capped = (found[name].to_list() for name in ("row", "score", "capped"))
    lowest = min(scores, default=0.0)
    covered = _Covered(prompts)

    def entry(place: int) -> tuple[float, float, float, int, int]:
        factor = 1.0 - spread * (1.0 - covered.novelty(place))
        return (-(scores[place] - lowest) * factor, -factor, -scores[place], rows[place], place)

    # A key only falls while rows are chosen. So a row whose key, computed anew, is still the first is the next one.
    heap = [entry(place) for place in range(len(rows))]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < n:
        place = heap[0][-1]
        now = entry(place)
        if capped[place] and not most_capped:
            heapq.heappop(heap)
        elif now != heap[0]:
            heapq.heapreplace(heap, now)
        else:
            heapq.heappop(heap)
            most_capped -= capped[place]
            covered.add(place)
            chosen.append(rows[place])
    return np.array(chosen, dtype=np.int64)
