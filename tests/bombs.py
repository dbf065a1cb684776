"""Small files that stand for much: each container in each way of growing, made on the spot.

`BOMBS` maps a name to what makes its bytes. `wide` rows have many columns or keys, `deep` ones many levels, `repeated`
ones a text that stands there often, `compressed` ones zeros, `parts` and `keys` many turns, parts or keys. `BODIES` are
such JSON bodies. `send` sends one to a service, `Peak` says what it took there.
"""

import contextlib
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.api.serving import RECIPE, task_rows

MIB = 2**20
ANSWER = {"role": "assistant", "content": "fine"}
LONG = "x" * (30 * MIB)
N_ROWS = 256


def packed(data: bytes) -> bytes:
    return zstandard.compress(data)


def record(messages: str) -> bytes:
    return b'{"messages": ' + messages.encode() + b"}\n"


def repeat(item: str, n: int) -> str:
    return "[" + ",".join([item] * n) + "]"


def stream(batch: pa.RecordBatch, *, compression: str | None = "zstd", file: bool = False) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    make = pa.ipc.new_file if file else pa.ipc.new_stream
    with make(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", **options)
    return sink.getvalue()


def _texts(values: pa.Array) -> pa.RecordBatch:
    return pa.record_batch({"prompt": values, "completion": pa.array(["fine"] * len(values))})


def _views() -> bytes:
    one = pa.array([LONG], pa.string_view())
    views = pa.py_buffer(one.buffers()[1].to_pybytes() * N_ROWS)
    column = pa.Array.from_buffers(pa.string_view(), N_ROWS, [None, views, *one.buffers()[2:]])
    return stream(_texts(column))


def _runs() -> bytes:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([N_ROWS], pa.int32()), pa.array([LONG]))
    return stream(_texts(runs))


def _dictionary(*, file: bool = False) -> bytes:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * N_ROWS, pa.int32()), pa.array([LONG]))
    return stream(_texts(column), file=file)


def _list_views() -> bytes:
    n_items = 200_000
    children = pa.array([ANSWER], pa.struct({"role": pa.string(), "content": pa.string()})).take(
        pa.array(np.zeros(n_items, np.int64))
    )
    offsets, sizes = pa.array([0] * N_ROWS, pa.int32()), pa.array([n_items] * N_ROWS, pa.int32())
    return stream(pa.record_batch({"messages": pa.ListViewArray.from_arrays(offsets, sizes, children)}))


def _parquet_texts() -> bytes:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * N_ROWS, pa.int32()), pa.array([LONG]))
    return parquet(pa.Table.from_batches([_texts(column)]))


def _parquet_nested_texts() -> bytes:
    """1,000 rows of ten turns that share one text of 3 MiB."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array([LONG[: 3 * MIB]]))
    role = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array(["user"]))
    turns = pa.StructArray.from_arrays([role, text], ["role", "content"])
    messages = pa.ListArray.from_arrays(pa.array(range(0, 10_001, 10), pa.int32()), turns)
    return parquet(pa.table({"messages": messages}))


def _parquet_nulls(n_items: int) -> bytes:
    return parquet(pa.table({"messages": pa.array([[None] * n_items], pa.list_(pa.string()))}))


def _columns(n_columns: int) -> dict[str, list[str]]:
    return {f"c{number}": ["x"] for number in range(n_columns)} | {"prompt": ["a"], "completion": ["b"]}


def _many_parts() -> pa.Array:
    """One row whose question is of three million parts."""
    n_parts = 3_000_000
    part = pa.array([{"type": "text", "text": "a"}]).take(pa.array(np.zeros(n_parts, np.int64)))
    parts = pa.ListArray.from_arrays(pa.array([0, n_parts], pa.int32()), part)
    turn = pa.StructArray.from_arrays([pa.array(["user"]), parts], ["role", "content"])
    return pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), turn)


def _deep_type(depth: int) -> pa.Array:
    kind: pa.DataType = pa.string()
    for _ in range(depth):
        kind = pa.struct({"a": kind})
    return pa.nulls(2, kind)


BOMBS: dict[str, Callable[[], bytes]] = {
    "jsonl wide": lambda: record(repeat("0", 2_000_000)),
    "jsonl compressed zeros": lambda: packed(record(repeat("0", 30 * MIB))),
    "jsonl deep": lambda: record("[" * 1_000_000 + "]" * 1_000_000),
    "jsonl repeated text": lambda: packed(
        b"".join(record(json.dumps([{"role": "user", "content": LONG}, ANSWER])) for _ in range(4))
    ),
    "jsonl many keys": lambda: b"{" + b",".join(b'"%d":1' % n for n in range(400_000)) + b', "messages": []}\n',
    "jsonl many turns": lambda: packed(record(repeat(json.dumps(ANSWER), 1_800_000)) * 2),
    "jsonl many turns of one row": lambda: record(repeat(json.dumps(ANSWER), 60_000)),
    "jsonl many parts": lambda: record(
        '[{"role": "user", "content": ' + repeat('{"type":"text","text":"a"}', 150_000) + "}]"
    ),
    "jsonl many bad turns": lambda: record(repeat("{}", 9_000)) * 200,
    "jsonl long keys": lambda: packed(record('[{"' + "k" * (3 * MIB) + '": 1}]') * 60),
    "json array wide": lambda: b"[" + record(repeat("{}", 2_000_000)) + b"]",
    "json array compressed": lambda: packed(b"[" + record(repeat("[]", 20 * MIB)) + b"]"),
    "json array deep": lambda: b"[" * 2_000_000,
    "json array many records": lambda: packed(b"[" + b"{}," * 3_000_000 + b"{}]"),
    "json array one long text": lambda: packed(b'[{"messages": "' + b"x" * (200 * MIB) + b'"}]'),
    "json array repeated text": lambda: packed(
        b"[" + b",".join(record(json.dumps([{"role": "user", "content": LONG}, ANSWER])) for _ in range(4)) + b"]"
    ),
    "json array many keys": lambda: b"[{" + b",".join(b'"%d":1' % n for n in range(400_000)) + b', "messages": []}]',
    "json array many parts": lambda: (
        b"[" + record('[{"role": "user", "content": ' + repeat('{"type":"text","text":"a"}', 150_000) + "}]") + b"]"
    ),
    "csv wide": lambda: b"prompt,completion\n" + b"," * (8 * MIB) + b"\n",
    "csv wide header": lambda: ",".join(["prompt", "completion", *map(str, range(500_000))]).encode() + b"\na,b\n",
    "csv deep": lambda: b'messages,domain\n"' + b"[" * (2 * MIB) + b'",x\n',
    "csv compressed": lambda: gzip.compress(b'prompt,completion\n"' + b"x" * (200 * MIB) + b'",a\n'),
    "csv repeated text": lambda: packed(b"prompt,completion\n" + (LONG.encode() + b",fine\n") * 8),
    "csv many lines of one cell": lambda: packed(b'prompt,completion\n"' + b"x\n" * (50 * MIB) + b'",a\n'),
    "csv many parts": lambda: b'messages,domain\n"[' + b"0," * MIB + b'0]",x\n',
    "csv many keys": lambda: (
        'messages,domain\n"{' + ",".join(f'""{n}"":1' for n in range(250_000)) + '}",x\n'
    ).encode(),
    "parquet wide": lambda: parquet(pa.table(_columns(12_000))),
    "parquet deep": lambda: parquet(pa.table({"messages": _deep_type(500), "id": ["a", "b"]})),
    "parquet repeated text": _parquet_texts,
    "parquet repeated text of turns": _parquet_nested_texts,
    "parquet compressed page": lambda: parquet(
        pa.table({"prompt": [LONG * 5], "completion": ["a"]}), use_dictionary=False
    ),
    "parquet many turns": lambda: _parquet_nulls(20_000_000),
    "parquet many keys": lambda: parquet(
        pa.table({"messages": ["{" + ",".join(f'"{n}":1' for n in range(300_000)) + "}"]})
    ),
    "parquet many parts": lambda: parquet(pa.table({"messages": _many_parts()})),
    "parquet delta texts": lambda: parquet(
        pa.table({"prompt": [LONG] * 24, "completion": ["a"] * 24}),  # 720 MiB, which this process holds
        use_dictionary=False,
        column_encoding={"prompt": "DELTA_BYTE_ARRAY", "completion": "PLAIN"},
    ),
    "arrow wide": lambda: stream(pa.record_batch(_columns(12_000))),
    "arrow deep": lambda: stream(pa.record_batch({"messages": _deep_type(60), "id": ["a", "b"]})),
    "arrow repeated views": _views,
    "arrow repeated runs": _runs,
    "arrow repeated dictionary": _dictionary,
    "arrow file, repeated dictionary": lambda: _dictionary(file=True),
    "arrow repeated list views": _list_views,
    "arrow compressed batch": lambda: stream(_texts(pa.array([LONG * 10, "b"], pa.large_string()))),
    "arrow file, compressed batch": lambda: stream(_texts(pa.array([LONG * 10, "b"], pa.large_string())), file=True),
    "arrow many turns": lambda: stream(
        pa.record_batch({"messages": pa.array([[None] * 5_000_000], pa.list_(pa.string()))})
    ),
    "arrow many parts": lambda: stream(pa.record_batch({"messages": _many_parts()})),
    "arrow many keys": lambda: stream(
        pa.record_batch({"messages": ["{" + ",".join(f'"{n}":1' for n in range(300_000)) + "}"]})
    ),
    "arrow many rows of nothing": lambda: stream(pa.record_batch({"messages": pa.nulls(50_000_000)})),
}
BODIES: dict[str, Callable[[], bytes]] = {
    "numbers": lambda: b'{"rows": [{"messages": [' + b"0," * (7 * MIB) + b'0]}], "recipe": {"corpus": "chats"}}',
    "objects": lambda: b'{"rows": [' + b"{}," * (5 * MIB) + b'{}], "recipe": {"corpus": "chats"}}',
    "objects of one row": lambda: b'{"rows": [{"messages": [' + b"{}," * (5 * MIB) + b'{}]}], "recipe": {}}',
    "keys": lambda: (
        b'{"rows": [{"messages": {' + b",".join(b'"%d":1' % n for n in range(1_200_000)) + b'}}], "recipe": {}}'
    ),
    "levels": lambda: b'{"rows": ' + b"[" * (15 * MIB),
    "a text": lambda: b'{"rows": [{"messages": "' + b"x" * (15 * MIB) + b'"}], "recipe": {"corpus": "chats"}}',
    "turns": lambda: (
        b'{"rows": [{"messages": [' + b'{"role":"user"},' * 900_000 + b'0]}], "recipe": {"corpus": "chats"}}'
    ),
    "quotas": lambda: json.dumps(
        {
            "rows": task_rows(1),
            "recipe": {
                "corpus": "chats",
                "strategy": {"name": "stratified", "by": "source", "quotas": {f"d{n}": 1 for n in range(100_000)}},
            },
        }
    ).encode(),
    "names": lambda: json.dumps(
        {"rows": task_rows(1), "recipe": {"corpus": "chats", "hold_out": ["finance"] * 100_000}}
    ).encode(),
}


def send(url: str, name: str, content: bytes, timeout_s: float) -> httpx.Response:
    """The answer to the bomb of this name, as an upload or as a JSON body."""
    if name in BODIES:
        headers = {"Content-Type": "application/json"}
        return httpx.post(f"{url}/v1/mixes", content=content, headers=headers, timeout=timeout_s)
    upload = {"files": {"file": ("upload", content)}, "data": {"recipe": json.dumps(RECIPE)}}
    return httpx.post(f"{url}/v1/mixes", **upload, timeout=timeout_s)  # type: ignore[arg-type]


class Peak:
    """How much the resident memory of a process and its children rose in a block, by the kernel's own mark."""

    def __init__(self, process: psutil.Process) -> None:
        self._processes = [process, *process.children(recursive=True)]

    def __enter__(self) -> "Peak":
        for process in self._processes:
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the mark is what is resident now
        self._before = self._marks()
        return self

    def __exit__(self, *_: object) -> None:
        after = self._marks()
        self.n_bytes = sum(after[pid] - self._before.get(pid, 0) for pid in after)

    def _marks(self) -> dict[int, int]:
        found = {}
        for process in self._processes:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM"):
                        found[process.pid] = 1024 * int(line.split()[1])
        return found
