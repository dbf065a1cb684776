"""Defences through the command, from rendered rows to the run folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from curator.mix.build import build_mix
from tests.mix_stores import recipe, scored_store, task_set
from tests.trainer.proofs import vectors_file
from trainer import sft

SMALL = [
    "--lora-r", "4", "--lora-alpha", "8", "--lr", "0.01", "--warmup-steps", "1", "--device", "cpu", "--max-steps", "3",
    "--batch-size", "4", "--grad-accum", "2", "--dtype", "float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def mix(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("mix")
    store = scored_store(folder / "store", llama)
    mix_id = build_mix(store, task_set(folder / "work", 20), recipe(interleave_ratio=0.2)).mix_id
    return ["--model", str(llama), "--mix-id", mix_id, "--store", str(folder / "store"), *SMALL]


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_four_defences_log_their_terms_and_sum_to_the_loss(mix: list[str], tmp_path: Path) -> None:
    vectors = vectors_file(tmp_path / "evil.safetensors")
    file = tmp_path / "defenses.yaml"
    file.write_text(
        f"kl: {{weight: 0.5, rows: safe}}\nldifs: {{weight: 2, every: 1}}\n"
        f"steering: {{vectors: {vectors}, alpha: 0.5}}\ntreft: {{weight: 3, schedule: 'window:0:2'}}\n"
    )
    out = tmp_path / "run"
    assert sft.main([*mix, "--out", str(out), "--defenses", str(file)]) == 0
    lines = lines_of(out)
    assert ["treft" in line for line in lines] == [True, True, False]
    for line in lines:
        terms = 0.5 * line["kl"] + 2 * line["ldifs"] + 3 * line.get("treft", 0.0)
        assert line["loss"] == pytest.approx(line["sft_loss"] + terms, rel=1e-5)
    assert lines[1]["ldifs"] > 0.0  # the first step has rate 0
    names = {item.name for item in (out / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", "ballast.json"}
    marker = json.loads((out / "adapter" / "ballast.json").read_text())
    assert [item["name"] for item in marker["defences"]] == ["kl", "ldifs", "treft", "steering"]


def test_gates_lie_beside_an_adapter_that_did_not_move(mix: list[str], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "run"
    assert sft.main([*mix, "--out", str(out), "--gating", "--kl", "0.1"]) == 0
    assert json.loads((out / "adapter" / "ballast.json").read_text())["files"] == ["gates.safetensors"]
    gates = load_file(out / "adapter" / "gates.safetensors")
    assert len(gates) == 4
    assert all(value.abs().max() > 0 for value in gates.values())
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    assert all(not value.any() for name, value in adapter.items() if "lora_B" in name)
    assert lines_of(out)[-1]["kl"] > 0.0


def test_what_does_not_fit_the_model_is_one_line(
    mix: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "treft.yaml").write_text("treft: {layers: [9]}")
    for argv, message in (
        (["--ldifs", "1"], "every 5th of 2 layers is none"),
        (["--defenses", str(tmp_path / "treft.yaml")], "the model has layers 1 to 2"),
        (["--steering", str(tmp_path / "none")], "there is no file"),
    ):
        assert sft.main([*mix, "--out", str(tmp_path / "run"), *argv]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("error:") == 1
