"""What to do with a vector besides steering: screen a data set, and measure how far an adapter drifts along it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from curator.console import Progress
from curator.errors import BadInputError
from curator.messages import (
    Message,
    canonical_messages,
    dump_messages,
    example_id,
)
from curator.render import Renderer
from trainer.config.data import AS_DETECTED, ReadOptions
from trainer.data.reader import read_chats, render_row
from trainer.evaluate.metrics import mean_interval
from trainer.persona.activations import (
    Floats,
    Pooled,
    pooled_states,
    prompt_of,
)
from trainer.persona.vectors import Vector

TOP = 5


@dataclass(frozen=True)
class Rows:
    """A data set's conversations with an answer that fits the window, by record, and what was left out."""

    records: list[int]
    messages: list[list[Message]]
    items: list[Pooled]
    left_out: dict[str, int]


def answered_rows(source: str | Path, renderer: Renderer, max_length: int, how: ReadOptions = AS_DETECTED) -> Rows:
    """Every row of a data set, pooled over the response tokens of its last answer.

    Raises BadRowsError for bad records unless they are to be kept out, RenderError naming the row that the template
    refuses or leaves a part of out, and BadInputError when no row is left.
    """
    chats = read_chats(source, how)
    rows = Rows([], [], [], {"n_bad_records": chats.n_bad, "n_no_answer": 0, "n_too_long": 0})
    for row in chats.rows:
        rendered = render_row(renderer, row, "last")
        if not rendered.response_mask.any():
            rows.left_out["n_no_answer"] += 1
            continue
        item = Pooled(rendered.input_ids, rendered.response_mask)
        if len(item.ids_T) > max_length:
            rows.left_out["n_too_long"] += 1
            continue
        rows.records.append(row.record)
        rows.messages.append(row.messages)
        rows.items.append(item)
    if not rows.items:
        left = ", ".join(f"{name.removeprefix('n_').replace('_', ' ')} {n}" for name, n in rows.left_out.items() if n)
        raise BadInputError(f"{source} has no row to project ({left})")
    return rows


@dataclass(frozen=True)
class VectorProbe:
    """A model, and the vector at one layer that its states are projected on."""

    model: Any
    renderer: Renderer
    vector: Vector
    layer: int

    def projections(self, items: Sequence[Pooled], label: str) -> Floats:
        """Mean state over each item's tokens, times the vector scaled to length 1, (N,).

        In the units of the residual stream.
        """
        with Progress(len(items), "rows", label) as progress:
            states_N1D = pooled_states(self.model, items, [self.layer], on_items=progress.advance)
        return np.asarray(states_N1D[:, 0] @ self.vector.unit(self.layer))


def screen(
    probe: VectorProbe,
    data: str | Path,
    baseline: str | Path | None,
    max_length: int,
    how: ReadOptions = AS_DETECTED,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A summary and one record a row. With a `baseline` (the same prompts in the same order with the model's own
    answers) also each row's projection minus its baseline's: how far the data pulls along the vector.
    """
    rows = answered_rows(data, probe.renderer, max_length, how)
    values_N = probe.projections(rows.items, "screening")
    records: list[dict[str, Any]] = [
        {"record": number, "example_id": _id(messages), "projection": float(value)}
        for number, messages, value in zip(rows.records, rows.messages, values_N, strict=True)
    ]
    summary: dict[str, Any] = {"n_rows": len(records), **rows.left_out, "projection": _summary(values_N)}
    if baseline is not None:
        own = {
            number: (messages, item)
            for base in [answered_rows(baseline, probe.renderer, max_length, how)]
            for number, messages, item in zip(base.records, base.messages, base.items, strict=True)
        }
        _check_twins(rows, own)
        shared = [index for index, number in enumerate(rows.records) if number in own]
        twins_N = probe.projections([own[rows.records[i]][1] for i in shared], "screening baseline")
        for index, twin in zip(shared, twins_N, strict=True):
            records[index]["difference"] = float(values_N[index] - twin)
        summary["n_compared"] = len(shared)
        summary["difference"] = _summary(values_N[shared] - twins_N)
    key = "difference" if baseline is not None else "projection"
    ranked = sorted(records, key=lambda record: (-record.get(key, -np.inf), record["record"]))
    summary["highest"] = ranked[:TOP]
    return summary, records


def _check_twins(rows: Rows, own: dict[int, tuple[list[Message], Pooled]]) -> None:
    for number, messages in zip(rows.records, rows.messages, strict=True):
        if number in own and own[number][0][:-1] != messages[:-1]:
            raise BadInputError(f"record {number}: the prompts of data and baseline differ; they must be the same")
    if not any(number in own for number in rows.records):
        raise BadInputError(
            f"data ({len(rows.records)} rows, records {_some(rows.records)}) and baseline ({len(own)} rows, records "
            f"{_some(sorted(own))}) share no record: the baseline must hold the same prompts in the same order, each "
            "with an answer that fits --max-length"
        )


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:3])) + (", ..." if len(numbers) > 3 else "")


def drift(probe: VectorProbe, prompts: Sequence[Sequence[Message]], seed: int = 0) -> dict[str, Any]:
    """How far an adapter moves the state at the last prompt token along the vector (the fine-tuning shift).

    The probe's model is a PeftModel. `shift` is the mean over prompts of (state with adapter - state without) times the
    unit vector, with a bootstrap interval over prompts; `by_layer` the mean at every row whose vector is not zero;
    `relative` is `shift` over the mean length of the states without adapter.
    """
    model, vector, layer = probe.model, probe.vector, probe.layer
    items = [prompt_of(probe.renderer, prompt) for prompt in prompts]
    with Progress(2 * len(items), "prompts", "measuring drift") as progress:
        adapted_NLD = pooled_states(model, items, on_items=progress.advance)
        with model.disable_adapter():
            base_NLD = pooled_states(model, items, on_items=progress.advance)
    moved_NLD = adapted_NLD - base_NLD
    shift_N = moved_NLD[:, layer] @ vector.unit(layer)
    norms_L = np.linalg.norm(vector.rows_LD, axis=1)
    length = float(np.linalg.norm(base_NLD[:, layer], axis=1).mean())
    interval = mean_interval(shift_N, seed=seed)
    moved_LD = moved_NLD.mean(axis=0)
    return {
        "n_prompts": len(items),
        "layer": layer,
        "shift": interval.as_dict(),
        "relative": float(shift_N.mean()) / length,
        "cosine": _cosine(moved_LD[layer], vector.rows_LD[layer]),
        "by_layer": {
            str(row): float(moved_LD[row] @ vector.rows_LD[row] / norm) for row, norm in enumerate(norms_L) if norm > 0
        },
    }


def _cosine(left_D: Floats, right_D: Floats) -> float | None:
    lengths = float(np.linalg.norm(left_D) * np.linalg.norm(right_D))
    return None if lengths == 0.0 else float(left_D @ right_D) / lengths


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """One JSON line a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))


def _id(messages: Sequence[Message]) -> str:
    return example_id(dump_messages(canonical_messages(messages)))


def _summary(values_N: Floats) -> dict[str, float]:
    low, median, high = (float(value) for value in np.quantile(values_N, [0.05, 0.5, 0.95]))
    return {"mean": float(values_N.mean()), "sd": float(values_N.std()), "q05": low, "median": median, "q95": high}
