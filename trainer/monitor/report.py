"""The monitor's files, checked before a run, and its part of the run's report. Torch loads only with the files."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer.config.monitor import MonitorSettings

if TYPE_CHECKING:
    from trainer.monitor.alarm import Predictor, ZScore
    from trainer.monitor.directions import Directions

FIELD = "monitor"  # in a line of metrics.jsonl and in report.json


def rule_of(settings: MonitorSettings, directions: "Directions") -> "Predictor | ZScore | None":
    """The alarm rule, or None when nothing is judged; raises BadInputError when it belongs to other directions."""
    from trainer.monitor.alarm import read_rule

    return None if settings.alarm is None else read_rule(settings.alarm, directions.directions_id)


def check_files(settings: MonitorSettings, weights_sha256: str, renderer_id: str | None) -> None:
    """Raise MissingError or BadInputError for files that are absent or another model's, before a model is loaded.

    `renderer_id` None: it is not known yet, and not compared.
    """
    from trainer.monitor.directions import load_directions

    rule_of(settings, load_directions(settings.directions, weights_sha256, renderer_id))


def monitor_section(settings: MonitorSettings, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The monitor's part of report.json: which directions and rule, every measurement, the first alarm."""
    from trainer.monitor.directions import load_directions

    directions = load_directions(settings.directions)
    rule = rule_of(settings, directions)
    measured = [{"step": line["step"], **line[FIELD]} for line in lines if FIELD in line]
    alarms = [item["step"] for item in measured if item.get("alarm")]
    return {
        "directions_id": directions.directions_id,
        "traits": list(directions.traits),
        "layer": directions.layer,
        "rule": "none: nothing is judged" if rule is None else rule.describe(),
        "first_alarm": alarms[0] if alarms else None,
        "measurements": measured,
    }
