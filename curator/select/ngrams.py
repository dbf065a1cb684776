"""Words of many texts as 64-bit hashes, all at once in numpy: the common ground of every comparison of texts.

A word is a run of letters, digits or bytes outside ASCII in the case-folded UTF-8 text; punctuation and white space
only part words. Hashes are written out here and are the same on every machine; 64 bits are taken to tell words apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]

_BASE = 0x9E3779B97F4A7C15 | 1  # odd, so that it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 1 << 64)
_STEP = np.uint64(0xBF58476D1CE4E5B9)  # parts the places of the words inside an n-gram
_BLOCK_BYTES = 1 << 19  # texts hashed at once: small enough to stay in the processor's caches
_IS_WORD = np.array([chr(byte).isalnum() or byte >= 0x80 for byte in range(256)])


@dataclass(frozen=True)
class Hashed:
    """Hashes of several texts, one after the other: text i has `hashes[offsets[i] : offsets[i + 1]]`."""

    hashes: Hashes
    offsets: Offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, text: int) -> Hashes:
        """The hashes of one text, in its order."""
        return self.hashes[self.offsets[text] : self.offsets[text + 1]]

    @property
    def counts(self) -> Offsets:
        """How many hashes each text has, shape (n_texts,)."""
        return np.diff(self.offsets)


def hash_words(texts: Sequence[str]) -> Hashed:
    """The words of each text, hashed in blocks so that memory stays near 40 MiB beside the answer."""
    blobs = [text.casefold().encode("utf-8", "surrogatepass") for text in texts]
    lengths = np.fromiter((len(blob) + 1 for blob in blobs), dtype=np.int64, count=len(blobs))
    blocks = np.cumsum(lengths) // _BLOCK_BYTES
    bounds = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(blobs)]
    pieces = [_hash_block(blobs[start:end], lengths[start:end]) for start, end in pairwise(bounds)]
    counts = np.concatenate([piece.counts for piece in pieces])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return Hashed(np.concatenate([piece.hashes for piece in pieces]), offsets)


def _hash_block(blobs: Sequence[bytes], lengths: Offsets) -> Hashed:
    """`lengths` are those of the texts in bytes, each with the zero byte that ends it."""
    text_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    data = np.frombuffer(b"\0".join(blobs) + b"\0", dtype=np.uint8)
    inside = np.concatenate([[False], _IS_WORD[data]])
    edges = np.flatnonzero(inside[1:] != inside[:-1])  # the closing zero byte ends the last word
    starts, ends = edges[0::2], edges[1::2]
    # A polynomial over the bytes from running sums: (S[end] - S[start]) / base**start, modulo 2**64.
    sums = np.zeros(len(data) + 1, dtype=np.uint64)
    np.cumsum(data * _powers(_BASE, len(data)), out=sums[1:])
    hashes = mixed((sums[ends] - sums[starts]) * _powers(_INVERSE, len(data))[starts])
    return Hashed(hashes, np.searchsorted(starts, text_starts).astype(np.int64))


def word_ngrams(words: Hashed, n: int) -> Hashed:
    """All runs of `n` words of each text; a text with fewer words has one run, of all of them (with none, none).

    A run's hash depends on its words alone, whatever the text and `n`.
    """
    counts = np.where(words.counts > 0, np.maximum(words.counts - n + 1, 1), 0)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    starts = np.repeat(words.offsets[:-1] - offsets[:-1], counts) + np.arange(offsets[-1])
    ends = np.repeat(words.offsets[1:], counts)
    total = np.zeros(len(starts), dtype=np.uint64)
    factor = np.uint64(1)
    with np.errstate(over="ignore"):
        for place in range(n):
            at = starts + place
            present = at < ends
            total[present] += words.hashes[at[present]] * factor
            factor = factor * _STEP
    return Hashed(mixed(total), offsets)


def jaccard(one: Hashes, two: Hashes) -> float:
    """Jaccard similarity of two sets of hashes, each sorted and without repeats; 0 when either is empty."""
    if not len(one) or not len(two):
        return 0.0
    common = len(np.intersect1d(one, two, assume_unique=True))
    return common / (len(one) + len(two) - common)


def _powers(base: int, n: int) -> Hashes:
    return _power_table(base, max(2 * _BLOCK_BYTES, 1 << (n - 1).bit_length()))[:n]


@lru_cache(maxsize=2)
def _power_table(base: int, n: int) -> Hashes:
    powers = np.full(n, base, dtype=np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, dtype=np.uint64)


def mixed(values: Hashes) -> Hashes:
    """SplitMix64's finaliser: 64 bits to 64 bits, one to one."""
    values = values ^ (values >> np.uint64(30))
    values = values * np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
