"""Peak memory of a scoring run over few and over ten times as many rows, each in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from curator.errors import ScoringError
from tests.bench.scoring.request import BenchRequest
from tests.bench.scoring.rows import BenchRow

GROWTH = 10


def peak_bytes(request: BenchRequest, device: str, dtype: str, rows: Sequence[BenchRow]) -> int:
    """Peak bytes of ingesting and scoring these rows: resident ones on a CPU, the device's allocated ones elsewhere."""
    with TemporaryDirectory(prefix="ballast-bench-") as scratch:
        chats = Path(scratch) / "chats.jsonl"
        chats.write_text("".join(json.dumps({"messages": row.messages}) + "\n" for row in rows), encoding="utf-8")
        command = [
            str(request.model_dir),
            str(chats),
            device,
            dtype,
            str(request.threads or 1),
            str(request.max_length),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.scoring.peak", *command], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        raise ScoringError(f"the memory run failed: {done.stderr.strip()[-500:]}")
    return int(done.stdout.split()[-1])
