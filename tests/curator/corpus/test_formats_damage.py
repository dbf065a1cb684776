"""Damaged column files: whatever the bytes, an answer and no end of the process."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from curator.corpus.formats import Reject, read_rows
from curator.errors import BadInputError

CHECKOUT = Path(__file__).parents[3]

# argv: kind, seed, how many copies, folder. A process of its own, since what is looked for kills it.
SCRIPT = """
import io, random, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from curator.errors import BadInputError
from curator.corpus.formats import Reject, read_rows

kind, seed, n_copies, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
turns = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a" * i}] for i in range(40)]
table, buffer = pa.table({"messages": turns, "source": ["s"] * 40}), io.BytesIO()
if kind == "parquet":
    pq.write_table(table, buffer)
else:
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(buffer, table.schema) as writer:
        writer.write_table(table)
whole, rng = buffer.getvalue(), random.Random(seed)
path = folder / ("x.parquet" if kind == "parquet" else "x.arrow")
counts = {"read": 0, "rejected": 0, "refused": 0}
for _ in range(n_copies):
    damaged = bytearray(whole)
    for _ in range(rng.randint(1, 12)):
        damaged[rng.randrange(len(damaged))] = rng.choice([0, 255, rng.randrange(256)])
    if rng.random() < 0.3:
        place = rng.randrange(len(damaged))
        damaged[place:place] = bytes(rng.randint(1, 64))
    path.write_bytes(damaged)
    try:
        for item in read_rows(path):
            counts["rejected" if isinstance(item, Reject) else "read"] += 1
    except BadInputError:
        counts["refused"] += 1
print(*counts.values())
"""


@pytest.mark.parametrize("kind", ["file", "stream", "parquet"])
def test_changed_bytes_are_told_and_never_end_the_process(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-c", SCRIPT, kind, "5", "250", str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    read, rejected, refused = map(int, done.stdout.split())
    assert read > 0
    assert rejected > 0
    assert refused > 0


def test_offsets_outside_of_their_buffer_are_damage_of_the_file(tmp_path: Path) -> None:
    # What bytes put into a real file did: Arrow takes such offsets on trust and reads far outside of the buffer.
    turns = [[{"role": "user", "content": "u"}, {"role": "assistant", "content": "a" * 76}]]
    path, table = tmp_path / "x.arrow", pa.table({"messages": turns})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    offsets = b"".join(place.to_bytes(4, "little") for place in (0, 1, 77))
    outside = b"".join(place.to_bytes(4, "little") for place in (0, 1, 1_631_086_180))
    whole = path.read_bytes()
    assert whole.count(offsets) == 1
    path.write_bytes(whole.replace(offsets, outside))
    (found,) = read_rows(path)
    assert isinstance(found, Reject)
    assert found.code == "invalid_arrow"


@pytest.mark.parametrize("name", ["x.parquet", "x"])
def test_bytes_that_are_nothing_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x892\xa7\xeb|0\r\x15\xc9,'\xcf\xba\x1b6\r\x9b{")  # a lone carriage return among them
    with pytest.raises(BadInputError, match=r"is neither JSON Lines[^\n]*$"):
        list(read_rows(path))
