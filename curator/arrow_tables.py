"""Arrow schemas of the declared tables, and the check that data has exactly the declared one."""

import pyarrow as pa

from curator.errors import StoreError
from curator.schema import Table

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
