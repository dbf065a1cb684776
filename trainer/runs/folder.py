"""A run's folder: what stands in it, when it counts as complete, and when it may be written over."""

import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import platform, python_version
from typing import Any

import orjson

from curator.console import product_version
from curator.errors import BadInputError
from curator.scoring.identity import MARKER as MARKER
from curator.store.filesystem import atomic_write
from trainer.config.options import Resume
from trainer.runs.checkpoints import (
    FOLDER,
    Checkpoint,
    choose_checkpoint,
    complete_checkpoints,
    drop_after,
    prune_checkpoints,
)

FORMAT_VERSION = 1
CONFIG, METRICS, REPORT, REPORT_TEXT, LOSS_PLOT, ADAPTER = (
    "config.json", "metrics.jsonl", "report.json", "report.md", "loss.png", "adapter",
)  # fmt: skip
TERMS_PLOT = "terms.png"
SAFELORA = "safelora"  # the adapter after projection, where requested
MODEL = "model"  # in the place of adapter/ after full fine-tuning
_OWN = (
    REPORT, CONFIG, METRICS, REPORT_TEXT, LOSS_PLOT, TERMS_PLOT, ADAPTER, SAFELORA, MODEL, FOLDER, "manifest.json",
    "mix.jsonl", "rows",
)  # fmt: skip
_KEPT = (FOLDER, METRICS)  # of an interrupted run that goes on
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy")

Fingerprint = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """How a run stands to its folder: complete already (`report`), going on from a checkpoint, or starting."""

    report: dict[str, Any] | None = None
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class RunFolder:
    """`config.json` comes before the first step and `report.json` last: with it the run is complete."""

    path: Path

    def complete_report(self) -> dict[str, Any] | None:
        """The report of a complete run, or None."""
        return _read(self.path / REPORT)

    def claim(self, fingerprint: Fingerprint, overwrite: bool = False, resume: Resume | None = None) -> Claim:
        """Make the folder ready for a run.

        A run that was interrupted goes on from its newest checkpoint; with `resume` there must be one. Raises
        BadInputError when the folder holds another run, complete or with checkpoints (naming the settings that
        differ), or files that are not a run's, and overwriting is not allowed.
        """
        self._refuse_foreign_files()
        report, checkpoint = None if overwrite else self.complete_report(), None
        if not overwrite and (report is not None or resume is not None or complete_checkpoints(self.path)):
            self._refuse_other_run(fingerprint, complete=report is not None)
            if report is not None:
                return Claim(report=report)
            checkpoint = choose_checkpoint(self.path, resume.step if resume else None)
        for name in _OWN:  # the report first: without it nobody takes the rest for a complete run
            if checkpoint is None or name not in _KEPT:
                _remove(self.path / name)
        self.path.mkdir(parents=True, exist_ok=True)
        if checkpoint is not None:
            drop_after(self.path, checkpoint.step)
            prune_checkpoints(self.path, len(complete_checkpoints(self.path)))  # what a kill left half written
        return Claim(checkpoint=checkpoint)

    def _refuse_other_run(self, fingerprint: Fingerprint, *, complete: bool) -> None:
        recorded = _read(self.path / CONFIG)
        if recorded is None:  # nothing to compare with; choosing a checkpoint then says that there is none
            return
        different = sorted(_differences(recorded.get("fingerprint", {}), fingerprint))
        if different:
            what = "a complete run" if complete else "checkpoints of a run"
            raise BadInputError(
                f"{self.path} holds {what} with other {', '.join(different)}: choose another --out, or "
                "give --overwrite",
                details=different,
            )

    def write_json(self, name: str, document: dict[str, Any]) -> None:
        """Write one JSON file whole: temporary name, fsync, rename."""
        write_json(self.path / name, document)

    def _refuse_foreign_files(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise BadInputError(f"{self.path} is a file; --out names a folder")
        foreign = sorted(item.name for item in self.path.iterdir() if item.name not in _OWN)
        if foreign and not (self.path / CONFIG).exists():
            raise BadInputError(f"{self.path} holds other files ({', '.join(foreign[:5])}): choose another --out")


def write_json(path: Path, document: dict[str, Any]) -> None:
    """One JSON object, indented, put in place in one step."""
    with atomic_write(path, durable=True) as temporary:
        temporary.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def environment() -> dict[str, Any]:
    """Versions and machine kind that a run's numbers may depend on; null for a package that is not installed."""
    versions: dict[str, str | None] = {"ballast": product_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {"python": python_version(), "platform": platform(), "packages": versions}


def _differences(found: Any, wanted: Any, prefix: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            name
            for key in found.keys() | wanted.keys()
            for name in _differences(found.get(key), wanted.get(key), f"{prefix}{key}.")
        ]
    return [] if found == wanted else [prefix.rstrip(".").removeprefix("config.")]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except orjson.JSONDecodeError as error:
        raise BadInputError(f"{path} is not JSON: remove the folder, or give --overwrite") from error
    return document if isinstance(document, dict) else None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
