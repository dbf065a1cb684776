"""Rows of notebooks as JSON has them: numpy's values become plain ones, and what JSON cannot hold is named."""

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from curator.errors import BadInputError


def plain_rows(data: Any) -> list[dict[str, Any]]:
    """Records as JSON has them; tables of pandas and Polars give their rows. Raises BadInputError naming the row."""
    if isinstance(data, Mapping):
        raise BadInputError("data is one record: give a list of records, or the path of a file")
    if hasattr(data, "columns") and hasattr(data, "to_dict"):
        data = data.to_dict("records") if not hasattr(data, "to_dicts") else data.to_dicts()
    if not isinstance(data, Iterable):
        raise BadInputError(f"data is {type(data).__name__}: give a list of records, or the path of a file")
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(data):
        if not isinstance(row, Mapping):
            raise BadInputError(f"data[{number}] is {type(row).__name__}: a record is a mapping of fields")
        present = {key: value for key, value in row.items() if not _is_missing(value)}
        rows.append(plain_value(present, f"data[{number}]"))
    return rows


def _is_missing(value: Any) -> bool:
    """Whether this is what a table has in place of a missing value: NaN, or pandas' NA and NaT."""
    return (isinstance(value, Real) and math.isnan(value)) or type(value).__name__ in ("NAType", "NaTType")


def plain_value(value: Any, at: str) -> Any:
    """The value with numpy's scalars and arrays as JSON has them; BadInputError for what JSON cannot hold."""
    try:
        return _plain(value, at)
    except RecursionError as error:
        raise BadInputError(f"{at} is nested too deeply, or holds itself") from error


def _plain(value: Any, at: str) -> Any:
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise BadInputError(f"{at} has a key of type {type(wrong[0]).__name__}: keys are texts")
        return {_plain(str(key), at): _plain(item, f"{at}/{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{at}/{number}") for number, item in enumerate(value)]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadInputError(f"{at} holds half of a surrogate pair, which no file can store") from error
        return str(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise BadInputError(f"{at} is a whole number over 64 bits: write it as text")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInputError(f"{at} is {value}, which is not JSON: use None")
    if isinstance(value, int | float):
        return value
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return _plain(value.tolist(), at)
    raise BadInputError(f"{at} is {type(value).__name__}, which has no form in JSON")
