"""Drift of finished adapters, and alarm rules from measurements that lie on disk."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from curator.console import Progress
from curator.errors import BadInputError, MissingError
from trainer.config.data import loading_of
from trainer.monitor.alarm import (
    Predictor,
    ZScore,
    fit_predictor,
    fit_zscore,
    read_rule,
)
from trainer.monitor.directions import load_directions, neutral_prompts
from trainer.monitor.probe import PrefixProbe, TraitProbe
from trainer.persona.extract import open_model
from trainer.persona.models import load_base, with_adapter
from trainer.runs.folder import REPORT, write_json


def named_adapters(adapters: Sequence[Path], organisms: Path | None, model: Path) -> dict[str, Path]:
    """Adapter folders by a name of their own; raises BadInputError when there is none, or two of one name."""
    found = [(_name(path), path) for path in adapters]
    if organisms is not None:
        from curator.scoring.organisms import read_organisms

        found += [(item.name, organisms / item.adapter) for item in read_organisms(organisms, model).organisms]
    if not found:
        raise BadInputError("nothing to measure: give --adapter DIR or --organisms DIR")
    twice = sorted({name for name, _ in found if [other for other, _ in found].count(name) > 1})
    if twice:
        raise BadInputError(f"several adapters are called {', '.join(twice)}: rename their folders")
    return dict(found)


def _name(adapter: Path) -> str:
    path = adapter.resolve()
    return path.parent.name if path.name == "adapter" else path.name


def measure_adapters(args: argparse.Namespace, adapters: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """By name, in the form of the monitor's part of report.json; written to `args.out` as well."""
    how = loading_of(args)
    loaded = open_model(args.model, how.rendering)
    directions = load_directions(args.directions, loaded.weights_sha256, loaded.renderer.renderer_id)
    rule = None if args.alarm is None else read_rule(args.alarm, directions.directions_id)
    found: dict[str, dict[str, Any]] = {}
    with Progress(len(adapters), "adapters", "measuring drift") as progress:
        for name, path in adapters.items():
            # A fresh base for each: PEFT changes the modules of the model that it is given.
            model = with_adapter(load_base(args.model, how.device, how.dtype), path)
            prompts = neutral_prompts()
            drift_K = TraitProbe(model, loaded.renderer, directions, prompts).drift(model)
            measured = {
                "drift": dict(zip(directions.traits, drift_K.tolist(), strict=True)),
                "prefix_kv": PrefixProbe(model, loaded.renderer, prompts[0]).drift(model),
                **(rule.judge(drift_K) if rule is not None else {}),
            }
            found[name] = {
                "directions_id": directions.directions_id, "traits": list(directions.traits),
                "layer": directions.layer, "measurements": [measured],
            }  # fmt: skip
            if args.out is not None:
                args.out.mkdir(parents=True, exist_ok=True)
                write_json(args.out / f"{name}.json", found[name])
            progress.advance()
    return found


def fit_rule(known: Sequence[str], benign: Sequence[Path], max_rate: float, max_z: float) -> Predictor | ZScore:
    """A predictor from the last measurements of known runs, or a z-score from all those of benign ones.

    Raises BadInputError when measurements were taken along different directions.
    """
    if not (0 < max_rate < 1 and max_z > 0):
        raise BadInputError(f"--max-rate {max_rate} must lie between 0 and 1, --max-z {max_z} above 0")
    if known:
        paths, rates = zip(*(_known(text) for text in known), strict=True)
        sections = [read_section(path) for path in paths]
        _check_same(paths, sections)
        drifts_NK = np.stack([_drifts(section)[-1] for section in sections])
        return fit_predictor(drifts_NK, rates, sections[0]["traits"], sections[0]["directions_id"], max_rate)
    sections = [read_section(path) for path in benign]
    _check_same(benign, sections)
    drifts_NK = np.concatenate([_drifts(section) for section in sections])
    return fit_zscore(drifts_NK, len(sections), sections[0]["traits"], sections[0]["directions_id"], max_z)


def read_section(path: Path) -> dict[str, Any]:
    """The monitor's part of a run folder's report.json, or a file of `measure`."""
    file = path / REPORT if path.is_dir() else path
    try:
        document: dict[str, Any] = orjson.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise MissingError(f"there is no {file}: give a complete run, or a file of `measure`") from error
    except orjson.JSONDecodeError as error:
        raise BadInputError(f"{file} is not JSON") from error
    section: dict[str, Any] = document.get("monitor", document)
    if not section.get("measurements"):
        raise BadInputError(f"{file} holds no measurement of the monitor: train with --monitor, or use `measure`")
    return section


def _known(text: str) -> tuple[Path, float]:
    path, _, rate = text.rpartition("=")
    try:
        return Path(path), float(rate)
    except ValueError as error:
        raise BadInputError(f"--known {text}: write PATH=RATE, with the EM rate between 0 and 1") from error


def _check_same(paths: Sequence[Path], sections: Sequence[dict[str, Any]]) -> None:
    for path, section in zip(paths, sections, strict=True):
        if section["directions_id"] != sections[0]["directions_id"]:
            raise BadInputError(f"{path} was measured along other directions than {paths[0]}")


def _drifts(section: dict[str, Any]) -> Any:
    """Every measurement's drift, (M, K)."""
    return np.array([[item["drift"][trait] for trait in section["traits"]] for item in section["measurements"]])
