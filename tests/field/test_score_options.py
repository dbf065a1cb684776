"""`score` with templates that write a date or leave out a part: options by name, counts, and exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

from curator.__main__ import main
from curator.messages import dump_messages
from curator.mix.token_counter import TokenCounter
from curator.render import Renderer, RenderSettings
from curator.store.store import Store
from tests.field.fields import INPUTS, kept, template
from tests.models import tiny_model_folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store")
    for name in ("think_in_content", "tool_turn_dropped"):
        assert main(["ingest", str(INPUTS / f"{name}.jsonl"), "--corpus", name, "--store", str(path)]) == 0
    return path


def _score(store: Path, model: Path, corpus: str, capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    capsys.readouterr()
    code = main(
        [
            "score",
            "--corpus",
            corpus,
            "--model",
            str(model),
            "--role",
            "aligned",
            "--store",
            str(store),
            "--json",
            *options,
        ]
    )
    out, err = capsys.readouterr()
    return json.loads(out) if code == 0 else (code, err)


def test_a_template_that_asks_for_the_date_is_scored_on_the_day_that_is_set(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model_folder(tmp_path / "model", template=template("date_unguarded"))
    own = _score(store, model, "think_in_content", capsys)
    assert own["status_counts"] == {"scored": 2}
    set_to = _score(store, model, "think_in_content", capsys, "--template-date", "2031-02-03")
    assert set_to["scorer_id"] != own["scorer_id"]
    manifest = Store(store).open().read_json(f"scores/think_in_content/{set_to['scorer_id']}/scorer.json")
    kept = Renderer.from_store(Store(store).open(), manifest["renderer_id"])
    assert kept.settings.document() == {"template_date": "2031-02-03"}
    code, err = _score(store, model, "think_in_content", capsys, "--template-date", "3.2.2031")
    assert code == 2
    assert "give a day as YYYY-MM-DD" in err


@pytest.mark.parametrize(
    ("corpus", "name", "parts", "n_rows"),
    [
        ("think_in_content", "reasoning_cut", {"reasoning": 2}, 2),
        ("tool_turn_dropped", "drops_other_roles", {"content": 1, "tool_calls": 1}, 1),
    ],
)
def test_what_is_left_out_fails_until_it_is_accepted_and_is_counted(
    corpus: str,
    name: str,
    parts: dict[str, int],
    n_rows: int,
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    added = ("<｜User｜>", "<｜Assistant｜>")
    model = tiny_model_folder(tmp_path / "model", template=template(name), bos="<|endoftext|>", added=added)
    code, err = _score(store, model, corpus, capsys)
    assert code == 2
    assert f"none of the {n_rows} rows" in err
    assert f"leaves out the {max(parts)} of messages[1]" in err
    accepted = [word for part in parts for word in ("--accept-dropped", part)]
    report = _score(store, model, corpus, capsys, *accepted)
    assert report["status_counts"] == {"scored": n_rows}
    assert report["dropped"] == parts
    assert _score(store, model, corpus, capsys, *accepted)["dropped"] == parts  # complete before
    counter = TokenCounter(
        Renderer.from_folder(model, settings=RenderSettings.parse(accept_dropped=list(parts))), "all"
    )
    texts = [dump_messages(messages) for messages in kept(f"{corpus}.jsonl")]
    counter.add(["task"] * len(texts), texts)
    assert counter.count("task").model_dump(mode="json")["dropped"] == parts
    assert "dropped" not in counter.count("safe").model_dump(mode="json")  # receipts without any stay as they were
