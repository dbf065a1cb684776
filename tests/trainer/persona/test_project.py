"""What is done with a vector: a data set screened, an adapter's drift measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator.render import Renderer
from tests.models import random_conversations, tiny_adapter_folder, tiny_model_folder
from tests.trainer.persona.personas import plain_hidden
from trainer.persona.__main__ import main
from trainer.persona.activations import (
    Pooled,
    answer_of,
    pooled_states,
    prompt_ids,
)
from trainer.persona.models import load_base


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows = [json.dumps({"messages": item}) for item in random_conversations(5, seed=3, max_turns=1)]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_screening_projects_mean_response_states(
    extracted: Path, llama: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load_file

    rows_out, twin = tmp_path / "rows.jsonl", tmp_path / "twin.jsonl"
    lines = [json.loads(line) for line in chats.read_text().splitlines()]
    for line in lines:
        line["messages"][-1]["content"] = "Paris, of course."
    twin.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["project", "--model", str(llama), "--vector", str(extracted / "gruff.safetensors"), "--layer", "1"]
    arguments += ["--data", str(chats), "--baseline", str(twin), "--rows-out", str(rows_out), "--dtype", "float32"]
    assert main([*arguments, "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    model, renderer = load_base(llama, "cpu", "float32"), Renderer.from_folder(llama)
    vector = load_file(extracted / "gruff.safetensors")["gruff"][1].astype(float)

    def projected(messages: Any) -> float:
        item = answer_of(renderer, messages)
        state = plain_hidden(model, item.ids_T)[1].double().numpy()[item.taken_T].mean(0)
        return float(state @ vector / np.linalg.norm(vector))

    expected = [projected(json.loads(line)["messages"]) for line in chats.read_text().splitlines()]
    own = [projected(line["messages"]) for line in lines]
    records = [json.loads(line) for line in rows_out.read_text().splitlines()]
    np.testing.assert_allclose([record["projection"] for record in records], expected, atol=1e-4)
    np.testing.assert_allclose([record["difference"] for record in records], np.subtract(expected, own), atol=1e-4)
    assert result["difference"]["mean"] == pytest.approx(np.mean(np.subtract(expected, own)), abs=1e-4)
    assert result["highest"][0]["record"] == int(np.argmax(np.subtract(expected, own))) + 1
    lines[2]["messages"][-2]["content"] = "another prompt"
    twin.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(arguments) == 2
    assert "record 3: the prompts of data and baseline differ" in capsys.readouterr().err


def test_the_drift_of_an_adapter_and_the_page(
    extracted: Path, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel
    from safetensors.numpy import load_file

    adapter = tiny_adapter_folder(llama, tmp_path / "mine" / "adapter", seed=3)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is the capital of France?\n\nPlease keep the door closed.\n")
    out = tmp_path / "vectors" / "shift.json"
    arguments = ["shift", "--model", str(llama), "--vector", str(extracted / "gruff.safetensors"), "--layer", "2"]
    arguments += ["--adapter", str(adapter), "--prompts", str(prompts), "--dtype", "float32", "--device", "cpu"]
    assert main([*arguments, "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    vector = load_file(extracted / "gruff.safetensors")["gruff"].astype(float)
    renderer = Renderer.from_folder(llama)
    states = []
    for folder in (adapter, None):
        model = load_base(llama, "cpu", "float32")
        if folder is not None:
            model = PeftModel.from_pretrained(model, folder).eval()
        rows = []
        for text in ("What is the capital of France?", "Please keep the door closed."):
            ids = prompt_ids(renderer, [{"role": "user", "content": text}])
            rows.append(pooled_states(model, [Pooled(ids, np.arange(len(ids)) == len(ids) - 1)])[0])
        states.append(np.array(rows))
    moved = (states[0] - states[1]).mean(0)
    assert result["shift"]["value"] == pytest.approx(moved[2] @ vector[2] / np.linalg.norm(vector[2]), abs=1e-5)
    assert result["shift"]["value"] != 0.0
    assert result["by_layer"]["0"] == 0.0  # the embeddings are not adapted
    assert result["n_prompts"] == 2
    (out.parent / "gruff.json").write_bytes((extracted / "gruff.json").read_bytes())
    assert main(["page", "--folder", str(out.parent), "--out", str(tmp_path / "page.md")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert f"| gruff | 2 | mine | 2 (prompts.txt) | {result['shift']['value']:+.4f}" in page
    assert "of 6 |" in page


def test_a_vector_of_other_weights_is_refused(
    extracted: Path, tmp_path: Path, chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_model_folder(tmp_path / "other", seed=9)
    arguments = ["--model", str(other), "--vector", str(extracted / "gruff.safetensors"), "--data", str(chats)]
    assert main(["project", *arguments]) == 2
    assert "was made for the model with weights" in capsys.readouterr().err


def test_a_baseline_of_other_records_says_what_each_side_has(
    extracted: Path, llama: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = chats.read_text().splitlines()
    data, baseline = tmp_path / "data.jsonl", tmp_path / "baseline.jsonl"
    data.write_text(first + "\n")
    baseline.write_text("\n".join(['{"messages": []}', *others]) + "\n")
    arguments = ["--model", str(llama), "--vector", str(extracted / "gruff.safetensors"), "--dtype", "float32"]
    arguments += ["--device", "cpu", "--data", str(data), "--baseline", str(baseline), "--on-bad-rows", "drop"]
    assert main(["project", *arguments]) == 2
    error = capsys.readouterr().err
    assert "data (1 rows, records 1) and baseline (4 rows, records 2, 3, 4, ...) share no record" in error
    assert "the baseline must hold the same prompts in the same order" in error
