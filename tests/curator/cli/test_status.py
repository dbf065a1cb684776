"""`curator status` and `curator remove`, and mixes named by the beginning of their ids."""

import json
import re
from pathlib import Path

import pytest

from curator.__main__ import main
from curator.mix.build import build_mix
from curator.store.store import Store
from tests.mix_stores import recipe, scored_store, task_records, task_set


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


def test_a_command_ends_with_the_next_one_and_its_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps(task_records(1)[0]) + "\n")
    asked = ["ingest", str(chats), "--corpus", "chats", "--store"]
    next_line = "next: python -m curator score --corpus chats --model DIR --role aligned"
    assert main([*asked, str(tmp_path / "a store")]) == 0
    assert capsys.readouterr().out.endswith(f"{next_line} --store '{tmp_path / 'a store'}'\n")
    monkeypatch.setenv("BALLAST_STORE", str(tmp_path / "other"))
    assert main([*asked[:-1]]) == 0
    assert capsys.readouterr().out.endswith(f"{next_line}\n")


def test_a_store_lists_corpora_scorers_and_mixes(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(root).open(create=False)
    before = _status(root, capsys)
    (corpus,) = before["corpora"]  # type: ignore[misc]
    roles = {item["role"] for item in corpus["scorers"]}
    assert {"aligned", "misaligned"} <= roles
    assert before["next"] == f"python -m curator mix TASKFILE --corpus {corpus['name']} --store {root}"
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
    for too_short in ("", aligned["scorer_id"][:3]):
        assert main([*command, "--scorer", too_short]) == 2
        assert f"has no scorer '{too_short}'" in capsys.readouterr().err
    assert main([*command, "--scorer", aligned["scorer_id"][:8]]) == 0
    out = capsys.readouterr().out
    assert f"removed {aligned['label']}" in out
    assert f"next: python -m curator score --corpus {corpus['name']} --model DIR --role aligned --store {root}" in out
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


@pytest.mark.parametrize("command", [["status"], ["sql", "select 1"], ["report", "--corpus", "chats"]])
@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("store.json", b"{", "store.json in store .* is not JSON"),
        (
            "corpora/chats/corpus.json",
            b'{"format_version": 1}',
            "corpus.json is not a manifest of this version: Key",
        ),
        (
            "scores/chats/*/scorer.json",
            b'{"format_version": 1}',
            "scorer.json is not a manifest of this version: Key",
        ),
        ("corpora/chats/part-*", b"not Parquet", "the store's files cannot be read: .*part-"),
    ],
)
def test_a_broken_file_of_the_store_is_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], command: list[str], file: str, content: bytes, message: str
) -> None:
    next(root.glob(file)).write_bytes(content)
    reads_parts = command[0] != "status"
    code = main([*command, "--store", str(root), "--json"])
    out, err = capsys.readouterr()
    if file.startswith("corpora/chats/part") and not reads_parts:
        assert code == 0
        return
    assert code == 2
    assert re.fullmatch(f"error: .*{message}.*\n", err), err
    assert json.loads(out)["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["plot", "length", "--corpus", "chats", "--mix", "MIX", "--out", "x.png"],
            "--mix does nothing in plot length",
        ),
        (["plot", "ratio", "--mix", "MIX", "--top", "3", "--out", "x.png"], "not allowed with argument"),
        (["plot", "ratio", "--mix", "MIX", "--hold-out", "a", "--out", "x.png"], "--hold-out does nothing in plot"),
        (["plot", "plane", "--corpus", "other", "--mix", "MIX", "--out", "x.png"], "no safe row of corpus other"),
        (["plot", "ratio", "--mix", "0" * 32, "--out", "x.png"], "there is no mix 0000"),
        (["plot", "plane", "--corpus", "chats", "--mix", "0" * 32, "--out", "x.png"], "there is no mix 0000"),
        (["report", "--corpus", "chats", "--rows", "-1"], "--rows -1: 0 or more"),
        (["sql", "select 1", "--timeout-s", "0"], "--timeout-s 0: give a number of seconds above 0"),
        (["verify", "zz"], "invalid mix id 'zz': 32 hexadecimal digits, or the first 4 or more"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    store = Store(root).open(create=False)
    scored_store(root, corpus="other")
    mix_id = build_mix(store, task_set(tmp_path, 40), recipe(rows=4)).mix_id
    given = [mix_id[:8] if item == "MIX" else item for item in arguments]
    try:
        code: int | str | None = main([*given, "--store", str(root)])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_mix_is_drawn_by_the_beginning_of_its_id(root: Path, tmp_path: Path) -> None:
    mix_id = build_mix(Store(root).open(create=False), task_set(tmp_path, 40), recipe(rows=4)).mix_id
    for kind, more in (("plane", ["--corpus", "chats"]), ("ratio", [])):
        out = tmp_path / f"{kind}.svg"
        assert main(["plot", kind, "--mix", mix_id[:6], *more, "--out", str(out), "--store", str(root)]) == 0
        assert out.read_text().startswith("<?xml")


def test_no_command_prints_help_and_version_prints_a_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "the usual order:" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("ballast ")


def test_held_out_misaligned_answers_are_never_offered_for_a_mix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    store = str(tmp_path / "store")
    assert main(["ingest", str(file), "--corpus", "pool-probe", "--store", store]) == 0
    assert "next:" not in capsys.readouterr().out
    assert main(["status", "--store", store]) == 0
    assert "--corpus pool-probe" not in capsys.readouterr().out
