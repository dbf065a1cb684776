"""Names and texts that no store holds: 404 or 422 over HTTP, and nothing of them in a log."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.serving import form, scored_store, started, task_rows


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    root: Path = tmp_path_factory.mktemp("names")
    scored_store(root)
    with started(root, "--log-level", "info") as (process, url):
        yield process, url


LONG = "secret" * 60


@pytest.mark.parametrize("corpus", [LONG, "a\\b", "a:b", "..", ".hidden", "\ud800", "a" * 101])
def test_a_corpus_that_cannot_be_is_refused_by_its_name(served: tuple[Any, str], corpus: str) -> None:
    body = json.dumps({"rows": task_rows(3), "recipe": {"corpus": corpus}}).encode()
    answer = httpx.post(f"{served[1]}/v1/mixes", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    body = json.dumps({"rows": task_rows(3), "audit": {"corpus": corpus}}).encode()
    answer = httpx.post(f"{served[1]}/v1/audits", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize("path", ["", "/gap"])
@pytest.mark.parametrize("corpus", [LONG, "a%5Cb", ".hidden", "a%00b", "%F0%9F%98%80" * 50])
def test_a_path_with_a_name_that_cannot_be_is_404(served: tuple[Any, str], corpus: str, path: str) -> None:
    assert httpx.get(f"{served[1]}/v1/corpora/{corpus}{path}").status_code == 404


@pytest.mark.parametrize("path", ["mixes", "jobs", "audits"])
def test_ids_that_cannot_be_are_404(served: tuple[Any, str], path: str) -> None:
    assert httpx.get(f"{served[1]}/v1/{path}/{LONG}").status_code == 404


@pytest.mark.parametrize("name", ["inoculation", "revision", "aligned"])
def test_half_of_a_surrogate_pair_is_422(served: tuple[Any, str], name: str) -> None:
    recipe = {"corpus": "chats", "rows": 1, name: "\ud800"}
    body = json.dumps({"rows": task_rows(3), "recipe": recipe}).encode()
    answer = httpx.post(f"{served[1]}/v1/mixes", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_recipe")
    answer = httpx.post(f"{served[1]}/v1/mixes", **form(task_rows(3), recipe))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_recipe")


@pytest.mark.parametrize(
    ("recipe", "found"),
    [
        ("corpus: chats\nrows: 1:1", "'1:1'"),
        ("corpus: chats\nrows: 1\nrows: 2", "stands twice"),
        ("corpus: chats\nrows: yes", "'yes'"),
        ("corpus: chats\nstrategy: {name: threshold, min: .nan}", "nan"),
    ],
)
def test_yaml_is_read_as_it_stands(served: tuple[Any, str], recipe: str, found: str) -> None:
    files = {"file": ("a.jsonl", json.dumps(task_rows(1)[0]).encode())}
    answer = httpx.post(f"{served[1]}/v1/mixes", files=files, data={"recipe": recipe})
    assert answer.status_code == 422
    assert found in answer.json()["error"]["message"]


def test_a_recipe_of_a_json_body_is_no_larger_than_one_of_a_form(served: tuple[Any, str]) -> None:
    recipe = {"corpus": "chats", "hold_out": ["a" * 190] * 400}
    answer = httpx.post(f"{served[1]}/v1/mixes", json={"rows": task_rows(1), "recipe": recipe})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_nothing_of_the_names_is_logged(served: tuple[Any, str]) -> None:
    """The last test: it ends the service to read its log."""
    process, url = served
    assert httpx.get(f"{url}/v1/corpora/{LONG}").status_code == 404
    process.terminate()
    _, log = process.communicate(timeout=60)
    assert "/v1/corpora/{corpus}" in log
    assert "secret" not in log
    assert '"status":500' not in log
