"""An audit that has ended, without a worker's models."""

from typing import Any

import pyarrow as pa

from api.jobs.board import Board
from curator.audit.options import AUDIT_ROWS
from curator.store.schema import arrow_schema
from curator.store.store import Store


def end_audit(store: Store, tenant: str, job_id: str) -> dict[str, Any]:
    """End a job as done with a verdict over six rows, which it keeps; returns the verdict."""
    board, interval = Board(store), {"value": 0.5, "low": 0.4, "high": 0.6}
    result = {
        "method_version": 1, "verdict": "undecided", "reason": "r", "n_judged": 6, "mean_percentile": interval,
        "top_share": interval, "n_rows": 6, "n_distinct": 6, "abstained": {}, "n_forged": 0, "warnings": [],
        "score": "gap_abs", "eps": 1.0, "seed": 0, "scorers": [],
        "pool": {"corpus": "chats", "revision": "x", "n_rows": 60, "n_response_tokens": [1, 9], "languages": {}},
    }  # fmt: skip
    none = dict.fromkeys(AUDIT_ROWS.names)
    rows = [
        {**none, "ordinal": n, "example_id": f"{n:032x}", "percentile": n / 10, "n_reference": 30} for n in range(6)
    ]
    table = pa.Table.from_pylist(rows, arrow_schema(AUDIT_ROWS))
    store.write_table(f"jobs/{tenant}/{job_id}/rows.parquet", table, AUDIT_ROWS)
    board.end(board.read(tenant, job_id).ended("done", "done", result=result))
    return result
