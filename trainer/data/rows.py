"""Rows rendered to token ids and labels, and an account of what will be trained.

`prepare` renders in the order of the rows and refuses what cannot be trained. Many rows are rendered by several
processes (`in_order`), whose results come back in the same order.
"""

import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curator.console import Progress
from curator.corpus.task_set import TaskSet
from curator.errors import BadRowsError, IntegrityError, RenderError
from curator.messages import load_messages
from curator.render import (
    PARTS,
    POSTFIX,
    PREFIX,
    QUERY,
    Rendered,
    Renderer,
)
from curator.scoring.identity import model_window
from trainer.config import TrainConfig
from trainer.data import rows as rendering
from trainer.data.mixes import TrainRow

PARALLEL_FROM_S = 20.0  # of a processor for rendering all rows; to start others takes each about a second of one
CHUNK_ROWS = 1_000  # rows that a process renders at a time
MAX_PROCESSES = 16
T = TypeVar("T")
SettingsT = TypeVar("SettingsT")
MAX_LISTED = 20
_CHUNK_ROWS = 100  # rendered at a time: more are slower, since their arrays leave the fast caches
ROW = "row"  # column with a row's 0-based position in the mix or file
SAFE = "safe"  # column that is true for rows of a safe pool
IGNORED = -100  # label of a token without loss
CLASS_CODES = {"prefix": PREFIX, "query": QUERY, "postfix": POSTFIX}
CLASSES = "token_classes"  # column with each token's class (curator.render.mask), where a defence needs it
# Rows that this process renders before it decides, and those of them, the last ones, by which it does: the first
# thousands are several times slower, while most words are new to the renderer.
SAMPLE_ROWS, TIMED_ROWS = 10_000, 1_000
_renderer: list[Renderer] = []  # of a worker process
IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ContentReport:
    """What will be trained, in one epoch. Tokens are counted after cutting at `max_length`.

    `n_cut` rows were longer than the window; of these `n_answers_cut` lost response tokens. `n_masked` rows
    have nothing to learn from (no response token with a logit before it). `dropped` counts, by part (content,
    tool_calls, reasoning), rows of which the chat template leaves out that part, as the renderer's settings accept.
    """

    n_rows: int
    n_safe: int
    n_tokens: int
    n_response_tokens: int
    longest_row: int  # tokens, before cutting
    n_cut: int
    n_answers_cut: int
    n_masked: int
    dropped: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass
class PreparedRows:
    """Rendered rows in order: ids and labels, (T,) each; labels are -100 outside the response mask.

    `classes` is empty unless they were requested. `counts` has rows by origin, `cut`, `answers_cut` and
    `dropped:PART` rows, and `tokens` and `trained` ones (see ContentReport).
    """

    input_ids: list[IntArray] = field(default_factory=list)
    labels: list[IntArray] = field(default_factory=list)
    example_ids: list[str] = field(default_factory=list)
    safe: list[bool] = field(default_factory=list)
    classes: list[npt.NDArray[np.int8]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    masked: list[int] = field(default_factory=list)
    longest: int = 0

    def append(self, later: "PreparedRows") -> None:
        """Add rows that come after these."""
        self.input_ids += later.input_ids
        self.labels += later.labels
        self.example_ids += later.example_ids
        self.safe += later.safe
        self.classes += later.classes
        self.counts += later.counts
        self.masked += later.masked
        self.longest = max(self.longest, later.longest)

    def report(self) -> ContentReport:
        """The account of these rows."""
        return ContentReport(
            n_rows=len(self.input_ids),
            n_safe=self.counts["safe"],
            n_tokens=self.counts["tokens"],
            n_response_tokens=self.counts["trained"],
            longest_row=self.longest,
            n_cut=self.counts["cut"],
            n_answers_cut=self.counts["answers_cut"],
            n_masked=len(self.masked),
            dropped={part: n for part in PARTS if (n := self.counts[f"dropped:{part}"])},
        )

    def n_safe_trained(self) -> int:
        """Trained tokens of the safe rows."""
        rows = (labels_T for labels_T, is_safe in zip(self.labels, self.safe, strict=True) if is_safe)
        return sum(int((labels_T != IGNORED).sum()) for labels_T in rows)

    def n_by_class(self) -> dict[str, int]:
        """Tokens of all rows within the window by their class; all 0 where classes were not requested."""
        totals = np.zeros(max(CLASS_CODES.values()) + 1, dtype=np.int64)
        for classes_T in self.classes:
            totals += np.bincount(classes_T, minlength=len(totals))
        return {name: int(totals[code]) for name, code in CLASS_CODES.items()}

    def table(self, n_fill: int = 0) -> pa.Table:
        """Columns input_ids, labels, row (the position), safe, and token_classes where there are any.

        `n_fill` rows of one untrained token and position -1 come last: several processes need full batches.
        """
        ids, filler = self.input_ids, [np.zeros(1, np.int32)] * n_fill
        positions = np.concatenate([np.arange(len(ids), dtype=np.int64), np.full(n_fill, -1, np.int64)])
        columns = {
            "input_ids": list_array(ids + filler),
            "labels": list_array(self.labels + [np.full(1, IGNORED, np.int32)] * n_fill),
            ROW: pa.array(positions),
            SAFE: pa.array(self.safe + [False] * n_fill, type=pa.bool_()),
        }
        if self.classes:
            columns[CLASSES] = list_array(self.classes + [np.zeros(1, np.int8)] * n_fill)
        return pa.table(columns)

    def dataset(self, n_fill: int = 0) -> Any:
        """The table as a datasets.Dataset that gives numpy arrays."""
        from datasets import Dataset

        return Dataset(self.table(n_fill)).with_format("numpy")

    def check_dataset(self, dataset: Any, n_fill: int = 0) -> None:
        """Raise IntegrityError unless a trainer still holds exactly these rows in this order."""
        if len(dataset) != len(self.input_ids) + n_fill:
            raise IntegrityError(f"prepared {len(self.input_ids)} rows, the trainer holds {len(dataset)}")
        if not dataset.with_format("arrow")[:].equals(self.table(n_fill)):
            raise IntegrityError("the trainer holds other rows than were prepared, or in another order")


def task_rows(task: TaskSet) -> Iterator[TrainRow]:
    """The rows of a user's own file, in its order; every one is a task row."""
    for batch in task.batches():
        for row in batch.to_pylist():
            yield TrainRow(row["ordinal"], row["example_id"], "task", load_messages(row["messages"]))


Places = Callable[[Collection[int]], dict[int, str]]  # where rows stand that errors name, by position


def places_in_mix(positions: Collection[int]) -> dict[int, str]:
    """A mix has one row a line."""
    return {position: f"line {position + 1}" for position in positions}


def prepare(
    rows: Iterable[TrainRow], n_rows: int, renderer: Renderer, config: TrainConfig, places: Places = places_in_mix
) -> PreparedRows:
    """Render, cut and label all rows.

    Raises BadRowsError listing rows that the template cannot render, and, unless `allow_masked_rows`, those
    without a trained token inside the window; they are never dropped, since that would shift the order.
    """
    prepared = PreparedRows()
    problems: list[dict[str, Any]] = []
    n_failed = 0
    with Progress(n_rows, "rows", "rendering") as progress:
        for part, found, failed in _parts(rows, n_rows, renderer, config):
            prepared.append(part)
            problems += found[: MAX_LISTED - len(problems)]
            n_failed += failed
            progress.advance(len(part.input_ids) + failed)
    if n_failed:
        listed = _placed(problems, places)
        first = listed[0]
        raise BadRowsError(
            f"{n_failed} of {n_rows} rows cannot be rendered; the first is {first['place']}: {first['message']}",
            details=listed,
        )
    if not prepared.input_ids:
        raise BadRowsError("there is no row to train on")
    check_masked(prepared, config, places)
    return prepared


_Part = tuple[PreparedRows, list[dict[str, Any]], int]


def _parts(rows: Iterable[TrainRow], n_rows: int, renderer: Renderer, config: TrainConfig) -> Iterator[_Part]:
    """Rendered chunks in order, each with its problems (capped) and how many rows failed.

    This process begins, and the others of this machine join it where much is left.
    """
    left = iter(rows)
    n_timed = rendering.TIMED_ROWS
    yield from _rendered(islice(left, rendering.SAMPLE_ROWS - n_timed), renderer, config)
    start = time.process_time()
    yield from _rendered(islice(left, n_timed), renderer, config)
    row_s = (time.process_time() - start) / n_timed
    n_workers = rendering.n_processes(n_rows - rendering.SAMPLE_ROWS, row_s)
    if n_workers > 1:
        again = partial(Renderer.from_folder, config.model, settings=renderer.settings)
        yield from rendering.in_order(render_chunk, left, again, config, n_workers)
    else:
        yield from _rendered(left, renderer, config)


def _rendered(rows: Iterator[TrainRow], renderer: Renderer, config: TrainConfig) -> Iterator[_Part]:
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        yield render_chunk(chunk, renderer, config)


def render_chunk(rows: list[TrainRow], renderer: Renderer, config: TrainConfig) -> _Part:
    """Some rows rendered, cut and labelled; rows that the template cannot render are listed and counted."""
    problems, kept, rendered = list[dict[str, Any]](), list[TrainRow](), list[Rendered]()
    conversations = [row.messages for row in rows]
    for row, found in zip(
        rows, renderer.render_all(conversations, config.mask_rule, classes=config.needs_classes), strict=True
    ):
        if isinstance(found, RenderError):
            problems.append(_problem(row.position, row.example_id, found.message))
        else:
            kept.append(row)
            rendered.append(found)
    return _labelled(kept, rendered, config.max_length), problems[:MAX_LISTED], len(problems)


def _labelled(rows: Sequence[TrainRow], rendered: Sequence[Rendered], max_length: int) -> PreparedRows:
    """Rendered rows cut and labelled, and what that loses."""
    if not rows:
        return PreparedRows()
    n_tokens_R = np.array([row.n_tokens for row in rendered])
    starts_R = np.concatenate(([0], np.cumsum(n_tokens_R)))[:-1]
    trained_N = np.concatenate([row.response_mask for row in rendered])
    trained_N[starts_R[n_tokens_R > 0]] = False  # no logits before a row's first token: see Rendered.loss_mask
    labels_N = np.where(trained_N, np.concatenate([row.input_ids for row in rendered]), np.int32(IGNORED))
    n_before_T = np.concatenate(([0], np.cumsum(trained_N)))  # trained tokens before each place
    kept_R = np.minimum(n_tokens_R, max_length)
    n_trained_R = n_before_T[starts_R + kept_R] - n_before_T[starts_R]
    n_whole_R = n_before_T[starts_R + n_tokens_R] - n_before_T[starts_R]
    counts = Counter(row.origin for row in rows)
    counts["cut"] = int((n_tokens_R > max_length).sum())
    counts["answers_cut"] = int((n_trained_R < n_whole_R).sum())
    counts["tokens"] = int(kept_R.sum())
    counts["trained"] = int(n_trained_R.sum())
    counts.update(f"dropped:{part}" for row in rendered for part in row.dropped)
    parts = [slice(start, start + n) for start, n in zip(starts_R.tolist(), kept_R.tolist(), strict=True)]
    return PreparedRows(
        input_ids=[row.input_ids[:max_length] for row in rendered],
        labels=[labels_N[part] for part in parts],
        example_ids=[row.example_id for row in rows],
        safe=[row.origin == "safe" for row in rows],
        classes=[row.token_classes[:max_length] for row in rendered if row.token_classes is not None],
        counts=counts,
        masked=[row.position for row, n in zip(rows, n_trained_R.tolist(), strict=True) if not n],
        longest=int(n_tokens_R.max()),
    )


def check_masked(prepared: PreparedRows, config: TrainConfig, places: Places = places_in_mix) -> None:
    """Raise BadRowsError for rows without a trained token, unless they may stay (but never when all are so)."""
    if not prepared.masked:
        return
    n_rows = len(prepared.input_ids)
    if len(prepared.masked) == n_rows:
        raise BadRowsError(f"none of the {n_rows} rows has a trained token within {config.max_length} tokens")
    if config.allow_masked_rows:
        return
    text = "no response token within the window"
    details = _placed([_problem(row, prepared.example_ids[row], text) for row in prepared.masked[:MAX_LISTED]], places)
    raise BadRowsError(
        f"{len(prepared.masked)} of {n_rows} rows have no trained token within {config.max_length} tokens (first: "
        f"{details[0]['place']}); raise --max-length, or keep them in place untrained with --allow-masked-rows",
        details=details,
    )


def check_window(prepared: PreparedRows, model: Path) -> None:
    """Raise BadRowsError for rows, cut as they are, with more tokens than the model has positions for.

    Beyond them a model with learned positions fails, and another sees positions that it was not trained on.
    """
    own = model_window(model)
    lengths = [len(ids) for ids in prepared.input_ids]
    n_over = 0 if own is None else sum(length > own for length in lengths)
    if n_over:
        raise BadRowsError(
            f"{n_over:,} of {len(lengths):,} rows have more than {own:,} tokens, the model's own window (the longest "
            f"{max(lengths):,}): --max-length {own} cuts them"
        )


def dropped_text(dropped: Mapping[str, int]) -> str:
    """Rows by the part that they lack, for people."""
    return ", ".join(f"{part} of {n:,} rows" for part, n in dropped.items())


def _problem(position: int, example: str, message: str) -> dict[str, Any]:
    return {"position": position, "example_id": example, "message": message}


def _placed(problems: Sequence[dict[str, Any]], places: Places) -> list[dict[str, Any]]:
    """Problems with the place where a person finds each row."""
    found = places({item["position"] for item in problems})
    return [{"place": found[item["position"]], **item} for item in problems]


def list_array(rows: Sequence[npt.NDArray[Any]]) -> pa.Array:
    """One list array of many small arrays, without a Python object for each value."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows)))


def n_processes(n_rows: int, row_s: float) -> int:
    """How many processes render `n_rows` rows of `row_s` seconds: 1, or where that is long one a core."""
    return 1 if n_rows * row_s < PARALLEL_FROM_S else min(len(os.sched_getaffinity(0)), MAX_PROCESSES)


def in_order(
    work: Callable[[list[TrainRow], Renderer, SettingsT], T],
    rows: Iterable[TrainRow],
    renderer: Callable[[], Renderer],
    settings: SettingsT,
    n_workers: int,
) -> Iterator[T]:
    """`work(chunk, renderer, settings)` for every chunk of rows, by `n_workers` processes, in the rows' order.

    Each process makes its `renderer` once. No more than two chunks a process wait at a time, so rows are read
    as they are needed.
    """
    context = get_context("spawn")  # a fork would copy the threads' locks of Arrow and of the tokenizer
    with ProcessPoolExecutor(n_workers, mp_context=context, initializer=_start, initargs=(renderer,)) as pool:
        waiting: deque[Future[T]] = deque()
        left = iter(rows)
        try:
            while chunk := list(islice(left, CHUNK_ROWS)):
                waiting.append(pool.submit(_run, work, chunk, settings))
                if len(waiting) >= 2 * n_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _start(renderer: Callable[[], Renderer]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the leading process's to answer
    _renderer[:] = [renderer()]


def _run(work: Callable[[list[TrainRow], Renderer, SettingsT], T], chunk: list[TrainRow], settings: SettingsT) -> T:
    return work(chunk, _renderer[0], settings)
