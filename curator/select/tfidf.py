"""How near a prompt is to the user's prompts in words: TF-IDF and cosine, in integers so that every machine agrees.

The cheap offline default of the `domain_matched` strategy (ours): no model, no download. Document frequencies are
those of the user's and the pool's prompts together, weights are fixed point, and only the last square root and
division are floats, which IEEE 754 rounds alike everywhere.
"""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from curator.select.ngrams import Hashed, hash_words

N_BUCKETS = 1 << 18  # words share a bucket by chance; with this many, seldom
_ONE = 256  # fixed point of a weight of 1: squares and sums of them stay far below 2**63

_LN2 = 0.6931471805599453
_TERMS = 12  # of the series in s**2 <= 0.0295: the rest is below 1e-18

Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[np.int64]
Texts = Callable[[], Iterable[list[str]]]


def nearness(pool: Texts, n_rows: int, task: Texts) -> Floats:
    """Cosine of each pool prompt's word weights with the mean of the user's, shape (n_rows,), from 0 to 1.

    `pool()` and `task()` start passes over prompts, chunk by chunk. A text without words is at 0.
    """
    document_count, n_documents = np.zeros(N_BUCKETS, dtype=np.int64), 0
    task_sum = np.zeros(N_BUCKETS, dtype=np.int64)
    for texts, is_task in ((task, True), (pool, False)):
        for chunk in texts():
            buckets, _ = distinct_buckets(hash_words(chunk))
            counts = np.bincount(buckets, minlength=N_BUCKETS)
            document_count += counts
            n_documents += len(chunk)
            if is_task:
                task_sum += counts
    idf = inverse_frequencies(document_count, n_documents)
    # The user's profile: how often each word occurs in their prompts, in proportion, at most _ONE each.
    profile = _fixed(task_sum / max(1, int(task_sum.max(initial=0)))) * idf // _ONE
    found = np.zeros(n_rows)
    start = 0
    for chunk in pool():
        found[start : start + len(chunk)] = _cosines(hash_words(chunk), profile, idf)
        start += len(chunk)
    return found


def _cosines(words: Hashed, profile: Weights, idf: Weights) -> Floats:
    buckets, owner = distinct_buckets(words)
    dot, square = np.zeros(len(words), dtype=np.int64), np.zeros(len(words), dtype=np.int64)
    np.add.at(dot, owner, profile[buckets] * idf[buckets])
    np.add.at(square, owner, idf[buckets] ** 2)
    norm = np.sqrt(square.astype(np.float64)) * np.sqrt(float((profile**2).sum()))
    cosines: Floats = np.divide(dot, norm, out=np.zeros(len(words)), where=norm > 0)
    return cosines


def distinct_buckets(words: Hashed) -> tuple[Weights, Weights]:
    """Each text's distinct buckets with the text they belong to."""
    owner = np.repeat(np.arange(len(words)), words.counts)
    buckets = (words.hashes % np.uint64(N_BUCKETS)).astype(np.int64)
    keys = np.unique(owner * N_BUCKETS + buckets)
    return keys % N_BUCKETS, keys // N_BUCKETS


def inverse_frequencies(document_count: Weights, n_documents: int) -> Weights:
    """Inverse document frequency of each word in fixed point, from the number of documents that have it."""
    return _fixed(1 + portable_log((n_documents + 1) / (document_count + 1)))


def _fixed(values: Floats) -> Weights:
    return np.floor(values * _ONE + 0.5).astype(np.int64)


def portable_log(values: npt.ArrayLike) -> Floats:
    """Natural logarithm of positive finite numbers, to about 2 units in the last place, the same bits everywhere.

    From IEEE 754's exactly rounded operations alone: library logarithms differ in the last bit between machines and
    vector units, and what a mix's id stands for may not.
    """
    mantissa, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    low = mantissa < 0.7071067811865476
    mantissa = np.where(low, mantissa * 2, mantissa)
    exponent = exponent - low
    s = (mantissa - 1) / (mantissa + 1)
    square = s * s
    total = np.full_like(s, 1 / (2 * _TERMS + 1))
    for k in range(_TERMS - 1, -1, -1):
        total = total * square + 1 / (2 * k + 1)
    result: Floats = exponent * _LN2 + 2 * s * total
    return result
