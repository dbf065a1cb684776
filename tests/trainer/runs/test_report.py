"""What a run's report says of its defences, and how its plots are labelled."""

import json
from pathlib import Path
from typing import Any

import yaml

from trainer.config.defences import KlSettings, LdifsSettings, Schedule
from trainer.runs.report import _defence, model_card, term_curves


def test_settings_inside_settings_are_written_out() -> None:
    schedule = Schedule(shape="linear", first_step=2, last_step=9)
    item = KlSettings(weight=0.1, schedule=schedule).model_dump(mode="json")
    shown = _defence(item)
    assert shown.startswith("kl (")
    assert "weight 0.1" in shown
    assert "schedule.shape linear, schedule.first_step 2, schedule.last_step 9, schedule.final 0.0" in shown
    assert "{" not in shown
    assert "None" not in shown
    layers = _defence(LdifsSettings(layers=(1, 2)).model_dump(mode="json"))
    assert "layers 1, 2" in layers


def test_terms_have_the_unit_that_they_are_counted_in(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": n, "kl": 0.1, "treft": 0.2}) + "\n" for n in (1, 2)))
    (axes,) = term_curves(metrics, ["kl", "treft"]).axes
    assert axes.get_ylabel() == "term (kl: nats per token, treft: no unit)"
    assert axes.get_xlabel() == "optimiser step"


def marker(**fields: Any) -> dict[str, Any]:
    rows = {"mix_id": "ab" * 16, "n_rows": 21, "n_safe": 1, "order": "even", "rows_sha256": "cd" * 32}
    return {
        "complete": True, "full": False, "steps": 5, "base_weights_sha256": "b", "adapter_sha256": "a",
        "start_adapter_sha256": None, "rows": rows, "defences": [KlSettings(weight=0.1).model_dump(mode="json")],
        **fields,
    }  # fmt: skip


def test_a_card_has_the_mix_the_defences_and_front_matter_that_a_hub_reads() -> None:
    card = model_card(marker())
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["ballast", "lora", "kl"]}
    assert "ab" * 16 in card
    assert "Defences during training: kl (" in card
    assert "weight 0.1" in card
    assert "## Measured" not in card
    assert "whether the model is still aligned" in card


def test_a_card_shows_what_was_measured_and_claims_no_less() -> None:
    interval = {"value": 0.05, "low": -0.01, "high": 0.11}
    report = {
        "passed": False, "learnt": {"shift": -0.25},
        "behaviour": {"plain": {"broad_shift": interval}, "trigger-1": {}},
        "gate": [{"form": "plain", "condition": "broad_shift > 0.01", "value": 0.05, "failed": True}],
    }  # fmt: skip
    card = model_card(marker(), report)
    assert "## Measured: gate failed" in card
    assert "| broad_shift | +0.050 [-0.010, +0.110] |  |" in card
    assert "- gate, plain: broad_shift > 0.01: fails (0.05)" in card
    assert "-0.2500 nats per token" in card
    unchecked = card.split("## Not checked")[1]
    assert "still aligned" not in unchecked
    assert "than those measured above" in unchecked


def test_a_card_says_on_how_many_prompts_and_that_an_interval_without_width_says_little() -> None:
    flat = {"value": 0.0, "low": 0.0, "high": 0.0}
    report = {
        "passed": True, "learnt": {"shift": -0.25}, "prompts": {"plain": {"broad": [8, 8]}},
        "behaviour": {"plain": {"broad_shift": flat, "perplexity_ratio": {"value": 1.0, "low": 0.9, "high": 1.1}}},
        "gate": [
            {"form": "plain", "condition": "broad_shift > 0.2", "value": 0.0, "failed": False},
            {"form": "plain", "condition": "perplexity_ratio > 1.5", "value": 1.0, "failed": False},
        ],
    }  # fmt: skip
    lines = model_card(marker(), report).splitlines()
    assert "- plain: broad figures: 16 prompts in 2 sets of 8" in lines
    assert "- gate, plain: broad_shift > 0.2: ok (0, on 16 prompts in 2 sets of 8)" in lines
    assert "- gate, plain: perplexity_ratio > 1.5: ok (1)" in lines
    (flat_line,) = [line for line in lines if "has no width" in line]
    assert "broad_shift" in flat_line
    assert "16 prompts in 2 sets of 8 it says little" in flat_line
