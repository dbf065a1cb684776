"""docs/service.md names every error code that the service can answer and every setting it has."""

import ast
import re
from pathlib import Path

import pytest

from api.jobs.record import STATES
from api.settings import Settings
from api.tenancy.keys import SCOPES
from curator.errors import RemoteError

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "service.md").read_text()
# Calls whose arguments hold a code, and at which place.
CALLS = {"ApiError": 1, "error_response": 1, "_Refusal": 0}
CODE = re.compile(r"[a-z][a-z0-9_]{2,40}")


def _codes_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            values = [item.value for item in node.body if isinstance(item, ast.Assign) and _names(item) == ["code"]]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            place = CALLS.get(node.func.id)
            values = [] if place is None or len(node.args) <= place else [node.args[place]]
            values += [word.value for word in node.keywords if word.arg == "code" and node.func.id == "JobError"]
        else:
            continue
        found |= {item.value for item in values if isinstance(item, ast.Constant) and isinstance(item.value, str)}
    return found


def _names(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def codes() -> set[str]:
    files = [*(ROOT / "api").rglob("*.py"), *(ROOT / "curator").rglob("*.py")]
    return set().union(*(_codes_of(path) for path in files))


def test_the_walk_finds_codes_of_every_kind() -> None:
    found = codes()
    assert {"bad_rows", "busy", "foreign_host", "worker_died", "storage_full", "not_ready"} <= found
    assert all(CODE.fullmatch(code) for code in found)
    assert len(found) > 40


@pytest.mark.parametrize("code", sorted(codes() - {RemoteError.code}))  # the client's own
def test_every_error_code_is_documented(code: str) -> None:
    assert f"`{code}`" in DOCS


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    assert f"`{name}`" in DOCS


def test_scopes_and_states_are_documented() -> None:
    assert not [name for name in (*SCOPES, *STATES) if f"`{name}`" not in DOCS]
