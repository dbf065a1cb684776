"""What the demo checks of its own outputs: a report with real pictures, and a second run that only skips."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trainer.experiments.demo.settings import DemoSettings
from trainer.experiments.demo.shell import DemoFailedError

PICTURES = ("gap.png", "loss.png")
# What training, measuring, ingesting, scoring and mixing write, and a step that is skipped leaves alone.
_RESULTS = (
    "runs/*/adapter/*", "runs/*/metrics.jsonl", "runs/*/report.json", "runs/*/heldout.json",
    "store/corpora/*/*.json", "store/corpora/*/*.parquet", "store/scores/*/*/*.parquet", "store/mixes/*/*/*",
)  # fmt: skip


def results(settings: DemoSettings) -> dict[Path, int]:
    """When each result of a step was written: path -> nanoseconds since the epoch."""
    return {path: path.stat().st_mtime_ns for pattern in _RESULTS for path in settings.out.glob(pattern)}


def require_skipped(before: Mapping[Path, int], after: Mapping[Path, int]) -> None:
    """Raises DemoFailedError when a result is new, was written again, or is gone."""
    changed = sorted(str(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    if changed or not after:
        shown = ", ".join(changed[:3]) or "no result at all"
        raise DemoFailedError(
            f"every step should have been complete and skipped; {len(changed)} files changed: {shown}"
        )


def require_report(settings: DemoSettings) -> None:
    """Raises DemoFailedError unless the report has text and both pictures can be decoded and show something."""
    from matplotlib.image import imread

    report = settings.out / "report.md"
    if not report.is_file() or not report.read_text().strip():
        raise DemoFailedError(f"{report} is missing or empty")
    for path in (settings.out / name for name in PICTURES):
        try:
            pixels = np.asarray(imread(path))
        except (OSError, SyntaxError, ValueError) as error:
            raise DemoFailedError(f"{path} is not a picture: {error}") from error
        if np.ptp(pixels[..., :3]) == 0:
            raise DemoFailedError(f"{path} is an empty picture: one colour all over")
