"""Folders that the real `datasets` saved, and hub ids against a cache, offline."""

import json
from pathlib import Path

import datasets
import pytest

from curator.corpus.formats import Row, locate, read_rows
from curator.errors import BadInputError

RECORDS = [{"prompt": f"q{number}", "completion": "a"} for number in range(5)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds the data set org/demo, as an earlier download leaves it."""
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = tmp_path / "org" / "demo"
    source.mkdir(parents=True)
    (source / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    datasets.load_dataset(str(source), cache_dir=str(tmp_path / "cache"))
    (tmp_path / "cache" / "demo").rename(tmp_path / "cache" / "org___demo")
    monkeypatch.chdir(tmp_path / "cache")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["org/demo", "org/demo:train", "hf://org/demo", "hf://datasets/org/demo/default:train"]
)
def test_a_cached_hub_data_set_is_read_offline(name: str, cache: Path) -> None:
    rows = list(read_rows(name))
    assert [row.messages[0]["content"] for row in rows if isinstance(row, Row)] == ["q0", "q1", "q2", "q3", "q4"]
    assert locate(name).name == ("org/demo/default:train" if "default" in name else "org/demo:train")


def test_what_the_cache_lacks_is_said(cache: Path) -> None:
    with pytest.raises(BadInputError, match=r"data set org/none of the Hugging Face hub cannot be loaded: .*Offline"):
        locate("org/none")
    with pytest.raises(BadInputError, match="Unknown split"):
        locate("org/demo:test")


def test_saved_folders_of_every_shape(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list(RECORDS)
    made.save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict(train=made.select([4, 0]), test=made).save_to_disk(str(tmp_path / "two"))
    assert len(list(read_rows(tmp_path / "one"))) == 5
    rows = list(read_rows(str(tmp_path / "two" / "train")))
    assert [row.messages[0]["content"] for row in rows if isinstance(row, Row)] == ["q4", "q0"]
    assert locate(tmp_path / "two" / "train").name == "two/train"
    with pytest.raises(BadInputError, match="has the splits train, test"):
        list(read_rows(tmp_path / "two"))
