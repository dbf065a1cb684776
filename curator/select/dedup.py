"""Near duplicates: MinHash (`curator.select.minhash`) proposes pairs, exact Jaccard similarity of word 3-grams decides.

Proposals miss a pair at the bound itself with probability below 0.001; what is dropped is never less similar than
the bound. Memory: 256 bytes for each row compared, and the shingles of those proposed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from curator.select.columns import Mask
from curator.select.minhash import (
    N_PERMUTATIONS,
    Signatures,
    algorithm,
    among,
    band_keys,
    band_rows,
    repeated,
    shingles,
    signatures,
)
from curator.select.ngrams import Hashes, jaccard

__all__ = ["algorithm", "near_earlier", "near_reference", "shingles", "signed"]

REFERENCE_ROWS = 100_000  # rows of the user's compared at a time

Rows = npt.NDArray[np.int64]
Chunks = Callable[[Rows], Iterable[list[str]]]  # texts of these rows, in order, chunk by chunk


def signed(chunks: Iterable[list[str]]) -> Signatures:
    """Signatures of texts given chunk by chunk, shape (N_PERMUTATIONS, n_texts)."""
    pieces = [signatures(shingles(chunk)) for chunk in chunks]
    return np.concatenate([np.zeros((N_PERMUTATIONS, 0), np.uint32), *pieces], axis=1)


def near_earlier(texts: Chunks, rows: Rows, pool: Signatures, similarity: float) -> Rows:
    """Those of `rows` that are at least so similar to an earlier one that stays; `pool` has signatures of all rows."""
    own = pool[:, rows]
    flags = np.zeros(len(rows), dtype=np.bool_)
    for keys in band_keys(own, similarity):
        flags |= repeated(keys)
    suspects = rows[flags]
    kept = _Buckets(similarity)
    dropped = []
    for row, grams, bands in _sketches(texts(suspects), suspects, similarity):
        if kept.holds_near(grams, bands):
            dropped.append(row)
        else:
            kept.add(row, grams, bands)
    return np.array(dropped, dtype=np.int64)


def near_reference(
    texts: Chunks, rows: Rows, pool: Signatures, references: Callable[[], Iterator[list[str]]], similarity: float
) -> Rows:
    """Those of `rows` that are at least so similar to any reference text, in any order.

    `pool` has the signatures of all rows that `rows` may name; `references()` starts a pass over the texts.
    """
    left = np.zeros(pool.shape[1], dtype=np.bool_)
    left[rows] = True
    found: set[int] = set()
    for batch in _gathered(references(), REFERENCE_ROWS):
        new = list(_near_batch(texts, left, pool, batch, similarity))
        left[new] = False
        found.update(new)
    return np.array(sorted(found), dtype=np.int64)


def _near_batch(texts: Chunks, left: Mask, pool: Signatures, batch: list[str], similarity: float) -> Iterator[int]:
    """The rows left that are near to a text of the batch: both sides are sketched only where their bands meet."""
    own = signatures(shingles(batch))
    flags, partners = np.zeros(pool.shape[1], dtype=np.bool_), np.zeros(len(batch), dtype=np.bool_)
    for keys, wanted in zip(band_keys(pool, similarity), band_keys(own, similarity), strict=True):
        met = among(keys, wanted) & left
        flags |= met
        partners |= np.isin(wanted, keys[met])
    suspects = np.flatnonzero(flags)
    known = _Buckets(similarity)
    for row, grams, bands in _sketches(texts(suspects), suspects, similarity):
        known.add(row, grams, bands)
    places = np.flatnonzero(partners)
    for _, grams, bands in _sketches([[batch[place] for place in places.tolist()]], places, similarity):
        yield from known.pop_near(grams, bands)


class _Buckets:
    """Rows by the bands of their signatures, with their shingles for the exact comparison."""

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._rows: dict[int, Hashes] = {}
        self._buckets: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)

    def add(self, row: int, grams: Hashes, bands: list[tuple[int, ...]]) -> None:
        self._rows[row] = grams
        for band in bands:
            self._buckets[band].append(row)

    def _near(self, grams: Hashes, bands: list[tuple[int, ...]]) -> Iterator[int]:
        seen = {row for band in bands for row in self._buckets.get(band, ()) if row in self._rows}
        return (row for row in sorted(seen) if jaccard(grams, self._rows[row]) >= self._similarity)

    def holds_near(self, grams: Hashes, bands: list[tuple[int, ...]]) -> bool:
        return next(self._near(grams, bands), None) is not None

    def pop_near(self, grams: Hashes, bands: list[tuple[int, ...]]) -> list[int]:
        """Rows near to these shingles; they are forgotten, having been found once."""
        found = list(self._near(grams, bands))
        for row in found:
            del self._rows[row]
        return found


def _sketches(
    chunks: Iterable[list[str]], rows: Rows, similarity: float
) -> Iterator[tuple[int, Hashes, list[tuple[int, ...]]]]:
    """Each row with its distinct shingles and the bands of its signature; rows without a word are left out."""
    width = band_rows(similarity)
    starts = range(0, N_PERMUTATIONS, width)
    place = 0
    for chunk in chunks:
        grams = shingles(chunk)
        for i, signature in enumerate(signatures(grams).T.tolist()):
            distinct = np.unique(grams.of(i))
            if len(distinct):
                yield int(rows[place]), distinct, [(k, *signature[k : k + width]) for k in starts]
            place += 1


def _gathered(batches: Iterator[list[str]], n_rows: int) -> Iterator[list[str]]:
    """The same texts in batches of at least `n_rows`, but for the last."""
    held: list[str] = []
    for batch in batches:
        held += batch
        if len(held) >= n_rows:
            yield held
            held = []
    if held:
        yield held
