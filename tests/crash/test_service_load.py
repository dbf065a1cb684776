"""The load test's short form: no answer but the expected ones, and memory that does not grow."""

from pathlib import Path

import pytest

from tests.bench.service.load import MARKER, MIB, Load, run_load
from tests.bench.service.stores import CORPUS, demo_store, user_rows

N_CLIENTS, SECONDS, N_ROWS = 16, 30.0, 200
# Seen: 10 MiB over 234 mixes, after the first round. 64 MiB are a quarter of a megabyte kept of each.
MAX_GROWTH_BYTES = 64 * MIB


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_clients_that_build_read_and_delete_at_once(tmp_path: Path) -> None:
    store = demo_store(tmp_path)
    bodies = [user_rows(store, N_ROWS, seed, MARKER.decode()) for seed in range(N_CLIENTS)]
    seen = run_load(Load(store, CORPUS, bodies, N_ROWS, N_CLIENTS, SECONDS))
    tally, memory = seen.tally, [own for own, _ in seen.memory]
    assert tally.faults == []
    assert set(tally.seconds) == {"build", "rows", "list", "data jsonl", "data parquet", "delete"}
    assert all(len(found) >= N_CLIENTS for found in tally.seconds.values()), "every client went round at least once"
    # Libraries and pools are loaded at that point, however slow the machine.
    assert max(memory) - tally.settled_bytes < MAX_GROWTH_BYTES, str([found // MIB for found in memory])
