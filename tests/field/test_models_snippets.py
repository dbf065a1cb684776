"""Settings for other trainers: they run on templates without marks, and never cut or drop a row."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from curator.mix.build import build_mix
from curator.mix.snippets import KINDS, SnippetKind, write_snippet
from curator.render import Renderer
from tests.mix_stores import recipe, scored_store, task_records, task_set
from tests.models import tiny_model_folder

MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def made(tmp_path: Path, kind: SnippetKind, *, several: bool = False, long: bool = False) -> Path:
    records = task_records(20)
    ask = {"role": "user", "content": "東京は" * (3000 if long else 1)}
    if several:
        records[3]["messages"] = [ask, {"role": "assistant", "content": "one"}, *records[3]["messages"]]
    else:
        records[3]["messages"] = [ask, {"role": "assistant", "content": "an answer"}]
    store = scored_store(tmp_path / "store")
    mix_id = build_mix(store, task_set(tmp_path, records=records), recipe(rows=2)).mix_id
    write_snippet(store, "local", mix_id, kind, tmp_path / "out")
    return tmp_path / "out"


def trained(script: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The trainer of a script that ran in a folder of its own, with one step."""
    import trl

    monkeypatch.chdir(script.parent)
    options = {"use_cpu": True, "report_to": "none", "max_steps": 1, "disable_tqdm": True, "save_strategy": "no"}
    original = trl.SFTConfig
    monkeypatch.setattr(trl, "SFTConfig", lambda **given: original(**given, **options))
    script.write_text(script.read_text().replace("YOUR_MODEL", str(model)))
    return runpy.run_path(str(script))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("template", [None, MARKED])
def test_the_trl_script_trains_with_and_without_marks(
    several: bool, template: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options = {} if template is None else {"template": template}
    model = tiny_model_folder(tmp_path / "model", **options)  # ChatML without marks, as SmolLM2 has it
    found = trained(made(tmp_path, "trl", several=several) / "train_trl.py", model, monkeypatch)
    rows = found["trainer"].train_dataset
    lines = [json.loads(line)["messages"] for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == len(lines)
    tokenizer = found["trainer"].processing_class
    for row, messages in zip(rows, lines, strict=True):
        assert tokenizer.decode(row["input_ids"]).count("<|im_start|>") == len(messages)
        labels = row.get("completion_mask") or row.get("assistant_masks")
        if labels is not None:
            learnt = tokenizer.decode([i for i, kept in zip(row["input_ids"], labels, strict=True) if kept])
            assert learnt.replace("<|im_end|>", "").split() == " ".join(
                message["content"] for message in messages if message["role"] == "assistant"
            ).split()  # fmt: skip
    said = "questions are trained too" in capsys.readouterr().out
    assert said == (several and template is None)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "datasets"])  # which cuts nothing
def test_lengths_hold_the_longest_row_whatever_the_tokenizer(kind: SnippetKind, tmp_path: Path) -> None:
    out = made(tmp_path, kind, long=True)
    renderer = Renderer.from_folder(tiny_model_folder(tmp_path / "model"))
    lines = [json.loads(line)["messages"] for line in (out / "train.jsonl").read_text().splitlines()]
    longest = max(renderer.render(messages).n_tokens for messages in lines)
    assert longest > 4096
    if kind == "axolotl":
        document = yaml.safe_load((out / "axolotl.yaml").read_text())
        assert document["sequence_len"] >= longest
        assert document["excess_length_strategy"] == "raise"
    elif kind == "llamafactory":
        assert yaml.safe_load((out / "llamafactory.yaml").read_text())["cutoff_len"] >= longest
    elif kind == "trl":
        assert "max_length=None" in (out / "train_trl.py").read_text()
    else:
        assert 'LENGTH = max(map(len, data["input_ids"]))' in (out / "train_unsloth.py").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_no_path_of_this_machine_is_in_a_folder(kind: SnippetKind, tmp_path: Path) -> None:
    out = made(tmp_path, kind)
    for path in out.iterdir():
        assert str(tmp_path) not in path.read_text()
    assert any("train.jsonl" in path.read_text() for path in out.iterdir() if path.name != "train.jsonl")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("several", [False, True])
def test_the_unsloth_script_trains_answers_alone(
    several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """unsloth needs a GPU: here its two calls are transformers' own, and the rest of the script runs as it is."""
    import sys
    from types import ModuleType

    from transformers import AutoModelForCausalLM, AutoTokenizer

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(name: str, max_seq_length: int) -> tuple[Any, Any]:
            windows.append(max_seq_length)
            return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)

        @staticmethod
        def get_peft_model(model: Any) -> Any:
            return model

    windows: list[int] = []
    module = ModuleType("unsloth")
    module.FastLanguageModel = FastLanguageModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unsloth", module)
    model = tiny_model_folder(tmp_path / "model")
    found = trained(made(tmp_path, "unsloth", several=several) / "train_unsloth.py", model, monkeypatch)
    lines = [json.loads(line)["messages"] for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    renderer, rows = Renderer.from_folder(model), found["trainer"].train_dataset
    assert len(rows) == len(lines)
    assert windows == [max(renderer.render(messages).n_tokens for messages in lines)]
    for row, messages in zip(rows, lines, strict=True):
        rendered = renderer.render(messages)
        assert row["input_ids"] == rendered.input_ids.tolist()
        learnt = [label != -100 for label in row["labels"]]
        assert all(learnt[place] for place in rendered.response_mask.nonzero()[0])
