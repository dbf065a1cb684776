"""DuckDB in memory over the store's parts, with the definitions and views of `sql/`.

Only files that manifests name are loaded, never a pattern: a part that no manifest lists is not there.
Close the connection (`with connect(store) as connection:`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa
from duckdb import DuckDBPyConnection as Connection

import sql
from curator.corpus.manifest import (
    LATEST,
    Corpus,
    Scorer,
    corpus_names,
    read_corpus,
    read_scorers,
)
from curator.corpus.refusals import is_refusal
from curator.errors import BadInputError, StoreError
from curator.store.filesystem import atomic_write
from curator.store.schema import (
    EXAMPLES,
    MIX_ROWS,
    REJECTS,
    SCORES,
    SOURCES,
    Table,
)
from curator.store.store import Store, arrow_schema

__all__ = ["Connection", "MixFiles", "connect", "export_database"]

Corpora = Iterable[str] | Mapping[str, str] | None

_CORPORA = pa.schema(
    [
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("revision", pa.string(), nullable=False),
        pa.field("n_examples", pa.int64(), nullable=False),
    ]
)
_SCORERS = pa.schema(
    [
        ("corpus", pa.string()),
        ("scorer_id", pa.string()),
        ("label", pa.string()),
        ("role", pa.string()),
        ("scorer_domain", pa.string()),
        ("measure_id", pa.string()),
        ("renderer_id", pa.string()),
        ("revision", pa.string()),
        ("sample_n", pa.int64()),
        ("sample_seed", pa.int64()),
        ("complete", pa.bool_()),
        ("n_rows", pa.int64()),
        ("n_tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("identity", pa.string()),
    ]
)

_CORPUS_KEY = pa.schema([("corpus", pa.string())])
_INGEST_KEY = pa.schema([("corpus", pa.string()), ("ingest", pa.int64())])
_SCORER_KEY = pa.schema([("corpus", pa.string()), ("scorer_id", pa.string())])
_MANIFESTS = pa.schema(
    [
        ("tenant", pa.string()),
        ("mix_id", pa.string()),
        ("created", pa.timestamp("us")),
        ("manifest", pa.string()),
    ]
)


@dataclass(frozen=True)
class MixFiles:
    """Where a mix's manifest and rows lie in the store, as `<tenant>/<mix id>/<file>` below some folder."""

    tenant: str
    mix_id: str
    manifest: str
    rows: str


def connect(
    store: Store | None,
    corpora: Corpora = None,
    *,
    mixes: Sequence[MixFiles] | None = None,
    timeout_s: float | None = None,
    threads: bool = True,
) -> Connection:
    """An in-memory connection holding the views of `sql/` over some corpora (None: all), without a store its macros.

    `corpora` are names, for their latest revision, or a mapping from name to revision. The views of mixes are there
    when `mixes` are given: they show users' rows, so that no statement of strangers may have them. A statement that
    runs longer than `timeout_s` is stopped. Without `threads` DuckDB works in the caller's thread alone, so that the
    process may be forked. Raises MissingError on an unknown corpus or revision, StoreError when a file cannot be read.
    """
    connection = duckdb.connect(
        config={
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "python_enable_replacements": "false",  # a Python variable must never pass for a table
            **({} if threads else {"threads": "1", "async_threads": "0"}),
        }
    )
    try:
        _without_progress_bar(connection)
        if store is None:
            for name in sql.MACROS:
                connection.execute(sql.view_text(name))
        else:
            _load(connection, store, corpora, mixes)
        connection.create_function("is_refusal", is_refusal, ["VARCHAR", "VARCHAR"], "BOOLEAN")
        if timeout_s is not None:
            limit_time(connection, timeout_s)
    except duckdb.Error as error:
        connection.close()
        raise StoreError(f"the store's files cannot be read: {str(error).splitlines()[0]}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def limit_time(connection: Connection, timeout_s: float) -> None:
    """Stop every later statement that runs longer."""
    connection.execute("set max_execution_time = $ms", {"ms": max(1, int(timeout_s * 1000))})


def _without_progress_bar(connection: Connection) -> None:
    """It draws on stdout, where --json prints. Off in a notebook without ipywidgets, where DuckDB refuses the SET."""
    ((shown,),) = connection.execute("select current_setting('enable_progress_bar')").fetchall()
    if shown:
        connection.execute("set enable_progress_bar = false")


def export_database(store: Store, path: Path, mixes: Sequence[MixFiles] | None = None) -> None:
    """Write a DuckDB file with the views over this store's present parts and mixes, renamed into place.

    The views read the store's own files; after an ingest or a scoring run, export again. The function
    `is_refusal` is Python's and stays out.
    """
    # Not durable: views alone, which the next export writes again.
    with atomic_write(path, durable=False) as temporary:
        try:
            with duckdb.connect(str(temporary)) as connection:
                _load(connection, store, None, mixes)
        except duckdb.Error as error:
            raise BadInputError(f"cannot write {path}: {error}") from error


def _load(connection: Connection, store: Store, corpora: Corpora, mixes: Sequence[MixFiles] | None) -> None:
    found = [read_corpus(store, name, revision) for name, revision in _requested(store, corpora).items()]
    scorers = [scorer for corpus in found for scorer in read_scorers(store, corpus)]
    if store.local_path("corpora") is None:
        connection.register_filesystem(store.filesystem)
    _fill(connection, "corpora", _CORPORA, [_corpus_row(corpus) for corpus in found])
    _fill(connection, "scorer_files", _SCORERS, [_scorer_row(scorer) for scorer in scorers])
    examples = [((corpus.name,), corpus.parts) for corpus in found]
    _view_over(connection, store, "example_parts", EXAMPLES, _CORPUS_KEY, examples)
    sources = [((corpus.name, place), paths) for corpus in found for place, paths in enumerate(corpus.sources)]
    _view_over(connection, store, "source_parts", SOURCES, _INGEST_KEY, sources)
    rejects = [((corpus.name, place), paths) for corpus in found for place, paths in enumerate(corpus.rejects)]
    _view_over(connection, store, "reject_parts", REJECTS, _INGEST_KEY, rejects)
    losses = [((scorer.corpus, scorer.scorer_id), scorer.parts) for scorer in scorers]
    _view_over(connection, store, "score_parts", SCORES, _SCORER_KEY, losses)
    for name in sql.VIEWS:
        connection.execute(sql.view_text(name))
    if mixes is not None:
        _load_mixes(connection, store, mixes)


def _load_mixes(connection: Connection, store: Store, mixes: Sequence[MixFiles]) -> None:
    rows = [
        {
            "tenant": mix.tenant,
            "mix_id": mix.mix_id,
            "created": store.modified(mix.manifest).replace(tzinfo=None),
            "manifest": orjson.dumps(store.read_json(mix.manifest)).decode(),
        }
        for mix in mixes
    ]
    _fill(connection, "mix_manifests", _MANIFESTS, rows)
    key = pa.schema([("tenant", pa.string()), ("mix_id", pa.string())])
    if mixes:
        # One reader over all files, which skips those of other mixes by their names.
        paths = [store.url(mix.rows) for mix in mixes]
        found = connection.read_parquet(paths, filename=True, union_by_name=True)
        places = [duckdb.SQLExpression(f"split_part(filename, '/', {place})") for place in (-3, -2)]
        columns = (_column(found, field) for field in arrow_schema(MIX_ROWS))
        keys = (place.alias(name) for place, name in zip(places, key.names, strict=True))
        found.select(*keys, *columns).create_view("mix_parts")
    else:
        _fill(connection, "mix_parts", pa.schema([*key, *arrow_schema(MIX_ROWS)]), [])
    for name in sql.MIX_VIEWS:
        connection.execute(sql.view_text(name))


def _requested(store: Store, corpora: Corpora) -> dict[str, str]:
    if corpora is None:
        return dict.fromkeys(corpus_names(store), LATEST)
    if isinstance(corpora, Mapping):
        return dict(corpora)
    return dict.fromkeys(corpora, LATEST)


def _view_over(
    connection: Connection,
    store: Store,
    name: str,
    table: Table,
    key: pa.Schema,
    files: Iterable[tuple[tuple[str | int, ...], tuple[str, ...]]],
) -> None:
    """A view over Parquet files, each with its key's values as constant columns: files of other keys are skipped."""
    relation = None
    for values, paths in files:
        if not paths:
            continue
        found = connection.read_parquet([store.url(path) for path in paths])
        part = found.select(
            *(duckdb.ConstantExpression(value).alias(field.name) for value, field in zip(values, key, strict=True)),
            *(_column(found, field) for field in arrow_schema(table)),
        )
        relation = part if relation is None else relation.union(part)
    if relation is None:
        _fill(connection, name, pa.schema([*key, *arrow_schema(table)]), [])
    else:
        relation.create_view(name)


def _column(found: Any, field: pa.Field) -> Any:
    """A column of files, null where an older version wrote them without it."""
    if field.name in found.columns or not field.nullable:
        return duckdb.ColumnExpression(field.name)
    return duckdb.ConstantExpression(None).cast("varchar").alias(field.name)


def _fill(connection: Connection, name: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
    connection.from_arrow(pa.Table.from_pylist(rows, schema=schema)).to_table(name)


def _corpus_row(corpus: Corpus) -> dict[str, Any]:
    return {"corpus": corpus.name, "revision": corpus.revision, "n_examples": corpus.n_examples}


def _scorer_row(scorer: Scorer) -> dict[str, Any]:
    sample = scorer.sample or {}
    return {
        **{name: getattr(scorer, name) for name in _SCORERS.names if hasattr(scorer, name)},
        "scorer_domain": scorer.domain,
        "sample_n": sample.get("n"),
        "sample_seed": sample.get("seed"),
        "identity": orjson.dumps(scorer.identity, option=orjson.OPT_SORT_KEYS).decode(),
    }
