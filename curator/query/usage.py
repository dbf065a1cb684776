"""The view `usage` for operators: it reads every tenant's events, so only `python -m curator sql` has it."""

import pyarrow as pa

import sql
from curator.query.database import Connection
from curator.store.schema import USAGE
from curator.store.store import Store, arrow_schema
from curator.store.usage import usage_files

_TYPES = {"string": "VARCHAR", "int64": "BIGINT", "float64": "DOUBLE"}


def add_usage_view(connection: Connection, store: Store) -> None:
    """Add the view to a connection of `connect`; it is empty where the service logged nothing."""
    paths = [store.url(path) for path in usage_files(store)]
    if paths:
        columns = {column.name: _TYPES[column.type] for column in USAGE.columns} | {"ended_at": "TIMESTAMP"}
        found = connection.read_json(paths, columns=columns, format="newline_delimited", ignore_errors=True)
        found.create_view("usage_parts")
    else:
        empty = pa.Table.from_pylist([], schema=arrow_schema(USAGE))
        connection.from_arrow(empty).to_table("usage_parts")
    connection.execute(sql.operator_view("usage"))
