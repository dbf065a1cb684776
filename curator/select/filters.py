"""Filters on pool rows, as pure functions over columns and texts (method.md, "Choosing safe rows").

Each filter gives every row a reason to be dropped, or none; `curator.select.select` runs them in the recipe's order. A
new filter is one branch of `judge_columns` or `judge_texts`. Filters on columns look at every row, which for millions
of rows is far cheaper than to gather those left; filters on texts look at the rows left alone.
"""

import numpy as np

from curator.corpus.text import content_text, is_refusal, texts_of
from curator.recipe.filters import (
    ContaminationFilter,
    ExactDuplicates,
    FilterSpec,
    HarmFilter,
    HygieneFilter,
    LabelFilter,
    LengthFilter,
    NearDuplicates,
    RefusalFilter,
)
from curator.select.candidates import (
    CHUNK_ROWS,
    Candidates,
    Columns,
    Surroundings,
    Verdict,
)
from curator.select.columns import Floats, Indices, Mask
from curator.select.duplicates import (
    TASK_SUFFIX,
    contamination_verdict,
    exact_verdict,
    near_verdict,
)
from curator.select.hygiene import hygiene_verdict
from curator.select.labels import harm_verdict, label_verdict, length_verdict

__all__ = [
    "CHUNK_ROWS",
    "TASK_SUFFIX",
    "Candidates",
    "Columns",
    "Floats",
    "Indices",
    "Surroundings",
    "Verdict",
    "content_text",
    "filter_label",
    "is_refusal",
    "judge_columns",
    "judge_texts",
    "reads_task_rows",
    "reads_texts",
    "texts_of",
]


def judge_columns(spec: FilterSpec, columns: Columns, left: Mask) -> Verdict:
    """What a filter that reads no texts makes of the rows that earlier rules left, a mask of shape (n_rows,).

    Raises RecipeError when rows lack the label that it reads and the recipe does not say what to do.
    """
    if isinstance(spec, RefusalFilter):
        if spec.max_share > 0:  # the share is kept while rows are picked
            return Verdict((filter_label(spec),), np.zeros(columns.n_rows, dtype=np.int8))
        return Verdict((filter_label(spec),), columns.refuses(spec.rule).view(np.int8))
    if isinstance(spec, HarmFilter):
        return harm_verdict(spec, columns, left)
    if isinstance(spec, LabelFilter):
        return label_verdict(spec, columns, left)
    assert isinstance(spec, LengthFilter)
    return length_verdict(spec, columns, left)


def judge_texts(spec: FilterSpec, candidates: Candidates, left: Mask, around: Surroundings) -> Verdict:
    """The same for a filter that reads texts: only those of the rows left are read."""
    rows = np.flatnonzero(left)
    verdict = _of_texts(spec, candidates, rows, around)
    codes = np.zeros(len(candidates), dtype=np.int16)
    codes[rows] = verdict.codes
    return Verdict(verdict.reasons, codes)


def _of_texts(spec: FilterSpec, candidates: Candidates, rows: Indices, around: Surroundings) -> Verdict:
    """The verdict on these rows alone; its codes have their shape."""
    if isinstance(spec, HygieneFilter):
        return hygiene_verdict(spec, candidates, rows)
    if isinstance(spec, ExactDuplicates):
        return exact_verdict(spec, candidates, rows, around)
    if isinstance(spec, NearDuplicates):
        return near_verdict(spec, candidates, rows, around)
    assert isinstance(spec, ContaminationFilter)
    return contamination_verdict(spec, candidates, rows, around)


def filter_label(spec: FilterSpec) -> str:
    """The name under which manifests and rows show a filter, e.g. `refusal:v1`."""
    if not isinstance(spec, RefusalFilter):
        return spec.name
    return f"{spec.name}:{spec.rule}" + (f":share<={spec.max_share:g}" if spec.max_share else "")


def reads_texts(spec: FilterSpec) -> bool:
    """Whether the filter needs the pool rows' messages."""
    return isinstance(spec, HygieneFilter | ExactDuplicates | NearDuplicates | ContaminationFilter)


def reads_task_rows(spec: FilterSpec) -> bool:
    """Whether the filter reads the user's rows."""
    return isinstance(spec, ExactDuplicates | NearDuplicates) and "task" in spec.against
