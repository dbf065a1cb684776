"""Filters that compare texts: duplicates inside the pool and against the user's rows, and evaluation prompts.

Near duplicates: MinHash (`curator.select.minhash`) proposes pairs, exact Jaccard similarity of word 3-grams decides.
Proposals miss a pair at the bound itself with probability below 0.001; what is dropped is never less similar than
the bound. Memory: 256 bytes for each row compared, and the shingles of those proposed.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from curator.corpus.text import texts_of
from curator.recipe.filters import (
    ContaminationFilter,
    ExactDuplicates,
    NearDuplicates,
    TextPart,
)
from curator.select.candidates import Candidates, Context, Rows
from curator.select.minhash import (
    N_PERMUTATIONS,
    Signatures,
    among,
    band_keys,
    band_rows,
    repeated,
    shingles,
    signatures,
)
from curator.select.ngrams import (
    Hashes,
    hash_words,
    jaccard,
    word_ngrams,
)

TASK_SUFFIX = ":task"  # reasons that end so stem from the user's rows
REFERENCE_ROWS = 100_000  # rows of the user's compared at a time

Chunks = Callable[[Rows], Iterable[list[str]]]  # texts of these rows, in order, chunk by chunk


def exact_duplicates(spec: ExactDuplicates, candidates: Candidates, rows: Rows, context: Context) -> Mapping[str, Rows]:
    """Rows whose text, case and white space aside, a task row has, or an earlier row (by id)."""
    order = candidates.reading_order(rows)
    keys = [key for chunk in candidates.texts(order) for key in _keys(chunk, spec.part)]
    table = pl.DataFrame({"row": order, "key": pl.Series(keys, dtype=pl.Binary)}).sort("row")
    known = pl.Series("key", [], dtype=pl.Binary)
    if "task" in spec.against:
        own = [key for batch in context.task_texts() for key in _keys(batch, spec.part)]
        known = pl.Series("key", own, dtype=pl.Binary).unique()
    in_task = table["key"].is_in(known.implode())
    again = ~in_task & ~table["key"].is_first_distinct() & ("pool" in spec.against)
    found = {spec.name + TASK_SUFFIX: in_task, spec.name + ":pool": again}
    return {reason: table["row"].filter(mask).to_numpy() for reason, mask in found.items()}


def near_duplicates(spec: NearDuplicates, candidates: Candidates, rows: Rows, context: Context) -> Mapping[str, Rows]:
    """Rows near to a task row, then those near to an earlier row (by id) that stays."""

    def texts(at: Rows) -> Iterator[list[str]]:
        return (texts_of(chunk, spec.part) for chunk in candidates.texts(at))

    def references() -> Iterator[list[str]]:
        return (texts_of(batch, spec.part) for batch in context.task_texts())

    pool, nothing = _signatures(candidates, rows, spec.part), np.zeros(0, dtype=np.int64)
    near_task = near_pool = nothing
    if "task" in spec.against:
        near_task = near_reference(texts, rows, pool, references, spec.similarity)
    if "pool" in spec.against:
        left = np.setdiff1d(rows, near_task, assume_unique=True)
        near_pool = near_earlier(texts, left, pool, spec.similarity)
    return {spec.name + TASK_SUFFIX: near_task, spec.name + ":pool": near_pool}


def contaminated(spec: ContaminationFilter, candidates: Candidates, rows: Rows, context: Context) -> Mapping[str, Rows]:
    """Rows that share a run of words with a prompt of an evaluation set; the first set that has one counts."""
    grams = [prompt_grams(context.evaluations[name], spec.ngram) for name in spec.sets]
    rows = candidates.reading_order(rows)
    codes = np.zeros(len(rows), dtype=np.int16)
    start = 0
    for chunk in candidates.texts(rows):
        codes[start : start + len(chunk)] = first_set(texts_of(chunk, "conversation"), grams)
        start += len(chunk)
    return {f"contamination:{name}": rows[codes == code] for code, name in enumerate(spec.sets, start=1)}


def first_set(texts: list[str], grams: list[dict[int, Hashes]]) -> npt.NDArray[np.int16]:
    """For each text the place (from 1) of the first set that has one of its runs of words; 0 for none."""
    words = hash_words(texts)
    codes = np.zeros(len(texts), dtype=np.int16)
    for length in sorted({length for found in grams for length in found}):
        held = word_ngrams(words, length)
        owner = np.repeat(np.arange(len(held)), held.counts)
        whole = words.counts[owner] >= length  # a shorter text has one run, which no prompt of this length is
        for code, found in reversed(list(enumerate(grams, start=1))):
            if length in found:
                hit = owner[whole & np.isin(held.hashes, found[length])]
                codes[hit] = np.where(codes[hit] == 0, code, np.minimum(codes[hit], code))
    return codes


def prompt_grams(prompts: Iterable[str], ngram: int) -> dict[int, Hashes]:
    """Runs of words of the prompts by their length: `ngram`, or all words of a shorter prompt."""
    words = hash_words(list(prompts))
    grams = word_ngrams(words, ngram)
    lengths = np.repeat(np.minimum(words.counts, ngram), grams.counts)
    return {int(length): np.unique(grams.hashes[lengths == length]) for length in np.unique(lengths)}


def _keys(messages: list[str], part: TextPart) -> Iterator[bytes]:
    for text in texts_of(messages, part):
        yield hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()


def _signatures(candidates: Candidates, rows: Rows, part: TextPart) -> Signatures:
    """Signatures of all candidates where they are kept; otherwise those of these rows, the others' being zero."""
    if candidates.signatures is not None:
        return candidates.signatures(part)
    order = candidates.reading_order(rows)
    whole = np.zeros((N_PERMUTATIONS, len(candidates)), dtype=np.uint32)
    whole[:, order] = signed(texts_of(chunk, part) for chunk in candidates.texts(order))
    return whole


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


def _near_batch(
    texts: Chunks, left: npt.NDArray[np.bool_], pool: Signatures, batch: list[str], similarity: float
) -> Iterator[int]:
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
