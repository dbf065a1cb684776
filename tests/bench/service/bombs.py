"""The catalogue of bombs, sent one after the other to a service: seconds to the answer, and the memory it took."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil

from tests.api.serving import form, scored_store, started, task_rows
from tests.bombs import BODIES, BOMBS, MIB, Peak, send

MOST_MIB, MOST_S = 300, 10  # above idle, and to the answer


def bombs(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Lines of Markdown, and what was not refused within the bounds of memory."""
    lines = ["| bomb | bytes sent | answer | seconds | MiB above idle |", "|---|---|---|---|---|"]
    seconds, mib, faults = [], [], []
    with tempfile.TemporaryDirectory() as name:
        scored_store(Path(name))
        with started(name, *options) as (process, url):
            for _ in range(3):  # what is loaded once, is
                httpx.post(f"{url}/v1/mixes", **form(task_rows(20)), timeout=120).raise_for_status()
            for bomb, make in {**BOMBS, **BODIES}.items():
                content = make()
                with Peak(psutil.Process(process.pid)) as peak:
                    begun_s = time.perf_counter()
                    answer = send(url, bomb, content, timeout_s=300)
                    seconds.append(time.perf_counter() - begun_s)
                mib.append(peak.n_bytes / MIB)
                if not 400 <= answer.status_code < 500 or mib[-1] > MOST_MIB:
                    faults.append(f"{bomb}: {answer.status_code}, {mib[-1]:.0f} MiB")
                figures = f"{answer.status_code} | {seconds[-1]:.1f} | {max(0, mib[-1]):.0f}"
                lines.append(f"| {bomb} | {len(content):,} | {figures} |")
    found = (
        f"Of {len(seconds)} bombs the slowest was answered after {max(seconds):.1f} s (at most {MOST_S} s), the "
        f"largest took {max(mib):.0f} MiB above idle (at most {MOST_MIB} MiB), by the kernel's mark of each process."
    )
    return [found, "", *lines], faults
