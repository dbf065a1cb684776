"""The SQL of the product by name: definitions and views (`views/`), documented queries (`queries/`), and the same gap
over losses side by side, as mixing holds them (`wide/`).

One statement a file. The gap and its sign are defined here and nowhere else. The package needs nothing but
Python: any DuckDB connection that holds the base tables (`BASE_TABLES`) can run `view_text` of `VIEWS` in order.

A query file opens with comments: what a row is and its units, then one line per parameter,
`-- param: NAME TYPE DEFAULT meaning`, where TYPE is integer, double, text, text(N) for at most N characters, double[]
or text[], and DEFAULT is a value, `null`, `[]` or `required`. Parameters are bound as `$NAME`, never formatted in.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Literal, get_args

__all__ = [
    "BASE_TABLES",
    "DEFINITIONS",
    "MACROS",
    "MIX_TABLES",
    "MIX_VIEWS",
    "OPERATOR_VIEWS",
    "VIEWS",
    "Param",
    "Query",
    "Value",
    "describe_view",
    "load_query",
    "operator_view",
    "query_names",
    "view_text",
    "wide_query",
]

# What a connection must hold before the views: parts named in manifests, with their corpus (and scorer) beside them.
BASE_TABLES = ("corpora", "example_parts", "source_parts", "reject_parts", "scorer_files", "score_parts")
# In the order in which they are made: each uses only those before it.
DEFINITIONS = ("mean_nll", "ensemble", "gap_abs", "gap_rel", "gap_contrast", "sum_gap", "gap_named")  # of every gap
MACROS = (*DEFINITIONS, "hold_out_unknown", "hold_out_leaves_none", "row_key")
VIEWS = (*MACROS, "sources", "rejects", "examples", "scorers", "scores", "gap_rows", "gap")
# Over users' rows, and so for the local command alone; they need the tables of MIX_TABLES.
MIX_VIEWS = ("mixes", "mix_rows")
MIX_TABLES = ("mix_manifests", "mix_parts")

# Views of every tenant's use, for whoever has the store; the service's statements cannot name them.
OPERATOR_VIEWS = ("usage",)

ParamType = Literal["integer", "double", "text", "double[]", "text[]"]
_PARAM_TYPES: dict[str, ParamType] = {kind: kind for kind in get_args(ParamType)}
Value = int | float | str | list[str] | list[float] | None


@dataclass(frozen=True)
class Param:
    """One declared parameter of a query; `default` is meaningless when `required`, no `max_chars` is no bound."""

    name: str
    type: ParamType
    default: Value
    required: bool
    meaning: str
    max_chars: int | None = None

    def parse(self, given: Value) -> Value:
        """`given` as this parameter's type; text from a command line is converted, lists split at commas.

        Raises ValueError when it does not fit.
        """
        if given is None or given == "null":
            return None
        if self.type == "text[]":
            return _text_list(given)
        if self.type == "double[]":
            return [float(item) for item in (_text_list(given) if isinstance(given, str) else _numbers(given))]
        if isinstance(given, list | bool):
            raise ValueError(f"parameter {self.name} takes one {self.type}, not {given!r}")
        if self.max_chars is not None and len(str(given)) > self.max_chars:
            n_chars = len(str(given))
            raise ValueError(f"parameter {self.name} takes at most {self.max_chars:,} characters, not {n_chars:,}")
        try:
            if self.type == "integer":
                return int(given) if isinstance(given, str) else _whole(given)
            return float(given) if self.type == "double" else str(given)
        except ValueError as error:
            raise ValueError(f"parameter {self.name} takes {self.type}, not {given!r}") from error


@dataclass(frozen=True)
class Query:
    """A named query: `doc` says what a row is and its units, `sql` is one statement with `$NAME` parameters."""

    name: str
    doc: str
    params: tuple[Param, ...]
    sql: str

    def bind(self, given: Mapping[str, Value] | None = None) -> dict[str, Value]:
        """A value for every parameter: the given ones converted, the others by default.

        Raises ValueError on an unknown name, a missing required one or a value of the wrong type.
        """
        given = given or {}
        known = {param.name: param for param in self.params}
        unknown = sorted(given.keys() - known.keys())
        if unknown:
            names = ", ".join(known) or "none"
            raise ValueError(f"query {self.name} has no parameter {unknown[0]!r}; it takes: {names}")
        missing = [param.name for param in self.params if param.required and param.name not in given]
        if missing:
            raise ValueError(f"query {self.name} needs the parameter {missing[0]!r}")
        return {name: param.parse(given[name]) if name in given else param.default for name, param in known.items()}


def view_text(name: str) -> str:
    """The one statement that makes a view or macro; raises KeyError on an unknown name."""
    if name not in (*VIEWS, *MIX_VIEWS):
        raise KeyError(f"no view {name!r}; there are: {', '.join((*VIEWS, *MIX_VIEWS))}")
    return _read("views", name)


def describe_view(name: str) -> str:
    """The opening comment of a view or macro: what a row is, its units and its key."""
    return _header(operator_view(name) if name in OPERATOR_VIEWS else view_text(name))[0]


def operator_view(name: str) -> str:
    """The one statement that makes a view of OPERATOR_VIEWS."""
    return _read("operator", name)


def query_names() -> list[str]:
    """Names of the queries, sorted."""
    folder = resources.files(__name__).joinpath("queries")
    return sorted(item.name.removesuffix(".sql") for item in folder.iterdir() if item.name.endswith(".sql"))


def load_query(name: str) -> Query:
    """A named query; raises KeyError listing the names there are."""
    if name not in query_names():
        raise KeyError(f"no query {name!r}; there are: {', '.join(query_names())}")
    text = _read("queries", name)
    doc, declared = _header(text)
    return Query(name, doc, tuple(_declared_param(name, line) for line in declared), text)


@cache  # parsed once: every mix asks for them
def wide_query(name: str) -> Query:
    """A query of `wide/`, over a pool's rows (`curator.query.gaps`); KeyError on an unknown name."""
    if name not in ("bound", "gap", "gap_rows", "loss"):
        raise KeyError(f"no wide query {name!r}; there are: bound, gap, gap_rows, loss")
    text = _read("wide", name)
    doc, declared = _header(text)
    return Query(name, doc, tuple(_declared_param(name, line) for line in declared), text)


@cache  # files of the package, which no process sees change; every mix asks for them
def _read(folder: str, name: str) -> str:
    return resources.files(__name__).joinpath(folder, f"{name}.sql").read_text(encoding="utf-8")


def _header(text: str) -> tuple[str, list[str]]:
    doc: list[str] = []
    declared: list[str] = []
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        comment = line[2:].removeprefix(" ")
        if comment.startswith("param:"):
            declared.append(comment.removeprefix("param:").strip())
        else:
            doc.append(comment)
    return "\n".join(doc), declared


def _declared_param(query: str, line: str) -> Param:
    name, kind, default, *meaning = line.split(maxsplit=3)
    bound = re.fullmatch(r"text\((\d+)\)", kind)
    kind = "text" if bound else kind
    if kind not in _PARAM_TYPES or not meaning:
        raise ValueError(f"query {query}: cannot read the declaration {line!r}")
    max_chars = int(bound[1]) if bound else None
    param = Param(name, _PARAM_TYPES[kind], None, default == "required", meaning[0], max_chars)
    return param if param.required else replace(param, default=param.parse(default))


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError("not a whole number")
    return int(number)


def _text_list(given: Value) -> list[str]:
    if isinstance(given, str):
        return [] if given == "[]" else [item.strip() for item in given.split(",") if item.strip()]
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        return [str(item) for item in given]
    raise ValueError(f"expected a list of texts, not {given!r}")


def _numbers(given: Value) -> list[float]:
    if isinstance(given, list) and all(isinstance(item, int | float) for item in given):
        return [float(item) for item in given]
    raise ValueError(f"expected a list of numbers, not {given!r}")
