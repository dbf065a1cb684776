"""What a run's report says of its defences, and how its plots are labelled."""

import json
from pathlib import Path

from trainer.config.defences import KlSettings, LdifsSettings, Schedule
from trainer.runs.report import _defence, term_curves


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
