"""docs/openai.md names every code that this form answers."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "openai.md").read_text()
CALLS = {"refused": 1, "_failed": 1}


def codes() -> set[str]:
    found = set()
    for path in (ROOT / "api" / "openai").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
                code = node.args[CALLS[node.func.id]] if len(node.args) > CALLS[node.func.id] else None
                if isinstance(code, ast.Constant):
                    found.add(code.value)
    return found - {"not_found", "unsupported_content_type"}  # the service's own, on its page


@pytest.mark.parametrize("code", sorted(codes()))
def test_every_code_stands_on_the_page(code: str) -> None:
    assert f"`{code}`" in DOCS


def test_the_page_begins_with_what_to_change() -> None:
    assert DOCS.split("\n\n")[1] == "Change `base_url`, keep your script:"
