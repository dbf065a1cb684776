"""Arrow values as the records of a JSON file would hold them: what a column's type says of them is applied.

Text of the type JSON (`arrow.json`: `Json()` of `datasets`, JSON of DuckDB) is the value that it encodes, as `datasets`
reads it; a map with text keys is an object; a null field of a struct is an absent one. A null that somebody wrote
inside JSON text or as a map's value stays.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from curator.corpus.formats.json_decode import UndecodableError, decode
from curator.corpus.formats.rows import Problem

Convert = Callable[[Any, str], Any]  # a value other than null and its JSON pointer, to the value meant


class ValueFaultError(Exception):
    """A value is not what its column's type says."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def record_converter(schema: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """From rows as Arrow gives them to records; raises ValueFaultError for one whose JSON or map is broken.

    Raises it at once for a column of objects that have one field twice, which no value can be made of.
    """
    convert = _struct({field.name: converter(field.type, f"/{field.name}") for field in schema})
    return lambda row: convert(row, "")


def converter(kind: Any, at: str) -> Convert | None:
    """What values of an Arrow type, of the column that `at` points to, need; None where they are right as they stand.

    Raises ValueFaultError as `record_converter` says.
    """
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.JsonType):
        return _json_text
    if isinstance(kind, pa.UuidType):
        return lambda value, _at: str(value)
    if isinstance(kind, pa.BaseExtensionType):
        return converter(kind.storage_type, at)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return converter(kind.value_type, at)
    if types.is_struct(kind):
        if twice := name_twice(field.name for field in kind):
            raise ValueFaultError(Problem(at, "duplicate_key", f"two fields {twice!r} in one object: keep one"))
        return _struct({field.name: converter(field.type, at) for field in kind})
    if types.is_map(kind):
        return _map(converter(kind.item_type, at)) if _is_text(kind.key_type) else None
    is_list = (
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    )
    if any(fits(kind) for fits in is_list):
        return _list(converter(kind.value_type, at))
    return None


def name_twice(names: Iterable[str]) -> str | None:
    """The first of the names that stand there twice; None without one."""
    return next((name for name, n in Counter(names).items() if n > 1), None)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return any(fits(kind) for fits in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _json_text(text: Any, at: str) -> Any:
    try:
        return decode(text.encode(), 0)
    except UndecodableError as error:
        problem = Problem(at, error.problem.code, f"the column's type is JSON: {error.problem.message}")
        raise ValueFaultError(problem) from error


def _struct(fields: Mapping[str, Convert | None]) -> Convert:
    def convert(value: Any, at: str) -> Any:
        found = {}
        for key, item in value.items():
            if item is None:
                continue
            inner = fields[key]
            found[key] = item if inner is None else inner(item, f"{at}/{key}")
        return found

    return convert


def _list(inner: Convert | None) -> Convert | None:
    if inner is None:
        return None
    return lambda value, at: [
        None if item is None else inner(item, f"{at}/{index}") for index, item in enumerate(value)
    ]


def _map(inner: Convert | None) -> Convert:
    def convert(value: Any, at: str) -> Any:
        found: dict[str, Any] = {}
        for key, item in value:
            if key in found:
                raise ValueFaultError(Problem(at, "duplicate_key", f"key {key!r} stands twice in one map: keep one"))
            found[key] = item if inner is None or item is None else inner(item, f"{at}/{key}")
        return found

    return convert
