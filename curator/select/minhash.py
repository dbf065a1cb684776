"""MinHash signatures (rensa) of word 3-grams, and the bands by which near rows find each other. Values only.

A row is proposed to another when they agree in a whole band of their signatures. Bands are as wide as keeps the chance
to miss a pair at the bound below 0.001; who is proposed is then compared exactly (`curator.select.duplicates`).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from curator.select.ngrams import (
    Hashed,
    hash_words,
    mixed,
    word_ngrams,
)

SHINGLE_WORDS = 3
N_PERMUTATIONS = 64
RECALL = 0.999
_SEED = 1
_STEP = np.uint64(0x9E3779B97F4A7C15)
_TABLE_BITS = 22  # 4 MiB of marks that rule out nearly all keys before any is looked up

Signatures = npt.NDArray[np.uint32]  # (N_PERMUTATIONS, n_rows): a band of all rows lies together
Keys = npt.NDArray[np.uint64]  # (n_rows,): the band of each row
Mask = npt.NDArray[np.bool_]


def algorithm() -> str:
    """What proposals depend on; part of a mix's identity where near duplicates are looked for."""
    return f"rminhash-{_rensa().RMinHash.ALGORITHM_VERSION}/{N_PERMUTATIONS}/{SHINGLE_WORDS}"


def shingles(texts: list[str]) -> Hashed:
    """Word 3-grams of each text; a shorter text is one shingle, one without words has none."""
    return word_ngrams(hash_words(texts), SHINGLE_WORDS)


def signatures(grams: Hashed) -> Signatures:
    """The signature of each text, shape (N_PERMUTATIONS, n_texts)."""
    # Hashes of 64 bits, row offsets; the call reads both buffers without making Python objects.
    matrix = _rensa().RMinHash.digest_matrix_from_flat_token_hashes(
        grams.hashes, grams.offsets.astype(np.uint64), N_PERMUTATIONS, _SEED
    )
    found = np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(grams), N_PERMUTATIONS)
    return np.ascontiguousarray(found.T)


def band_keys(signed: Signatures, similarity: float) -> Iterator[Keys]:
    """The keys of all rows, band by band; equal bands have equal keys, and others by chance of 64 bits."""
    width = band_rows(similarity)
    for start in range(0, N_PERMUTATIONS, width):
        keys = signed[start].astype(np.uint64)
        for slot in signed[start + 1 : start + width]:
            keys *= _STEP
            keys += slot
        yield mixed(keys)


def band_rows(similarity: float) -> int:
    """Signature slots in a band: as many as keep the chance to propose a pair at the bound above RECALL."""
    for rows in (8, 4, 2):
        if 1 - (1 - similarity**rows) ** (N_PERMUTATIONS // rows) >= RECALL:
            return rows
    return 1


def among(keys: Keys, wanted: Keys) -> Mask:
    """Which keys are among `wanted`, shape of `keys`."""
    shift = np.uint64(64 - _TABLE_BITS)
    marks = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)
    marks[wanted >> shift] = True
    found: Mask = marks[keys >> shift]
    near = np.flatnonzero(found)
    found[near] = np.isin(keys[near], wanted)
    return found


def repeated(keys: Keys) -> Mask:
    """Which keys occur more than once, shape of `keys`."""
    order = np.argsort(keys)
    same = keys[order[1:]] == keys[order[:-1]]
    found = np.zeros(len(keys), dtype=np.bool_)
    found[order[1:][same]] = True
    found[order[:-1][same]] = True
    return found


def _rensa() -> Any:
    import rensa  # only where near duplicates are looked for

    return rensa
