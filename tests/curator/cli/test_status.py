"""`curator status` and `curator remove`, and mixes named by the beginning of their ids."""

import json
from pathlib import Path

import pytest

from curator.__main__ import main
from curator.mix.build import build_mix
from curator.store.store import Store
from tests.mix_stores import recipe, scored_store, task_set


@pytest.fixture
def root(tmp_path: Path) -> Path:
    scored_store(tmp_path / "store")
    return tmp_path / "store"


def _status(root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["status", "--store", str(root), "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_an_empty_store_is_told_to_ingest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path / "store").open()
    assert main(["status", "--store", str(tmp_path / "store")]) == 0
    assert "next: python -m curator ingest FILES --corpus NAME" in capsys.readouterr().out


def test_a_store_lists_corpora_scorers_and_mixes(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(root).open(create=False)
    before = _status(root, capsys)
    (corpus,) = before["corpora"]  # type: ignore[misc]
    roles = {item["role"] for item in corpus["scorers"]}
    assert {"aligned", "misaligned"} <= roles
    assert before["next"] == f"python -m curator mix TASKFILE --corpus {corpus['name']}"
    mix_id = build_mix(store, task_set(tmp_path, 40), recipe(rows=4)).mix_id
    after = _status(root, capsys)
    assert after["mixes"] == {"local": [mix_id]}
    assert str(after["next"]).startswith("python -m trainer.sft --mix-id")
    assert main(["status", "--store", str(root)]) == 0
    assert f"1 mix of tenant local: {mix_id[:12]}" in capsys.readouterr().out


def test_a_removed_scorer_is_gone_and_status_asks_for_another(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus,) = _status(root, capsys)["corpora"]  # type: ignore[misc]
    aligned = next(item for item in corpus["scorers"] if item["role"] == "aligned")
    command = ["remove", "--store", str(root), "--corpus", corpus["name"]]
    assert main([*command, "--scorer", "nosuch"]) == 2
    assert f"has no scorer 'nosuch'; there are: {aligned['label']}" in capsys.readouterr().err.replace("  ", " ")
    assert main([*command, "--scorer", aligned["scorer_id"][:8]]) == 0
    assert f"removed {aligned['label']}" in capsys.readouterr().out
    found = _status(root, capsys)
    assert "--role aligned" in str(found["next"])
    assert not (root / "scores" / corpus["name"] / aligned["scorer_id"]).exists()


def test_mixes_are_named_by_the_beginning_of_their_ids(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(root).open(create=False)
    mix_id = build_mix(store, task_set(tmp_path, 40), recipe(rows=4)).mix_id
    assert main(["verify", mix_id[:6], "--store", str(root)]) == 0
    assert f"mix {mix_id} is what its manifest says" in capsys.readouterr().out
    other = "0000" if not mix_id.startswith("0000") else "1111"
    assert main(["verify", other, "--store", str(root)]) == 2
    assert f"no mix of tenant local begins with '{other}'" in capsys.readouterr().err
    twin = root / "mixes" / "local" / (mix_id[:6] + "0" * 26)
    twin.mkdir()
    assert main(["snippet", mix_id[:6], "trl", "--store", str(root)]) == 2
    assert "begins 2 mix ids" in capsys.readouterr().err


def test_no_command_prints_help_and_version_prints_a_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "the usual order:" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("ballast ")
