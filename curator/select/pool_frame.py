"""Making a pool's frame: every row of a corpus revision beside its losses under all scorers of one measure.

Columns: `id_hi` and `id_lo` (the first and last 64 bits of the id, by which rows are sorted), `refusal_v1` and
`refusal_v2`, what hygiene checks (`curator.select.hygiene`), the labels as Enum, `n_chars`, `n_turns`,
`n_response_tokens` (null without a loss of the aligned scorer) and `text_place` (the row's place in the corpus). For
scorer i `nll_sum_i` (nats), `n_tokens_i`, `mean_nll_i` (nats per token), null where there is no loss, and `has_loss_i`.
With a misaligned scorer `gap`, the gap_rel of eps 1 over the mean of all of them, and `bound`, which no gap_rel of eps
1 over any of them exceeds.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curator.corpus.manifest import Corpus, Scorer
from curator.corpus.refusals import is_refusal
from curator.query.gaps import Gaps, GapSpec, Losses
from curator.select.candidates import label_values
from curator.select.hygiene import HYGIENE, hygiene_columns
from curator.store.filesystem import reading_parquet
from curator.store.store import Store

LABELS = ("source", "domain", "language", "license", "harm")
_ID = ("id_hi", "id_lo")
_BATCH_ROWS = 8_192  # whose texts are held at once
_STEMS = (
    "sorry",
    "apologize",
    "can",
    "unable",
)  # without one of them no answer opens like a refusal (curator.corpus.text)

Role = Literal["aligned", "misaligned", "benign"]


@dataclass(frozen=True)
class Member:
    """One scorer of the measure; members stand in the order aligned, misaligned, benign, each by id."""

    scorer_id: str
    role: Role


def pool_frame(store: Store, corpus: Corpus, scorers: Sequence[Scorer], gaps: Gaps) -> pl.DataFrame:
    """The frame of a corpus revision and the scorers of one measure (aligned, misaligned, benign).

    Raises what reading the parts raises.
    """
    examples = _examples(store, corpus).sort(_ID)
    frame = examples.join(_sources(store, corpus), on=_ID, how="left", maintain_order="left")
    ids = frame.select(_ID)
    losses = [ids.join(_losses(store, item), on=_ID, how="left", maintain_order="left") for item in scorers]
    return completed(frame, losses, members_of(scorers), gaps)


def members_of(scorers: Sequence[Scorer]) -> tuple[Member, ...]:
    """The members that scorers are."""
    return tuple(Member(item.scorer_id, item.role) for item in scorers)


def completed(
    frame: pl.DataFrame, losses: Sequence[pl.DataFrame], members: Sequence[Member], gaps: Gaps
) -> pl.DataFrame:
    """The frame of rows in the order of their ids, with each member's `nll_sum` and `n_response_tokens`."""
    frame = frame.with_columns(pl.col(name).cast(_enum(frame[name])) for name in LABELS)
    columns: list[pl.Series] = []
    for place, table in enumerate(losses):
        mean = gaps.means(table["nll_sum"], table["n_response_tokens"])
        there = mean.is_not_null()
        n_tokens = pl.select(pl.when(there).then(table["n_response_tokens"])).to_series()
        nll_sum = pl.select(pl.when(there).then(table["nll_sum"])).to_series()
        named = {"mean_nll": mean, "nll_sum": nll_sum, "n_tokens": n_tokens, "has_loss": there}
        columns += [column.alias(f"{name}_{place}") for name, column in named.items()]
        if place == 0:
            columns.append(n_tokens.alias("n_response_tokens"))
    if not losses:
        columns.append(pl.repeat(None, frame.height, dtype=pl.Int32, eager=True).alias("n_response_tokens"))
    frame = frame.with_columns(columns)
    misaligned = frame.select(f"mean_nll_{i}" for i, item in enumerate(members) if item.role == "misaligned")
    if not misaligned.width:
        return frame.rechunk()
    aligned = frame["mean_nll_0"]
    of_all = Losses(aligned, misaligned, pl.DataFrame(), frame["n_response_tokens"])
    gap = gaps.columns(of_all, GapSpec(), ["gap_rel"])["gap_rel"]
    return frame.with_columns(gap.alias("gap"), gaps.highest(aligned, misaligned).alias("bound")).rechunk()


def digests(frame: pl.DataFrame, members: Sequence[Member]) -> dict[str, str]:
    """SHA-256 of ids, labels and each member's losses, in the order of the ids; labels that no row has are left out."""
    halves = frame.select(_ID).to_numpy().astype(">u8")
    found = {"example_id": _sha256(halves)}
    for name in LABELS:
        label = frame[name]
        if label.null_count() < len(label):
            values = orjson.dumps(label_values(label))
            codes = label.to_physical().cast(pl.Int32).fill_null(-1).to_numpy()
            found[name] = hashlib.sha256(values + codes.astype("<i4").tobytes()).hexdigest()
    for place, member in enumerate(members):
        nll_sum = frame[f"nll_sum_{place}"].fill_null(np.nan).to_numpy()
        n_tokens = frame[f"n_tokens_{place}"].fill_null(0).to_numpy()
        found[member.scorer_id] = _sha256(nll_sum.astype("<f8"), n_tokens.astype("<i4"))
    return found


def id_halves(ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """The halves of ids given as 32 hex digits, shape (n, 2), whose order is that of the texts."""
    return np.frombuffer(bytes.fromhex("".join(ids)), dtype=">u8").reshape(-1, 2).astype(np.uint64)


def id_texts(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> list[str]:
    """The ids of these halves as 32 hex digits."""
    text = _hex_digits(high, low)
    return [text[start : start + 32] for start in range(0, len(text), 32)]


def id_column(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> pa.LargeStringArray:
    """The same as an Arrow column, without a Python string for each."""
    ends = pa.py_buffer(np.arange(0, 32 * len(high) + 1, 32, dtype=np.int64))
    return pa.LargeStringArray.from_buffers(len(high), ends, pa.py_buffer(_hex_digits(high, low).encode()))


def _hex_digits(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> str:
    return np.stack([high, low], axis=1).astype(">u8").tobytes().hex()


def _examples(store: Store, corpus: Corpus) -> pl.DataFrame:
    """Ids, flags, labels and counts of all examples, in the corpus's order."""
    labels = [name for name in LABELS if name != "source"]
    pieces = []
    for part in corpus.parts:
        table = store.read_table(part, ["example_id", "response_head", *labels, "n_chars", "n_turns"])
        heads = _frame(table.select(["response_head"]))["response_head"]
        flags = [_refusals(heads, rule) for rule in ("v1", "v2")]
        columns = [*flags, *_hygiene(store, part), *_frame(table.select([*labels, "n_chars", "n_turns"]))]
        pieces.append(_ids(table).with_columns(columns))
    schema = {
        **dict.fromkeys(_ID, pl.UInt64), "refusal_v1": pl.Boolean, "refusal_v2": pl.Boolean, **HYGIENE,
        **dict.fromkeys(labels, pl.String), "n_chars": pl.Int32, "n_turns": pl.Int32,
    }  # fmt: skip
    return pl.concat([pl.DataFrame(schema=schema), *pieces]).with_row_index("text_place")


def _hygiene(store: Store, part: str) -> pl.DataFrame:
    """What hygiene checks of the rows of a part, whose texts are not held together."""
    with reading_parquet(part, store.base), store.open_file(part) as file:
        batches = pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=["messages"])
        return pl.concat(
            [pl.DataFrame(schema=HYGIENE), *(hygiene_columns(batch["messages"].to_pylist()) for batch in batches)]
        )


def _refusals(heads: pl.Series, rule: Literal["v1", "v2"]) -> pl.Series:
    """Which answers open like a refusal: Python's one rule, asked only where a word of it can be."""
    maybe = heads.str.contains_any([*_STEMS], ascii_case_insensitive=True) | heads.str.contains(r"[^\x00-\x7F]")
    rows = maybe.arg_true()
    found = np.zeros(len(heads), dtype=np.bool_)
    found[rows.to_numpy()] = [is_refusal(head, rule) for head in heads.gather(rows).to_list()]
    return pl.Series(f"refusal_{rule}", found)


def _sources(store: Store, corpus: Corpus) -> pl.DataFrame:
    """The file that first brought each example."""
    pieces = []
    for ingest, paths in enumerate(corpus.sources):
        for path in paths:
            table = store.read_table(path, ["example_id", "source", "record"])
            rows = _frame(table.select(["source", "record"]))
            pieces.append(_ids(table).with_columns(*rows, pl.lit(ingest).alias("ingest")))
    schema = {**dict.fromkeys(_ID, pl.UInt64), "source": pl.String, "record": pl.Int64, "ingest": pl.Int32}
    found = pl.concat([pl.DataFrame(schema=schema), *pieces]).sort("ingest", "record", maintain_order=True)
    return found.unique(_ID, keep="first", maintain_order=True).select(*_ID, "source")


def _losses(store: Store, scorer: Scorer) -> pl.DataFrame:
    """The sums and counts that a scorer's parts hold, by id."""
    pieces = []
    for part in scorer.parts:
        table = store.read_table(part, ["example_id", "nll_sum", "n_response_tokens"])
        pieces.append(_ids(table).with_columns(*_frame(table.select(["nll_sum", "n_response_tokens"]))))
    schema = {**dict.fromkeys(_ID, pl.UInt64), "nll_sum": pl.Float64, "n_response_tokens": pl.Int32}
    return pl.concat([pl.DataFrame(schema=schema), *pieces])


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _ids(table: pa.Table) -> pl.DataFrame:
    """The halves of the column `example_id`, from its bytes."""
    texts = []
    for chunk in table["example_id"].chunks:
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, dtype=np.int32)[[chunk.offset, chunk.offset + len(chunk)]]
        texts.append(data.slice(int(ends[0]), int(ends[1] - ends[0])).to_pybytes().decode())
    halves = id_halves(texts)
    return pl.DataFrame({"id_hi": halves[:, 0], "id_lo": halves[:, 1]})


def _enum(label: pl.Series) -> pl.Enum:
    return pl.Enum(label.unique().drop_nulls().cast(pl.String).sort())


def _sha256(*arrays: npt.NDArray[np.generic]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
