"""The load test's short form: no answer but the expected ones, and memory that does not grow."""

from pathlib import Path

import pytest

from tests.bench.service.load import MIB, load
from tests.bench.service.stores import demo_store

N_CLIENTS, SECONDS, N_ROWS = 16, 30.0, 200
# Seen: 10 MiB over 234 mixes, after a third of the run. 64 MiB are a quarter of a megabyte kept of each.
MAX_GROWTH_BYTES = 64 * MIB


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_clients_that_build_read_and_delete_at_once(tmp_path: Path) -> None:
    tally, memory, _ = load(demo_store(tmp_path), N_CLIENTS, SECONDS, N_ROWS)
    assert tally.faults == []
    assert set(tally.seconds) == {"build", "rows", "list", "data jsonl", "data parquet", "delete"}
    assert all(len(found) >= N_CLIENTS for found in tally.seconds.values()), "every client went round at least once"
    settled = memory[len(memory) // 3]  # libraries and pools are loaded at that point
    assert max(memory) - settled < MAX_GROWTH_BYTES, [found // MIB for found in memory]
