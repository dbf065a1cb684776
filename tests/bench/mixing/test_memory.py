"""A long task file streams: four times the rows take far less than four times the memory."""

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.corpus.task_set import TaskSet
from curator.messages import dump_messages, example_id
from curator.store.schema import TASK_ROWS
from curator.store.store import arrow_schema
from tests.mix_stores import scored_store

ROW_CHARS = 4_000

SCRIPT = """
import pickle, sys
from curator.mix.build import build_mix
from trainer.runs.device import peak_rss_bytes
from curator.store.store import Store
from tests.mix_stores import recipe
tasks = pickle.loads(bytes.fromhex(sys.argv[2]))
result = build_mix(Store(sys.argv[1]).open(), tasks, recipe(rows=20, order=sys.argv[3]))
assert result.created
print(peak_rss_bytes() >> 20)
"""


def long_task_set(path: Path, n_rows: int) -> TaskSet:
    digest = hashlib.sha256()
    schema = arrow_schema(TASK_ROWS)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, n_rows, 5_000):
            rows = []
            for ordinal in range(start, min(n_rows, start + 5_000)):
                answer = f"{ordinal} ".ljust(ROW_CHARS, "x")
                messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
                text = dump_messages(messages)
                digest.update(text.encode() + b"\n")
                rows.append({"example_id": example_id(text), "ordinal": ordinal, "messages": text})
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return TaskSet(path, n_rows, digest.hexdigest(), 0, {}, ())


@pytest.mark.slow
@pytest.mark.parametrize("order", ["even", "shuffle"])
def test_memory_does_not_grow_with_the_task_file(tmp_path: Path, order: str) -> None:
    scored_store(tmp_path / "store")
    peak_mib = {}
    for n_rows in (60_000, 240_000):  # 0.24 and 0.96 GB of text
        tasks = long_task_set(tmp_path / f"{n_rows}.parquet", n_rows)
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "store"), pickle.dumps(tasks).hex(), order]
        done = subprocess.run(
            command, cwd=Path(__file__).parents[3], check=True, capture_output=True, text=True, timeout=280
        )
        peak_mib[n_rows] = int(done.stdout)
    assert peak_mib[240_000] < 1.5 * peak_mib[60_000], peak_mib
