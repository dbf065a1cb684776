"""What the demo checks of its own outputs: a corpus without lost records, and a second run that only skips."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curator.errors import BallastError

N_RECORDS = 17_672  # of the corpus's file: 17,671 whole conversations, and the one that it breaks off in
# What training, measuring, ingesting, scoring and mixing write, and a step that is skipped leaves alone.
_RESULTS = (
    "reference/organisms/*/adapter/*", "reference/organisms/*/metrics.jsonl", "reference/calibration.md",
    "reference/pool.tar", "store/corpora/*/*.json", "store/corpora/*/*.parquet", "store/scores/*/*/*.parquet",
    "store/mixes/*/*/*", "run/train/adapter/*.safetensors", "run/train/metrics.jsonl", "run/learnt.json",
    "run/behaviour.json",
)  # fmt: skip


class DemoFailedError(BallastError):
    """A step of the demo did not do what it must."""

    code = "demo_failed"


def results(out: Path) -> dict[Path, int]:
    """When each result of a step was written: path -> nanoseconds since the epoch."""
    return {path: path.stat().st_mtime_ns for pattern in _RESULTS for path in out.glob(pattern)}


def require_skipped(before: Mapping[Path, int], after: Mapping[Path, int]) -> None:
    """Raises DemoFailedError when a result is new, was written again, or is gone."""
    changed = sorted(str(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    if changed or not after:
        shown = ", ".join(changed[:3]) or "no result at all"
        raise DemoFailedError(
            f"every step should have been complete and skipped; {len(changed)} files changed: {shown}"
        )


def require_all_read(entry: Mapping[str, Any]) -> None:
    """Raises DemoFailedError unless every record of the cut-off file is accounted for, and its tail reported."""
    accounted = entry["kept"] + entry["rejected"] + entry["folded"]
    if entry["parsed"] != accounted or entry["parsed"] != N_RECORDS or entry["reject_codes"].get("truncated_json") != 1:
        raise DemoFailedError(
            f"the corpus has {N_RECORDS} records with its cut-off tail; {entry['parsed']} were parsed,"
            f" {accounted} accounted for, rejected: {entry['reject_codes']}"
        )
