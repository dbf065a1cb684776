from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator.errors import BadRowsError
from curator.messages import canonical_messages, dump_messages, example_id
from curator.render import Renderer
from tests.models import random_conversations
from trainer.config import TrainConfig, parse_config
from trainer.data import rows as rendering
from trainer.data.mixes import TrainRow
from trainer.data.rows import PreparedRows, prepare

Messages = list[dict[str, str]]
SHORT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
LONG = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the quick brown fox " * 30}]
LATE = [{"role": "user", "content": "the quick brown fox " * 30}, {"role": "assistant", "content": "yes"}]
NO_ANSWER = [{"role": "user", "content": "hi"}]


def config(**fields: Any) -> TrainConfig:
    return parse_config({"model": "m", "out": "o", "data": "d"} | fields)


def train_rows(conversations: Iterable[Messages]) -> list[TrainRow]:
    found = []
    for position, messages in enumerate(conversations):
        canonical = canonical_messages(messages)
        key = example_id(dump_messages(canonical))
        found.append(TrainRow(position, key, "safe" if position % 3 == 2 else "task", canonical))
    return found


def prepared(llama: Path, conversations: list[Messages], **fields: Any) -> PreparedRows:
    rows = train_rows(conversations)
    return prepare(rows, len(rows), Renderer.from_folder(llama), config(**fields))


@pytest.mark.parametrize("mask_rule", ["all", "last"])
def test_labels_are_the_renderers_mask(llama: Path, mask_rule: Any) -> None:
    conversations = random_conversations(30)
    found = prepared(llama, conversations, mask_rule=mask_rule)
    renderer = Renderer.from_folder(llama)
    for row, ids, labels in zip(train_rows(conversations), found.input_ids, found.labels, strict=True):
        rendered = renderer.render(row.messages, mask_rule)
        np.testing.assert_array_equal(ids, rendered.input_ids)
        np.testing.assert_array_equal(labels != -100, rendered.response_mask)
        np.testing.assert_array_equal(labels[labels != -100], rendered.input_ids[rendered.response_mask])
    report = found.report()
    assert report.n_rows == 30
    assert report.n_safe == 10
    assert report.n_tokens == sum(map(len, found.input_ids))
    assert report.n_response_tokens == sum(int((labels != -100).sum()) for labels in found.labels)
    assert (report.n_cut, report.n_answers_cut, report.n_masked) == (0, 0, 0)


def test_rows_keep_their_order_and_ids(llama: Path) -> None:
    conversations = random_conversations(20)
    found = prepared(llama, conversations)
    assert found.example_ids == [row.example_id for row in train_rows(conversations)]
    table = found.dataset().with_format("arrow")[:]
    assert table.column("row").to_pylist() == list(range(20))
    assert table.column("input_ids").to_pylist() == [ids.tolist() for ids in found.input_ids]


def test_cut_answers_are_counted(llama: Path) -> None:
    n_short = prepared(llama, [SHORT]).report().n_tokens
    report = prepared(llama, [SHORT, LONG, SHORT], max_length=n_short).report()
    assert (report.n_cut, report.n_answers_cut, report.n_masked) == (1, 1, 0)
    assert report.n_tokens == 3 * n_short
    assert report.longest_row > n_short


def test_a_row_cut_after_its_answer_loses_nothing(llama: Path) -> None:
    followed = [*SHORT, {"role": "user", "content": "the quick brown fox " * 30}]
    n_kept = prepared(llama, [SHORT]).report().n_tokens
    report = prepared(llama, [followed], max_length=n_kept).report()
    assert (report.n_cut, report.n_answers_cut) == (1, 0)


@pytest.mark.parametrize("row", [LATE, NO_ANSWER])
def test_rows_without_a_trained_token_are_refused_or_kept_in_place(llama: Path, row: Messages) -> None:
    with pytest.raises(BadRowsError, match=r"1 of 2 rows have no trained token within 20 tokens \(first: line 2\)"):
        prepared(llama, [SHORT, row], max_length=20)
    found = prepared(llama, [SHORT, row, SHORT], max_length=20, allow_masked_rows=True)
    assert found.masked == [1]
    assert len(found.input_ids) == 3
    assert (found.labels[1] == -100).all()
    with pytest.raises(BadRowsError, match="none of the 1 rows has a trained token"):
        prepared(llama, [row], max_length=20, allow_masked_rows=True)


def test_rows_that_cannot_be_rendered_are_listed(llama: Path) -> None:
    bad = [{"role": "user", "content": "reserved \ufdd0 character"}, {"role": "assistant", "content": "yes"}]
    with pytest.raises(BadRowsError, match="2 of 4 rows cannot be rendered; the first is line 2") as caught:
        prepared(llama, [SHORT, bad, SHORT, bad])
    assert [item["position"] for item in caught.value.details] == [1, 3]  # type: ignore[index, call-overload]


def test_no_rows_at_all(llama: Path) -> None:
    with pytest.raises(BadRowsError, match="no row to train on"):
        prepared(llama, [])


def test_several_processes_render_the_same_rows_in_the_same_order(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversations = [*random_conversations(9), LONG, LATE]
    fields: dict[str, Any] = {"model": llama, "max_length": 40, "allow_masked_rows": True}
    alone = prepared(llama, conversations, **fields)
    monkeypatch.setattr(rendering.os, "sched_getaffinity", lambda _: {0, 1})
    assert rendering.n_processes(100_000, 0.0001) == 1
    assert rendering.n_processes(100_000, 0.001) == 2
    monkeypatch.setattr(rendering, "PARALLEL_FROM_S", 0.0)
    monkeypatch.setattr(rendering, "SAMPLE_ROWS", 3)
    monkeypatch.setattr(rendering, "TIMED_ROWS", 1)
    monkeypatch.setattr(rendering, "CHUNK_ROWS", 2)
    together = prepared(llama, conversations, **fields)
    assert together.report() == alone.report()
    assert together.report().n_answers_cut
    assert (together.masked, together.example_ids, together.safe) == (alone.masked, alone.example_ids, alone.safe)
    for one, other in zip(together.input_ids + together.labels, alone.input_ids + alone.labels, strict=True):
        np.testing.assert_array_equal(one, other)
    bad = train_rows(conversations)
    bad[4] = replace(bad[4], messages=[{"role": "user", "content": "\ufdd0"}])
    with pytest.raises(BadRowsError, match=r"1 of 11 rows cannot be rendered; the first is line 5: .*noncharacter"):
        prepare(bad, len(bad), Renderer.from_folder(llama), config(**fields))
