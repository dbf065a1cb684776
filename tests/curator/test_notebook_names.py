"""`curator.open_mix` and `curator.gap`: what the store holds, as frames."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import curator
from curator.errors import BadInputError, MissingError
from curator.messages import load_messages
from curator.mix.files import mix_batches
from curator.store.store import Store
from tests.mix_stores import recipe, scored_store, task_records, task_set


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return scored_store(tmp_path_factory.mktemp("frames") / "store")


@pytest.fixture(scope="module")
def mix_id(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A mix with tool calls whose arguments are an object, JSON text and other text."""
    records = task_records(20)
    for place, arguments in ((2, {"a": [1, "x"]}), (3, '{"b": 2}'), (4, "words")):
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        records[place]["messages"].append({"role": "assistant", "tool_calls": [call]})
    return curator.build_mix(store, task_set(tmp_path_factory.mktemp("task"), records=records), recipe(rows=2)).mix_id


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def stored(store: Store, mix_id: str) -> list[dict[str, Any]]:
    return [row for batch in mix_batches(store, "local", mix_id) for row in batch.to_pylist()]


def test_a_mix_opens_by_the_beginning_of_its_id(store: Store, mix_id: str) -> None:
    mix = curator.open_mix(store, mix_id[:6])
    assert mix.mix_id == mix_id
    assert mix.manifest == curator.read_manifest(store, "local", mix_id)
    with pytest.raises(MissingError, match="there is no mix"):
        curator.open_mix(store, "0" * 32)
    with pytest.raises(MissingError, match="tenant other"):
        curator.open_mix(store, mix_id, tenant="other")


def test_polars_gives_the_rows_in_order_with_messages_as_structs(store: Store, mix_id: str) -> None:
    frame, rows = curator.open_mix(store, mix_id).to_polars(), stored(store, mix_id)
    assert frame["position"].to_list() == list(range(22))
    assert isinstance(frame.schema["messages"], pl.List)
    for column in ("example_id", "origin", "gap_rel", "losses", "filters_passed"):
        assert frame[column].to_list() == [row[column] for row in rows], column
    plain = [place for place, row in enumerate(rows) if "tool_calls" not in row["messages"]]
    messages = frame["messages"].to_list()
    assert [without_nulls(messages[place]) for place in plain] == [
        load_messages(rows[place]["messages"]) for place in plain
    ]
    calls = [message["tool_calls"] for turns in messages for message in turns if message["tool_calls"]]
    assert [call[0]["function"]["arguments"] for call in calls] == ['{"a":[1,"x"]}', '{"b": 2}', '"words"']


def test_a_data_set_has_the_same_rows_and_arguments_as_values(store: Store, mix_id: str) -> None:
    mix = curator.open_mix(store, mix_id)
    data = mix.to_dataset()
    frame = mix.to_polars()
    assert data.column_names == frame.columns
    assert list(data["example_id"]) == frame["example_id"].to_list()
    calls = [message["tool_calls"] for row in data for message in row["messages"] if message["tool_calls"]]
    assert [call[0]["function"]["arguments"] for call in calls] == [{"a": [1, "x"]}, {"b": 2}, "words"]
    roles = [[message["role"] for message in row["messages"]] for row in data]
    assert roles == [[message["role"] for message in turns] for turns in frame["messages"].to_list()]


def test_the_gap_is_that_of_the_view(store: Store) -> None:
    found = curator.gap(store, "chats")
    with curator.connect(store, ["chats"]) as db:
        view = db.sql("select example_id, gap_rel, gap_abs, complete from gap order by example_id").pl()
    assert found.select(view.columns).equals(view)
    assert found.height == 40
    assert found.filter(~pl.col("complete"))["gap_rel"].null_count() == 4


def test_holding_out_a_domain_leaves_its_models_out(store: Store) -> None:
    whole, held = curator.gap(store, "chats"), curator.gap(store, "chats", hold_out=["bad-2"])
    first = whole.filter(pl.col("complete"))["example_id"][0]
    ratio = [frame.filter(pl.col("example_id") == first)["gap_abs"].item() for frame in (held, whole)]
    assert ratio[0] == pytest.approx(ratio[1] / 2)  # the models lose 0.05 and 0.15 nats per token for each step
    assert held["complete"].all()


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"corpus": "other"}, MissingError, "no corpus 'other'"),
        ({"corpus": "chats", "hold_out": ["finance"]}, MissingError, "finance"),
        ({"corpus": "chats", "hold_out": ["bad-1", "bad-2"]}, MissingError, "leaves"),
        ({"corpus": "chats", "hold_out": "bad-1"}, BadInputError, "hold_out"),
        ({"corpus": "chats", "eps": -1.0}, BadInputError, "eps"),
        ({"corpus": "chats", "aligned": "nobody"}, MissingError, "nobody"),
    ],
)
def test_what_cannot_be_is_refused(store: Store, given: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        curator.gap(store, **given)


def test_a_corpus_without_scores_has_no_gap(tmp_path: Path) -> None:
    empty = Store(tmp_path / "store").open(create=True)
    (tmp_path / "c.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    curator.ingest(empty, [str(tmp_path / "c.jsonl")], "plain")
    with pytest.raises(MissingError, match="aligned"):
        curator.gap(empty, "plain")
