"""`python -m curator sql`: one statement, or a named query, over the store's views."""

import argparse
import csv
import io
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

import sql
from curator.cli import Subparsers, new_parser, open_store
from curator.console import add_renamed, as_typed, one_line, say, say_json
from curator.errors import BadInputError
from curator.store.filesystem import atomic_write

if TYPE_CHECKING:
    from curator.query.database import MixFiles
    from curator.query.queries import Answer
    from curator.store.store import Store

DESCRIPTION = """\
Runs one SELECT, or a named query, in DuckDB over the store's views: corpora, examples, sources, rejects,
scorers, scores, gap, gap_rows(...), mixes, mix_rows, and usage: what tenants of the service did. Without either it
lists them, one per line; --list has their columns, units and parameters. Nothing in the store changes."""

EXAMPLES = """\
  python -m curator sql "select source, count(*), avg(gap_abs) from gap group by source order by source"
  python -m curator sql "select example_id, gap_rel from gap_rows(hold_out := ['finance'], eps := 0.5) limit 5"
  python -m curator sql "pivot gap on domain using avg(gap_abs) group by source"
  python -m curator sql "select mix_id, created, n_rows, n_safe, mix_share from mixes order by created"
  python -m curator sql --query top_by_gap --param n=10 --param score=gap_abs
  python -m curator sql --query gap_by_source --output-format csv
  python -m curator sql "select tenant, action, count(*), sum(n_rows_in) from usage group by all order by all"
  python -m curator sql --export-db store/curator.duckdb"""

FORMATS = ("table", "csv", "json", "parquet")
DEFAULT_LIMIT = 1000
DEFAULT_TIMEOUT_S = 60.0
_MIX_VIEW = re.compile(r"\bmix(es|_rows)\b", re.IGNORECASE)  # the others need not wait for every mix's manifest
LIST_WIDTH = 118  # characters of a line of the short list
PIPE_WIDTH = 160  # characters, where stdout is not a terminal


def add_parser(subparsers: Subparsers) -> None:
    """Options of the command."""
    parser = new_parser(subparsers, "sql", description=DESCRIPTION, examples=EXAMPLES)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("statement", nargs="?", help="one SELECT statement")
    what.add_argument("--query", metavar="NAME", help="run a named query (see --list)")
    what.add_argument("--list", action="store_true", help="list views and named queries, with their parameters")
    what.add_argument("--export-db", type=Path, metavar="PATH", help="write a DuckDB file holding the views")
    parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="a parameter of --query")
    add_renamed(
        parser,
        "--output-format",
        "--format",
        choices=FORMATS,
        default="table",
        help="how to show rows (default: table)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the rows there (needed for parquet)")
    parser.add_argument("--limit", type=int, help="most rows (default: 1000 shown, all with --out; 0: all)")
    parser.add_argument("--timeout-s", type=float, default=DEFAULT_TIMEOUT_S, help="stop after this long (default: 60)")


def run(args: argparse.Namespace) -> int:
    """List, export or query."""
    if args.export_db is not None:
        return _export(args)
    if args.list or (args.statement is None and args.query is None):
        if args.list or args.json:
            _list(as_json=args.json)
        else:
            _list_names()
        return 0
    kind = "json" if args.json else args.output_format
    if kind == "parquet" and args.out is None:
        raise BadInputError("--output-format parquet needs --out FILE")
    if args.param and args.query is None:
        raise BadInputError("--param goes with --query")
    from curator.query.queries import written_as

    if args.limit is None:
        args.limit = DEFAULT_LIMIT if args.out is None else 0  # a file that lacks rows looks whole to its reader
    rows = _answer(args)
    with written_as(kind):
        data = _rendered(rows, kind)
    if args.out is None:
        say(data.decode().rstrip("\n"))
    else:
        with atomic_write(args.out, durable=False) as temporary:  # the same command writes it again
            temporary.write_bytes(data)
        noun = "row" if rows.table.num_rows == 1 else "rows"
        sys.stderr.write(f"{rows.table.num_rows:,} {noun} written to {args.out}\n")
    if rows.truncated:
        sys.stderr.write(f"truncated: there are more than {args.limit:,} rows; --limit 0 shows all\n")
    return 0


def _answer(args: argparse.Namespace) -> "Answer":
    from curator.query.database import connect
    from curator.query.queries import run_named, run_statement
    from curator.query.usage import add_usage_view

    limit = None if args.limit == 0 else args.limit
    if args.limit < 0:
        raise BadInputError(f"--limit {args.limit}: give 0 for all rows, or a number of rows")
    if not args.timeout_s > 0:
        raise BadInputError(f"--timeout-s {args.timeout_s:g}: give a number of seconds above 0")
    store = open_store(args)
    mixes = _mixes(store) if args.statement and _MIX_VIEW.search(args.statement) else None
    with connect(store, mixes=mixes, timeout_s=args.timeout_s) as connection:
        add_usage_view(connection, store)
        if args.query is not None:
            return run_named(connection, args.query, _params(args.param), limit)
        return run_statement(connection, args.statement, None, limit)


def _mixes(store: "Store") -> "list[MixFiles]":
    from curator.mix.files import MANIFEST_FILE, MIX_FILE, mix_path, stored_mixes
    from curator.query.database import MixFiles

    found = [(tenant, mix_id) for tenant, ids in stored_mixes(store).items() for mix_id in ids]
    folders = [mix_path(tenant, mix_id) for tenant, mix_id in found]
    return [
        MixFiles(tenant, mix_id, f"{folder}/{MANIFEST_FILE}", f"{folder}/{MIX_FILE}")
        for (tenant, mix_id), folder in zip(found, folders, strict=True)
    ]


def _params(given: list[str]) -> dict[str, sql.Value]:
    pairs = [item.partition("=") for item in given]
    unread = [name for name, equals, _ in pairs if not equals]
    if unread:
        raise BadInputError(f"--param {unread[0]!r}: write NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _export(args: argparse.Namespace) -> int:
    from curator.query.database import export_database

    store = open_store(args)
    export_database(store, args.export_db, _mixes(store))
    if args.json:
        say_json({"out": str(args.export_db)})
    else:
        say(f"views written to {args.export_db}; they read this store's present files: export again after changes")
    return 0


def _list(*, as_json: bool) -> None:
    queries = [sql.load_query(name) for name in sql.query_names()]
    if as_json:
        names = (*sql.VIEWS, *sql.MIX_VIEWS, *sql.OPERATOR_VIEWS)
        views = [{"name": name, "doc": sql.describe_view(name)} for name in names]
        named = [
            {"name": query.name, "doc": query.doc, "params": [vars(param) for param in query.params]}
            for query in queries
        ]
        say_json({"views": views, "queries": named})
        return
    say(as_typed('Views and functions, for `python -m curator sql "select ..."`'))
    for name in (*sql.VIEWS, *sql.MIX_VIEWS, *sql.OPERATOR_VIEWS):
        say(f"\n  {name}\n{_indented(sql.describe_view(name))}")
    say(as_typed("\nNamed queries, for `python -m curator sql --query NAME --param NAME=VALUE`"))
    for query in queries:
        say(f"\n  {query.name}\n{_indented(query.doc)}")
        for param in query.params:
            default = "required" if param.required else f"default {_shown(param.default)}"
            say(f"      --param {param.name}=...  {param.type}, {default}: {param.meaning}")


def _list_names() -> None:
    """Each named query and table in one line."""
    width = max(map(len, sql.query_names())) + 2
    say(as_typed("Named queries, and what a row of each is: python -m curator sql --query NAME --param NAME=VALUE"))
    for name in sql.query_names():
        first = sql.load_query(name).doc.split(";")[0].removeprefix("One row is ")
        say(f"  {name:<{width}}{one_line(first.split('.')[0], LIST_WIDTH - width)}")
    tables = [name for name in (*sql.VIEWS, *sql.MIX_VIEWS, *sql.OPERATOR_VIEWS) if name not in sql.MACROS]
    say(as_typed(f'\nTables: python -m curator sql "select ... from TABLE limit 5"\n  {", ".join(tables)}'))
    say(as_typed("\nColumns, units, parameters and functions: python -m curator sql --list"))


def _shown(value: sql.Value) -> str:
    return "null" if value is None else "none" if value == [] else str(value)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _rendered(rows: "Answer", kind: str) -> bytes:
    if kind == "parquet":
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(rows.table, buffer, compression="zstd")
        return buffer.getvalue()
    columns, found = rows.table.column_names, rows.table.to_pylist()
    if kind == "json":
        document = {"columns": columns, "rows": found, "truncated": rows.truncated}
        return orjson.dumps(document, default=str, option=orjson.OPT_INDENT_2) + b"\n"
    if kind == "csv":
        return _csv(columns, found)
    from curator.console import text_table

    width = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns if sys.stdout.isatty() else PIPE_WIDTH
    noun = "row" if len(found) == 1 else "rows"
    return f"{text_table(columns, found, width)}\n({len(found):,} {noun})\n".encode()


def _csv(columns: list[str], rows: list[dict[str, Any]]) -> bytes:
    """Null is an empty field, a list or struct its JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = [row[name] for name in columns]
        writer.writerow(
            [orjson.dumps(value, default=str).decode() if isinstance(value, list | dict) else value for value in values]
        )
    return text.getvalue().encode()
