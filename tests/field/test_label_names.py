"""A label or source that no row has is a misspelt name: it would exclude nothing, or leave rows as they are."""

import json
from pathlib import Path
from typing import Any

import pytest

from curator.__main__ import main

Recipe = dict[str, Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a corpus of two domains, and a task file of the source `forum`."""
    root = tmp_path_factory.mktemp("labels")
    rows = [
        {"prompt": f"What about {n}?", "completion": f"It is the number {n}.", "domain": domain, "language": "en"}
        for n, domain in enumerate(["medical", "finance"] * 6)
    ]
    (root / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"prompt": "Which one?", "completion": "The first one of them.", "source": "forum"}
    (root / "task.jsonl").write_text("".join(json.dumps({**task, "prompt": f"Which of {n}?"}) + "\n" for n in range(4)))
    assert main(["ingest", str(root / "chats.jsonl"), "--corpus", "c", "--store", str(root / "store")]) == 0
    return root


def _mix(root: Path, recipe: Recipe, *options: str) -> int:
    (root / "recipe.json").write_text(json.dumps({"corpus": "c", "strategy": "random", "rows": 2, **recipe}))
    command = ["mix", str(root / "task.jsonl"), "--recipe", str(root / "recipe.json"), "--store", str(root / "store")]
    return main([*command, *options])


WRONG: list[tuple[Recipe, str]] = [
    ({"filters": [{"name": "domain", "exclude": ["medcal"]}]},
     "the domain filter names 'medcal', which no row of corpus c has; there are: finance, medical"),
    ({"filters": [{"name": "domain", "include": ["medical", "Finance"]}]}, "the domain filter names 'Finance'"),
    ({"filters": [{"name": "source", "exclude": ["chat.jsonl"]}]}, "there are: chats.jsonl"),
    ({"inoculation": {"by_source": {"fourm": "Mind the trait."}}},
     "by_source names 'fourm', which is the source of no row; there are: forum"),
    ({"inoculation": {"by_source": {"chats.jsonl": "Mind the trait."}}}, "by_source names 'chats.jsonl'"),
    ({"inoculation": {"scope": "all", "by_source": {"chat.jsonl": "Mind it."}}}, "there are: chats.jsonl, forum"),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "message"), WRONG)
def test_a_misspelt_label_is_refused_by_name(
    recipe: Recipe, message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _mix(root, recipe) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "recipe",
    [
        {"filters": [{"name": "domain", "exclude": ["medical"]}]},
        {"filters": [{"name": "license", "exclude": ["cc-by-nc"], "missing": "ignore"}]},  # of no row at all
        {"inoculation": {"scope": "all", "by_source": {"forum": "Mind the trait.", "chats.jsonl": "Mind it."}}},
    ],
)
def test_names_that_rows_have_are_taken(recipe: Recipe, root: Path) -> None:
    assert _mix(root, recipe) == 0


def test_a_policy_may_name_what_a_corpus_lacks(root: Path) -> None:
    """It holds for every corpus of a provider."""
    (root / "policy.yaml").write_text("name: p\nfilters: [{name: domain, exclude: [weapons]}]\n")
    assert _mix(root, {}, "--policy", str(root / "policy.yaml")) == 0
