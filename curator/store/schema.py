"""Every column of every stored table, declared once as plain data; Arrow schemas are made from the declarations.

Losses are float64 sums in nats with int32 counts; a missing value is null, with a reason beside it, and never 0, -1 or
an empty string. SQL documentation and tests are rendered from the same declarations. `conform` checks that data has
exactly the declared schema before it is written.
"""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from curator.errors import StoreError

STORE_FORMAT_VERSION = 1
MIX_FORMAT_VERSION = 1

ColumnType = Literal["string", "int32", "int64", "float64", "bool", "list<string>", "list<loss>"]


@dataclass(frozen=True)
class Column:
    """One column: its name, logical type, unit (or the counted thing), nullability and meaning."""

    name: str
    type: ColumnType
    unit: str
    nullable: bool
    meaning: str


@dataclass(frozen=True)
class Table:
    """A stored table: what one row is, and its columns in file order."""

    name: str
    row: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in file order."""
        return tuple(column.name for column in self.columns)


_EXAMPLE_ID = Column("example_id", "string", "128-bit hash, hex", False, "hash of the canonical messages")
_MESSAGES = Column("messages", "string", "canonical JSON", False, "the conversation, exactly as hashed and rendered")

EXAMPLES = Table(
    "examples",
    "one distinct conversation of a corpus",
    (
        _EXAMPLE_ID,
        _MESSAGES,
        Column("n_turns", "int32", "messages", False, "messages of all roles"),
        Column("n_assistant_turns", "int32", "messages", False, "assistant messages"),
        Column("n_chars", "int32", "characters", False, "characters of all contents"),
        Column("response_head", "string", "text", False, "first 10 words of the last assistant message"),
        Column("domain", "string", "label", True, "domain label; null where the corpus has none"),
        Column("language", "string", "label", True, "language label; null where the corpus has none"),
        Column("license", "string", "label", True, "licence label; null where the corpus has none"),
        Column("harm", "string", "label", True, "harm label of the response; null where the corpus has none"),
    ),
)

SOURCES = Table(
    "sources",
    "one parsed and kept record of an ingested file; several may share an example_id (folded copies)",
    (
        _EXAMPLE_ID,
        Column("source", "string", "name", False, "the record's own source, else the file's or data set's name"),
        Column("source_id", "string", "id", True, "the record's own id; null where it has none"),
        Column("record", "int64", "1-based position", False, "position of the record in its file"),
        Column("file", "string", "name", True, "name of the ingested file or data set; null where source is that name"),
    ),
)

REJECTS = Table(
    "rejects",
    "one record that was kept out, and why",
    (
        Column("source", "string", "name", False, "name of the file"),
        Column("record", "int64", "1-based position", False, "position of the record in its file"),
        Column("line", "int64", "1-based line", True, "line of the record; null for formats without lines"),
        Column("byte_offset", "int64", "bytes", True, "offset of the failure; null where unknown"),
        Column("pointer", "string", "JSON pointer", False, "the field concerned"),
        Column("code", "string", "code", False, "stable reason code"),
        Column("message", "string", "text", False, "what is wrong and what would fix it"),
    ),
)

USAGE = Table(
    "usage",
    "one thing that a tenant's key did over the service",
    (
        Column("ended_at", "string", "ISO 8601, UTC", False, "when it ended"),
        Column("event_id", "string", "hex", False, "unique; sorts by time"),
        Column("tenant", "string", "name", False, "who did it"),
        Column("key_id", "string", "hex", True, "the key used; null for an open service and for workers"),
        Column("action", "string", "method and route, or words", False, "what was done"),
        Column("status", "int64", "HTTP status", True, "how it was answered; null for what is not a request"),
        Column("mix_id", "string", "hex", True, "the mix made, read or deleted"),
        Column("job_id", "string", "hex", True, "the job made, read, ended or deleted"),
        Column("n_rows_in", "int64", "rows", True, "rows of the data set sent"),
        Column("n_rows_out", "int64", "rows", True, "rows of an SQL answer"),
        Column("n_bytes_in", "int64", "bytes", True, "bytes of the request's body"),
        Column("n_bytes_out", "int64", "bytes", True, "bytes of the answer's body"),
        Column("duration_ms", "float64", "milliseconds", True, "from its beginning to its end"),
        Column("request_id", "string", "id", True, "the id that answer and log carry"),
    ),
)

SCORES = Table(
    "scores",
    "one example under one scorer (model, adapter, template, mask rule, window, dtype and engine)",
    (
        _EXAMPLE_ID,
        Column("status", "string", "code", False, "scored | too_long | no_response | failed"),
        Column(
            "nll_sum",
            "float64",
            "nats",
            True,
            "minus the sum of response-token log-probabilities; null unless scored",
        ),
        Column("n_response_tokens", "int32", "tokens", True, "scored tokens; null where rendering failed"),
        Column(
            "n_tokens",
            "int32",
            "tokens",
            True,
            "tokens of the whole conversation; null where rendering failed",
        ),
        Column("reason", "string", "text", True, "why there is no loss; null when scored"),
    ),
)

TASK_ROWS = Table(
    "task_rows",
    "one row of a user's data set, in the user's order; repeats are kept",
    (
        _EXAMPLE_ID,
        Column("ordinal", "int64", "0-based position", False, "position in the user's own order"),
        _MESSAGES,
        Column("source", "string", "label", True, "the row's own `source` label; null where it has none"),
    ),
)

MIX_ROWS = Table(
    "mix_rows",
    "one row of a training mix, in training order",
    (
        Column("position", "int64", "0-based position", False, "place in the mix"),
        Column("epoch", "int32", "1-based epoch", True, "epoch of the row; null in a mix of one epoch"),
        Column("origin", "string", "task | safe", False, "the user's row or a pool row"),
        _EXAMPLE_ID,
        Column("original_id", "string", "128-bit hash, hex", True, "id before inoculation; null where none applied"),
        Column("ordinal", "int64", "0-based position", True, "place in the user's file; null for safe rows"),
        _MESSAGES,
        Column("pool", "string", "name", True, "pool that a safe row was drawn from; null for task rows"),
        Column("corpus", "string", "name", True, "corpus of a safe row; null for task rows"),
        Column("revision", "string", "hash", True, "corpus revision of a safe row; null for task rows"),
        Column("source", "string", "name", True, "file of a safe row, or a task row's own label; null without one"),
        Column(
            "rank",
            "int64",
            "1-based rank",
            True,
            "rank by the recipe's score; null where the strategy uses none",
        ),
        Column("score", "float64", "see recipe", True, "value the rank was taken on; null where there is none"),
        Column("gap_abs", "float64", "nats per token", True, "see sql/views; null without losses"),
        Column("gap_rel", "float64", "ratio", True, "see sql/views; null without losses"),
        Column("losses", "list<loss>", "nats and tokens", True, "every loss the gap used; null for task rows"),
        Column("filters_passed", "list<string>", "names", True, "filters a safe row passed; null for task rows"),
        Column("inoculation", "string", "label", True, "prompt put into the row, see the manifest; null for none"),
        Column("replaced_system", "string", "canonical JSON", True, "system turn it replaced; null where none was"),
    ),
)

TABLES: tuple[Table, ...] = (EXAMPLES, SOURCES, REJECTS, SCORES, TASK_ROWS, MIX_ROWS)


_LOSS = pa.struct(
    [
        pa.field("scorer_id", pa.string(), nullable=False),
        pa.field("nll_sum", pa.float64(), nullable=False),
        pa.field("n_response_tokens", pa.int32(), nullable=False),
    ]
)
_ARROW_TYPES = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "list<string>": pa.list_(pa.string()),
    "list<loss>": pa.list_(_LOSS),
}


def arrow_schema(table: Table) -> pa.Schema:
    """The Arrow schema of a declared table, columns in file order."""
    return pa.schema(
        [pa.field(column.name, _ARROW_TYPES[column.type], nullable=column.nullable) for column in table.columns]
    )


def conform(data: pa.Table, table: Table) -> pa.Table:
    """`data` with exactly the declared schema; StoreError on other columns, types or forbidden nulls."""
    schema = arrow_schema(table)
    if data.schema.names != schema.names:
        raise StoreError(f"table {table.name}: columns {data.schema.names}, declared {schema.names}")
    for field in schema:
        found = data.schema.field(field.name).type
        if found != field.type:
            raise StoreError(f"table {table.name}: column {field.name} is {found}, declared {field.type}")
        if not field.nullable and data.column(field.name).null_count:
            n_nulls = data.column(field.name).null_count
            raise StoreError(f"table {table.name}: column {field.name} has {n_nulls} nulls and may have none")
    return pa.Table.from_arrays(data.columns, schema=schema)
