"""Near duplicates: MinHash (rensa) proposes pairs, exact Jaccard similarity of word 3-grams decides.

Proposals miss a pair at the bound itself with probability below 0.001; what is dropped is never less similar than
the bound. Memory: about 1 KiB for each row in an index.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from curator.words import Hashed, Hashes, hash_words, jaccard, word_ngrams

SHINGLE_WORDS = 3
N_PERMUTATIONS = 64
RECALL = 0.999
INDEX_ROWS = 100_000  # rows of the user's in one index at a time
_SEED = 1

Mask = npt.NDArray[np.bool_]
Chunks = Callable[[npt.NDArray[np.int64]], Iterable[list[str]]]  # texts of these rows, in order, chunk by chunk


def algorithm() -> str:
    """What proposals depend on; part of a mix's identity where near duplicates are looked for."""
    return f"rminhash-{_rensa().RMinHash.ALGORITHM_VERSION}/{N_PERMUTATIONS}/{SHINGLE_WORDS}"


def shingles(texts: list[str]) -> Hashed:
    """Word 3-grams of each text; a shorter text is one shingle, one without words has none."""
    return word_ngrams(hash_words(texts), SHINGLE_WORDS)


def near_earlier(texts: Chunks, n_rows: int, similarity: float) -> Mask:
    """Rows that are at least so similar to an earlier row that stays; shape (n_rows,)."""
    index, matrices = _index(similarity), []
    done = 0
    for chunk in texts(np.arange(n_rows)):
        matrices.append(_signatures(shingles(chunk)))
        index.insert_matrix(matrices[-1], done)
        done += len(chunk)
    flags = [index.query_duplicate_flags_matrix(matrix) for matrix in matrices]
    suspects = np.flatnonzero(np.concatenate([np.zeros(0, np.bool_), *(np.array(item, np.bool_) for item in flags)]))
    kept = _Buckets(similarity)
    dropped = np.zeros(n_rows, dtype=np.bool_)
    for row, grams, bands in _sketches(texts(suspects), suspects, similarity):
        if kept.holds_near(grams, bands):
            dropped[row] = True
        else:
            kept.add(row, grams, bands)
    return dropped


def near_reference(
    texts: Chunks, n_rows: int, references: Callable[[], Iterator[list[str]]], similarity: float
) -> Mask:
    """Rows that are at least so similar to any reference text; shape (n_rows,). `references()` starts a new pass."""
    matrices = [_signatures(shingles(chunk)) for chunk in texts(np.arange(n_rows))]
    flags = np.zeros(n_rows, dtype=np.bool_)
    for batch in _gathered(references(), INDEX_ROWS):
        index = _doubled_index(_signatures(shingles(batch)), len(batch), similarity)
        found = [np.array(index.query_duplicate_flags_matrix(matrix), np.bool_) for matrix in matrices]
        flags |= np.concatenate([np.zeros(0, np.bool_), *found])
    suspects = np.flatnonzero(flags)
    dropped = np.zeros(n_rows, dtype=np.bool_)
    if not len(suspects):
        return dropped
    known = _Buckets(similarity)
    for row, grams, bands in _sketches(texts(suspects), suspects, similarity):
        known.add(row, grams, bands)
    for batch in references():
        for _, grams, bands in _sketches([batch], np.arange(len(batch)), similarity):
            dropped[known.pop_near(grams, bands)] = True
    return dropped


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


def _rensa() -> Any:
    import rensa  # only where near duplicates are looked for

    return rensa


def _band_rows(similarity: float) -> int:
    """Signature slots in a band: as many as keep the chance to propose a pair at the bound above RECALL."""
    for rows in (8, 4, 2):
        if 1 - (1 - similarity**rows) ** (N_PERMUTATIONS // rows) >= RECALL:
            return rows
    return 1


def _index(similarity: float) -> Any:
    return _rensa().RMinHashLSH(similarity, N_PERMUTATIONS, N_PERMUTATIONS // _band_rows(similarity))


def _doubled_index(signatures: Any, n_rows: int, similarity: float) -> Any:
    # The library flags a row when its bands hold more than one key, expecting the row itself to be one of them.
    index = _index(similarity)
    index.insert_matrix(signatures, 0)
    index.insert_matrix(signatures, n_rows)
    return index


def _signatures(grams: Hashed) -> Any:
    # Hashes of 64 bits, row offsets; the call reads both buffers without making Python objects.
    return _rensa().RMinHash.digest_matrix_from_flat_token_hashes(
        grams.hashes, grams.offsets.astype(np.uint64), N_PERMUTATIONS, _SEED
    )


def _sketches(
    chunks: Iterable[list[str]], rows: npt.NDArray[np.int64], similarity: float
) -> Iterator[tuple[int, Hashes, list[tuple[int, ...]]]]:
    """Each row with its distinct shingles and the bands of its signature; rows without a word are left out."""
    width = _band_rows(similarity)
    place = 0
    for chunk in chunks:
        grams = shingles(chunk)
        for i, signature in enumerate(_signatures(grams).to_rows()):
            distinct = np.unique(grams.of(i))
            if len(distinct):
                starts = range(0, N_PERMUTATIONS, width)
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
