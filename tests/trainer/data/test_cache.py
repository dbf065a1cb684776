import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator.errors import BadRowsError
from curator.mix.build import build_mix
from curator.scoring.identity import weights_sha256
from tests.mix_stores import recipe, scored_store, task_set
from tests.models import CHATML, random_conversations, tiny_tokenizer_folder
from tests.trainer.tiny import rows
from trainer.config import TrainConfig, parse_config
from trainer.data import inputs
from trainer.data.cache import RenderCache
from trainer.data.inputs import Inputs, read_inputs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    lines = [json.dumps({"messages": messages}) for messages in random_conversations(12)]
    path.write_text("\n".join([*lines, '{"messages": []}']) + "\n")
    return path


def read(config: TrainConfig, cache: Path, weights: str = "w") -> Inputs:
    config.out.mkdir(parents=True, exist_ok=True)
    return read_inputs(config, config.out, weights, None, RenderCache(cache))


def same(one: Inputs, other: Inputs) -> bool:
    return one.prepared.table().equals(other.prepared.table()) and (
        one.rows, one.warnings, one.prepared.report(), one.prepared.example_ids
    ) == (other.rows, other.warnings, other.prepared.report(), other.prepared.example_ids)  # fmt: skip


def no_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr(inputs, "prepare", fail)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    cache, prepared = RenderCache(tmp_path / "c"), rows(9)
    prepared.masked, prepared.longest = [4], 77
    prepared.counts.update(safe=3, cut=1)
    cache.save("k", prepared, {"a": 1})
    found = cache.load("k")
    assert found is not None
    assert found[1] == {"a": 1}
    assert found[0].table().equals(prepared.table())
    assert (found[0].masked, found[0].longest, found[0].counts) == ([4], 77, prepared.counts)
    np.testing.assert_array_equal(found[0].classes[3], prepared.classes[3])
    assert cache.load("other") is None
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"k.arrow", "k.json"}


@pytest.mark.parametrize(
    "damaged", ["null", "[]", '"text"', "7", "{}", "", "{", '{"note": null}', '{"note": {}, "note_sha256": null}']
)
def test_a_note_that_is_not_one_is_no_entry(tmp_path: Path, damaged: str) -> None:
    cache = RenderCache(tmp_path)
    cache.save("k", rows(3), {"a": 1})
    (tmp_path / "k.json").write_text(damaged)
    assert cache.load("k") is None
    cache.save("k", rows(3), {"a": 1})
    assert cache.load("k") is not None


def test_a_changed_number_in_the_note_is_no_entry(tmp_path: Path) -> None:
    cache, prepared = RenderCache(tmp_path), rows(3)
    prepared.longest = 77
    cache.save("k", prepared, {})
    note = (tmp_path / "k.json").read_text()
    (tmp_path / "k.json").write_text(note.replace('"longest":77', '"longest":78'))
    assert note.count('"longest":77') == 1
    assert cache.load("k") is None


def test_a_second_run_on_a_file_renders_nothing(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config({"model": llama, "out": tmp_path / "a", "data": data, "on_bad_rows": "drop"})
    first = read(config, tmp_path / "c")
    no_rendering(monkeypatch)
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(data.read_bytes())
    second = read(config.model_copy(update={"out": tmp_path / "b"}), tmp_path / "c")
    assert same(first, second)
    assert second.warnings[0].code == "rows_left_out"
    assert read(config.model_copy(update={"data": moved}), tmp_path / "c").rows["file"] == "moved.jsonl"
    with pytest.raises(AssertionError, match="rendered again"):
        read(config, tmp_path / "empty")


@pytest.mark.parametrize("change", ["max_length", "mask_rule", "classes", "template", "content", "damage"])
def test_whatever_decides_the_rows_renders_them_anew(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    config = parse_config({"model": llama, "out": tmp_path / "a", "data": data, "on_bad_rows": "drop"})
    read(config, tmp_path / "c")
    no_rendering(monkeypatch)
    if change == "max_length":
        config = config.model_copy(update={"max_length": 999})
    elif change == "mask_rule":
        config = config.model_copy(update={"mask_rule": "last"})
    elif change == "classes":
        config = parse_config({**config.model_dump(), "defences": [{"name": "treft"}]})
    elif change == "template":
        other = tiny_tokenizer_folder(tmp_path / "m", CHATML.replace("message['content']", "message['content'] + ' '"))
        config = config.model_copy(update={"model": other})
    elif change == "content":
        data.write_text(data.read_text() + "\n" + json.dumps({"messages": random_conversations(1, seed=5)[0]}))
    else:
        [path] = (tmp_path / "c").glob("*.arrow")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(AssertionError, match="rendered again"):
        read(config, tmp_path / "c")


def test_rows_without_a_trained_token_are_refused_from_the_cache_too(llama: Path, data: Path, tmp_path: Path) -> None:
    late = [{"role": "user", "content": "the quick brown fox " * 60}, {"role": "assistant", "content": "yes"}]
    data.write_text(data.read_text() + json.dumps({"messages": late}) + "\n")
    fields = {
        "model": llama, "out": tmp_path / "a", "data": data, "on_bad_rows": "drop", "allow_masked_rows": True,
        "max_length": 200,
    }  # fmt: skip
    config = parse_config(fields)
    assert read(config, tmp_path / "c").prepared.masked == [12]
    with pytest.raises(BadRowsError, match="have no trained token"):
        read(config.model_copy(update={"allow_masked_rows": False}), tmp_path / "c")


def test_a_second_run_on_a_mix_reads_no_row(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = scored_store(tmp_path / "store", llama)
    mix_id = build_mix(store, task_set(tmp_path / "work", 20), recipe(interleave_ratio=0.2)).mix_id
    fields = {"model": llama, "mix_id": mix_id, "store": str(tmp_path / "store")}
    first = read(parse_config({**fields, "out": tmp_path / "a"}), tmp_path / "c", weights_sha256(llama))
    no_rendering(monkeypatch)
    (tmp_path / "store" / "mixes" / "local" / mix_id / "mix.parquet").unlink()
    second = read(parse_config({**fields, "out": tmp_path / "b"}), tmp_path / "c", weights_sha256(llama))
    assert same(first, second)
    assert first.prepared.report().n_safe == 4
