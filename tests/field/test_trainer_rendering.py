"""The trainer renders as the scorer did: the day that a template writes, and parts that it leaves out, counted."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from curator.__main__ import main
from curator.render import Renderer, RenderSettings
from tests.field.fields import INPUTS, template
from tests.mix_stores import task_records
from tests.models import tiny_model_folder
from tests.trainer.sftruns import SMALL, document
from trainer import sft

THOUGHTS = INPUTS / "think_in_content.jsonl"  # two rows whose answers open with a thought
DAY, PART = ["--template-date", "2031-02-03"], ["--accept-dropped", "reasoning"]
_CUTS = """
{{- '<|im_start|>' + m.role + '\\n' + (m.content.split('</think>')[-1] if m.role == 'assistant' else m.content)
 + '<|im_end|>\\n' }}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A template that writes today's date and leaves out thoughts."""
    dated = template("date_unguarded")
    turn = "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    assert turn in dated
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "m", template=dated.replace(turn, _CUTS))


def _sft(model: Path, out: Path, *more: str) -> int:
    return sft.main(["--model", str(model), "--out", str(out), "--max-steps", "1", *SMALL, *more])


def _renderer(model: Path) -> Renderer:
    return Renderer.from_folder(model, settings=RenderSettings.parse("2031-02-03", ["reasoning"]))


def test_a_file_is_trained_as_the_options_say_and_what_is_left_out_is_counted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _sft(model, tmp_path / "no", "--data", str(THOUGHTS)) == 2
    assert "accept_dropped reasoning" in capsys.readouterr().err
    assert _sft(model, tmp_path / "bad", "--data", str(THOUGHTS), "--template-date", "3.2.2031") == 2
    assert "give a day as YYYY-MM-DD" in capsys.readouterr().err
    out = tmp_path / "run"
    assert _sft(model, out, "--data", str(THOUGHTS), *DAY, *PART) == 0
    said = capsys.readouterr()
    assert "left out by the chat template: reasoning of 2 rows" in said.out
    assert "warning: the chat template leaves out parts of messages, as accepted" in said.err
    record, report = document(out / "config.json"), document(out / "report.json")
    assert record["renderer"]["renderer_id"] == _renderer(model).renderer_id
    assert record["renderer"]["settings"] == {"template_date": "2031-02-03", "accept_dropped": ["reasoning"]}
    assert report["content"]["dropped"] == {"reasoning": 2}
    assert "Left out by the chat template, as accepted: reasoning of 2 rows." in (out / "report.md").read_text()
    assert _sft(model, out, "--data", str(THOUGHTS), *PART) == 2  # of another day: another run
    assert "template_date" in capsys.readouterr().err


@pytest.fixture(scope="module")
def mixed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store whose corpus was scored on a day, without its thoughts; and a mix of it."""
    folder = tmp_path_factory.mktemp("mix")
    store, task = folder / "store", folder / "task.jsonl"
    task.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in task_records(4)))
    pool = folder / "pool.jsonl"
    pool.write_bytes(THOUGHTS.read_bytes())
    assert main(["ingest", str(pool), "--corpus", "chats", "--store", str(store)]) == 0
    bad = tiny_model_folder(folder / "bad", seed=1, template=(model / "chat_template.jinja").read_text())
    for scored, role in ((model, ["aligned"]), (bad, ["misaligned", "--domain", "x"])):
        scorer = ["--corpus", "chats", "--store", str(store), "--model", str(scored), "--role", *role]
        assert main(["score", *scorer, *DAY, *PART]) == 0
    recipe = folder / "recipe.json"
    pools = [{"corpus": "chats", "filters": [], "rows": 2}]
    recipe.write_text(json.dumps({"pools": pools}))
    assert main(["mix", str(task), "--recipe", str(recipe), "--store", str(store)]) == 0
    (mix_id,) = [path.name for path in (store / "mixes" / "local").iterdir() if not path.name.startswith(".")]
    return store, mix_id


def test_a_mix_is_trained_as_its_aligned_scorer_rendered_it(
    mixed: tuple[Path, str], model: Path, tmp_path: Path
) -> None:
    store, mix_id = mixed
    manifest: Any = document(store / "mixes" / "local" / mix_id / "manifest.json")
    assert manifest["tokens"]["render_settings"] == {"template_date": "2031-02-03", "accept_dropped": ["reasoning"]}
    source = ["--mix-id", mix_id, "--store", str(store)]
    assert _sft(model, tmp_path / "run", *source) == 0
    record, report = document(tmp_path / "run" / "config.json"), document(tmp_path / "run" / "report.json")
    assert record["renderer"]["renderer_id"] == manifest["tokens"]["renderer_id"] == _renderer(model).renderer_id
    assert report["content"]["dropped"] == {"reasoning": 2}
    assert report["content"]["n_tokens"] == sum(manifest["tokens"][side]["total"] for side in ("task", "safe"))
    assert "other_renderer_than_scored" not in [item["code"] for item in report["warnings"]]


def test_an_option_takes_the_place_of_the_mixs_own_and_that_is_said(
    mixed: tuple[Path, str], model: Path, tmp_path: Path
) -> None:
    store, mix_id = mixed
    out = tmp_path / "run"
    assert _sft(model, out, "--mix-id", mix_id, "--store", str(store), "--template-date", "2020-01-01") == 0
    record = document(out / "config.json")
    assert record["renderer"]["settings"] == {"template_date": "2020-01-01", "accept_dropped": ["reasoning"]}
    assert "other_renderer_than_scored" in [item["code"] for item in record["warnings"]]
