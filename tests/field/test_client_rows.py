"""The client takes rows as notebooks have them, and refuses in its own words what no service could take."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import polars as pl
import pytest

from curator.client import Client
from curator.errors import BadInputError

RECIPE: dict[str, Any] = {"corpus": "chats", "rows": 1}
CYCLE: list[Any] = []
CYCLE.append(CYCLE)
ROWS: list[dict[str, Any]] = [
    {"prompt": "Q", "completion": "A", "id": 3},
    {"prompt": "Q2", "completion": "B", "id": 4},
]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the client sends, instead of sending it."""
    found: list[Any] = []

    def request(_client: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response:
        found.append(json.loads(options["content"]))
        return httpx.Response(200, json={}, request=httpx.Request(method, "http://service.test" + path))

    monkeypatch.setattr(httpx.Client, "request", request)
    return found


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        iter(ROWS),
        pd.DataFrame(ROWS),
        pl.DataFrame(ROWS),
        pd.DataFrame(ROWS).to_dict("records"),
        [
            {"prompt": np.str_(row["prompt"]), "completion": row["completion"], "id": np.int64(row["id"])}
            for row in ROWS
        ],
        [
            {**row, "harm": np.nan, "license": float("nan"), "x": np.float32("nan")} for row in ROWS
        ],  # how a table says that nothing is there
    ],
    ids=["plain", "iterator", "pandas", "polars", "records", "numpy", "missing"],
)
def test_rows_of_notebooks_are_sent_as_json(rows: Any, sent: list[Any]) -> None:
    with Client("http://service.test") as client:
        client.preview_mix(rows, RECIPE)
    (body,) = sent
    body["rows"] = [{key: value for key, value in row.items() if value is not None} for row in body["rows"]]
    assert sent == [{"rows": ROWS, "recipe": RECIPE, "on_bad_rows": "refuse"}]


def test_arrays_are_lists_and_keys_keep_their_order(sent: list[Any]) -> None:
    turns = np.array([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], dtype=object)
    call = {"b": np.array([1, 2]), "a": (np.float32(1.5), np.bool_(True), None)}
    with Client("http://service.test") as client:
        client.preview_mix([{"messages": turns, "arguments": call}], {**RECIPE, "seed": np.int64(7)})
    (body,) = sent
    assert body["rows"][0]["messages"] == turns.tolist()
    assert json.dumps(body["rows"][0]["arguments"]) == '{"b": [1, 2], "a": [1.5, true, null]}'
    assert body["recipe"]["seed"] == 7


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (ROWS[0], "data is one record: give a list of records"),
        (7, "data is int"),
        ([ROWS[0], "text"], r"data\[1\] is str: a record is a mapping"),
        ([{"prompt": "\ud800", "completion": "A"}], r"data\[0\]/prompt holds half of a surrogate pair"),
        ([{"prompt": "Q", "completion": "A", "id": 2**70}], r"data\[0\]/id is a whole number over 64 bits"),
        ([ROWS[0], {"messages": [{1: 2}]}], r"data\[1\]/messages/0 has a key of type int"),
        ([{"messages": [{"x": float("inf")}]}], r"data\[0\]/messages/0/x is inf, which is not JSON"),
        ([{"messages": [{"x": float("nan")}]}], r"data\[0\]/messages/0/x is nan, which is not JSON"),
        ([{"prompt": "Q", "completion": "A", "x": CYCLE}], r"data\[0\] is nested too deeply, or holds itself"),
        ([{"prompt": Path("x")}], r"data\[0\]/prompt is PosixPath, which has no form in JSON"),
    ],
)
def test_what_cannot_be_sent_is_named(data: Any, match: str, sent: list[Any]) -> None:
    with Client("http://service.test") as client, pytest.raises(BadInputError, match=match):
        client.preview_mix(data, RECIPE)
    assert sent == []


def test_a_recipe_that_cannot_be_sent_is_named(sent: list[Any]) -> None:
    with Client("http://service.test") as client, pytest.raises(BadInputError, match="recipe/seed is a whole number"):
        client.preview_mix(ROWS, {**RECIPE, "seed": 2**70})
    assert sent == []
