"""Which statements strangers may run: one SELECT over the documented views, by its syntax tree.

DuckDB calls `with x as (insert ...) select` a SELECT too, so the tree is walked: only known kinds of nodes pass,
only the product's views (and the statement's own CTEs) may be read, and only listed functions
called: those of curator.sqlfunctions and a few that give tables.
"""

import re
from collections.abc import Iterator
from typing import Any

import duckdb
import orjson

import sql
from curator.errors import BadInputError
from curator.sqlfunctions import ALLOWED

MAX_STATEMENT_CHARS = 50_000
MAX_DEPTH = 400
TABLES = frozenset({"corpora", *(name for name in sql.VIEWS if name not in sql.MACROS)})
TABLE_FUNCTIONS = frozenset({"gap_rows", "unnest", "range", "generate_series"})
FUNCTIONS = ALLOWED | TABLE_FUNCTIONS | set(sql.MACROS)  # the call of a table function is a function's node too
_NODES = frozenset(
    {
        *("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"),
        *("BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EMPTY", "EXPRESSION_LIST"),
        *("ORDER_MODIFIER", "LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER", "DISTINCT_MODIFIER"),
        *("ORDER_DEFAULT", "ASCENDING", "DESCENDING"),
    }
)
_EXPRESSIONS = frozenset(
    {
        *("CONSTANT", "COLUMN_REF", "FUNCTION", "COMPARISON", "CONJUNCTION", "CASE", "CAST", "OPERATOR", "SUBQUERY"),
        *("STAR", "WINDOW", "LAMBDA", "LAMBDA_REF", "BETWEEN", "COLLATE", "PARAMETER", "POSITIONAL_REFERENCE"),
        "TYPE",
    }
)
_CTE_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_SKIPPED = frozenset({"literal", "cast_type", "qualified_name"})


def check_statement(connection: duckdb.DuckDBPyConnection, statement: str) -> None:
    """Pass a statement, or raise BadInputError saying what it may not do."""
    if len(statement) > MAX_STATEMENT_CHARS or "\0" in statement:
        raise BadInputError(f"the statement has a NUL or more than {MAX_STATEMENT_CHARS} characters")
    try:
        found = connection.extract_statements(statement)
        kinds = [item.type.name for item in found]
        if kinds != ["SELECT"]:
            raise BadInputError(f"give exactly one SELECT statement; found {', '.join(kinds) or 'nothing'}")
        row = connection.execute("select json_serialize_sql($text::varchar)", {"text": found[0].query}).fetchone()
    except duckdb.Error as error:
        raise BadInputError(f"the statement failed: {str(error)[:2000]}") from error
    try:
        tree: dict[str, Any] = orjson.loads(row[0]) if row else {"error": True}
    except orjson.JSONDecodeError as error:  # nested beyond what the decoder takes
        raise BadInputError("the statement is nested too deeply") from error
    if tree["error"] or len(tree["statements"]) != 1:
        raise BadInputError("only a SELECT that reads is run here")
    nodes = list(_walk(tree["statements"][0]))
    names = {str(item["key"]).lower() for node in nodes for item in _ctes(node)}
    _check_ctes(connection, names)
    for node in nodes:
        _check_node(node, names)


def _walk(root: Any) -> Iterator[dict[str, Any]]:
    """Every object of the tree; raises BadInputError beyond the depth that is taken."""
    stack: list[tuple[Any, int]] = [(root, 0)]
    while stack:
        item, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise BadInputError("the statement is nested too deeply")
        if isinstance(item, dict):
            yield item
            stack.extend((value, depth + 1) for key, value in item.items() if key not in _SKIPPED)
        elif isinstance(item, list):
            stack.extend((value, depth + 1) for value in item)


def _ctes(node: dict[str, Any]) -> list[dict[str, Any]]:
    found = node.get("cte_map")
    return list(found.get("map", [])) if isinstance(found, dict) else []


def _check_ctes(connection: duckdb.DuckDBPyConnection, names: set[str]) -> None:
    """Refuse a CTE named like a table: outside its own scope that name would read the real one."""
    rows = connection.execute("select view_name from duckdb_views() union select table_name from duckdb_tables()")
    taken = {str(name).lower() for (name,) in rows.fetchall()}
    for name in sorted(names):
        if name in taken or not _CTE_NAME.fullmatch(name):
            raise BadInputError(f"{name!r} cannot name a CTE here: use letters, digits and _, and no table's name")


def _check_node(node: dict[str, Any], ctes: set[str]) -> None:
    kind, group = node.get("type"), node.get("class")
    if group is not None:
        if group not in _EXPRESSIONS:
            raise BadInputError(f"{str(group).lower()} expressions are not run here")
    elif isinstance(kind, str) and kind not in _NODES:
        raise BadInputError(f"{kind.lower().replace('_', ' ')} is not run here: only a SELECT that reads the views")
    if group is None and kind == "BASE_TABLE":
        _check_table(node, ctes)
    elif group in ("FUNCTION", "WINDOW") and "function_name" in node:
        _check_function(node)
    elif group is None and kind == "TABLE_FUNCTION":
        call = node.get("function") or {}
        name = str(call.get("function_name", "")).lower()
        if name not in TABLE_FUNCTIONS:
            raise BadInputError(f"{name}() is not called here; there are: {', '.join(sorted(TABLE_FUNCTIONS))}")


def _check_table(node: dict[str, Any], ctes: set[str]) -> None:
    name = str(node.get("table_name", "")).lower()
    qualified = bool(node.get("schema_name") or node.get("catalog_name"))
    if qualified or (name not in TABLES and name not in ctes):
        raise BadInputError(f"{name!r} is not read here; there are: {', '.join(sorted(TABLES))}, gap_rows(...)")


def _check_function(node: dict[str, Any]) -> None:
    name = str(node["function_name"]).lower()
    if node.get("schema") or node.get("catalog") or name not in FUNCTIONS:
        raise BadInputError(f"{name}() is not called here: it is none of the functions that compute with values")
