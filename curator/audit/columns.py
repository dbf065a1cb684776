"""The columns of an audit's rows, declared once."""

from curator.schema import Column, Table

AUDIT_ROWS = Table(
    "audit_rows",
    "one row of an audited set, in the user's order",
    (
        Column("ordinal", "int64", "0-based position", False, "place in the user's set"),
        Column("example_id", "string", "128-bit hash, hex", False, "hash of the canonical messages"),
        Column("n_response_tokens", "int32", "tokens", True, "scored tokens; null where there is no loss"),
        Column("gap", "float64", "see the audit's score", True, "gap under the audit's score; null without losses"),
        Column("percentile", "float64", "share of 1", True, "like pool rows of lower risk; null where abstained"),
        Column("n_reference", "int32", "rows", False, "pool rows of like length"),
        Column("abstained", "string", "code", True, "why the row is not judged; null where it is"),
        Column("reason", "string", "text", True, "more about that; null where there is no more"),
        Column("language", "string", "ISO 639-1", True, "of the answers; null where it cannot be told"),
        Column("forged", "string", "text", True, "a turn marker inside a turn's text; null without one"),
    ),
)
