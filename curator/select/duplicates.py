"""Filters that compare texts: duplicates inside the pool and against the user's rows, and evaluation prompts."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from curator.corpus.text import texts_of
from curator.recipe.filters import (
    ContaminationFilter,
    ExactDuplicates,
    NearDuplicates,
    TextPart,
)
from curator.select.candidates import Candidates, Surroundings, Verdict
from curator.select.columns import Indices
from curator.select.dedup import near_earlier, near_reference, signed
from curator.select.minhash import Signatures
from curator.select.ngrams import hash_words, word_ngrams

TASK_SUFFIX = ":task"  # reasons that end so stem from the user's rows


def exact_verdict(spec: ExactDuplicates, candidates: Candidates, rows: Indices, around: Surroundings) -> Verdict:
    """Rows whose text, case and white space aside, an earlier row (by id) or a task row has."""
    known: set[bytes] = set()
    if "task" in spec.against:
        for batch in around.task_texts():
            known.update(_keys(batch, spec.part))
    codes = np.zeros(len(rows), dtype=np.int16)
    seen: set[bytes] = set()
    for place, key in zip(_by_id(candidates, rows), _all_keys(candidates, rows, spec.part), strict=True):
        if key in known:
            codes[place] = 1
        elif key in seen and "pool" in spec.against:
            codes[place] = 2
        else:
            seen.add(key)
    return Verdict((spec.name + TASK_SUFFIX, spec.name + ":pool"), codes)


def near_verdict(spec: NearDuplicates, candidates: Candidates, rows: Indices, around: Surroundings) -> Verdict:
    """Rows near to a task row, then those near to an earlier row (by id) that stays."""
    codes = np.zeros(len(candidates), dtype=np.int16)

    def texts(at: Indices) -> Iterator[list[str]]:
        return (texts_of(chunk, spec.part) for chunk in candidates.texts(at))

    pool, left = _signatures(candidates, rows, spec.part), rows[_by_id(candidates, rows)]
    if "task" in spec.against:
        references = lambda: (texts_of(batch, spec.part) for batch in around.task_texts())  # noqa: E731
        codes[near_reference(texts, left, pool, references, spec.similarity)] = 1
        left = left[codes[left] == 0]
    if "pool" in spec.against:
        codes[near_earlier(texts, left, pool, spec.similarity)] = 2
    return Verdict((spec.name + TASK_SUFFIX, spec.name + ":pool"), codes[rows])


def _signatures(candidates: Candidates, rows: Indices, part: TextPart) -> Signatures:
    """Signatures of all candidates where they are kept; otherwise those of these rows, the others' being zero."""
    if candidates.signatures is not None:
        return candidates.signatures(part)
    own = signed(texts_of(chunk, part) for chunk in candidates.texts(rows))
    whole = np.zeros((len(own), len(candidates)), dtype=np.uint32)
    whole[:, rows] = own
    return whole


def contamination_verdict(
    spec: ContaminationFilter, candidates: Candidates, rows: Indices, around: Surroundings
) -> Verdict:
    """Rows that share a run of words with a prompt of an evaluation set; the first set that has one is the reason."""
    grams = {name: _prompt_grams(around.evaluations[name], spec.ngram) for name in spec.sets}
    lengths = sorted({length for found in grams.values() for length in found})
    codes = np.zeros(len(rows), dtype=np.int16)
    start = 0
    for chunk in candidates.texts(rows):
        words = hash_words(texts_of(chunk, "conversation"))
        here = codes[start : start + len(chunk)]
        for length in lengths:
            held = word_ngrams(words, length)
            owner = np.repeat(np.arange(len(held)), held.counts)
            whole = words.counts[owner] >= length  # a shorter text has one run, which no prompt of this length is
            for code, found in reversed(list(enumerate(grams.values(), start=1))):
                if length in found:
                    hit = owner[whole & np.isin(held.hashes, found[length])]
                    here[hit] = np.where(here[hit] == 0, code, np.minimum(here[hit], code))
        start += len(chunk)
    return Verdict(tuple(f"contamination:{name}" for name in spec.sets), codes)


def _prompt_grams(prompts: Iterable[str], ngram: int) -> dict[int, np.ndarray]:
    """Runs of words of the prompts by their length: `ngram`, or all words of a shorter prompt."""
    words = hash_words(list(prompts))
    grams = word_ngrams(words, ngram)
    lengths = np.repeat(np.minimum(words.counts, ngram), grams.counts)
    return {int(length): np.unique(grams.hashes[lengths == length]) for length in np.unique(lengths)}


def _by_id(candidates: Candidates, rows: Indices) -> Indices:
    """Places in `rows` in the order of their ids, so that which duplicate stays does not hang on the rows' order."""
    places: Indices = np.argsort(candidates.id_rank[rows], kind="stable")
    return places


def _all_keys(candidates: Candidates, rows: Indices, part: TextPart) -> Iterator[bytes]:
    for chunk in candidates.texts(rows[_by_id(candidates, rows)]):
        yield from _keys(chunk, part)


def _keys(messages: list[str], part: TextPart) -> Iterator[bytes]:
    for text in texts_of(messages, part):
        yield hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()
