"""Prefix, query and postfix tokens over all template families."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from curator.render import (
    OTHER,
    POSTFIX,
    PREFIX,
    QUERY,
    Rendered,
    Renderer,
)
from tests.chat_templates import FAMILIES, Family

USERS = ("Where is the station?", "  And the next one,\nGrüße? ")
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": USERS[0]},
    {"role": "assistant", "content": "Down the road."},
    {"role": "user", "content": USERS[1]},
    {"role": "assistant", "content": "Far away."},
]


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Family, Renderer, Tokenizer]:
    family: Family = request.param
    folder = family.folder(tmp_path)
    return family, Renderer.from_folder(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))


def runs(rendered: Rendered) -> list[tuple[int, list[int]]]:
    """Runs of equal class, as (class, ids)."""
    assert rendered.token_classes is not None
    ids, classes = rendered.input_ids, rendered.token_classes
    edges = [0, *(np.flatnonzero(np.diff(classes)) + 1).tolist(), len(classes)]
    return [(int(classes[a]), ids[a:b].tolist()) for a, b in pairwise(edges)]


def test_classes_follow_the_turns(case: tuple[Family, Renderer, Tokenizer]) -> None:
    family, renderer, tokenizer = case
    rendered = renderer.render(MESSAGES, classes=True)
    found = runs(rendered)
    assert [kind for kind, _ in found] == [PREFIX, QUERY, POSTFIX, OTHER, QUERY, POSTFIX, OTHER]
    queries = [tokenizer.decode(ids) for kind, ids in found if kind == QUERY]
    assert [query.strip() for query in queries] == [text.strip() for text in USERS]
    assert rendered.token_classes is not None
    assert not (rendered.response_mask & (rendered.token_classes != OTHER)).any()
    # The prefix is what stands before any user's text: the same tokens whatever the user says, up to the space that
    # sentencepiece joins to a word.
    other = runs(renderer.render([{"role": "user", "content": "Zebra"}, *MESSAGES[1:]], classes=True))[0][1]
    n_same = min(len(other), len(found[0][1]))
    assert other[:n_same] == found[0][1][:n_same]
    assert abs(len(other) - len(found[0][1])) <= (family.options.get("kind") == "metaspace")


def test_classes_change_nothing_else(case: tuple[Family, Renderer, Tokenizer]) -> None:
    _, renderer, _ = case
    for rule in ("all", "last"):
        plain, classed = renderer.render(MESSAGES, rule), renderer.render(MESSAGES, rule, classes=True)
        assert plain.token_classes is None
        np.testing.assert_array_equal(plain.input_ids, classed.input_ids)
        np.testing.assert_array_equal(plain.response_mask, classed.response_mask)


def test_a_system_turn_belongs_to_the_prefix(case: tuple[Family, Renderer, Tokenizer]) -> None:
    family, renderer, tokenizer = case
    if not family.system:
        pytest.skip("the template takes no system turn")
    rendered = renderer.render([{"role": "system", "content": "Be brief."}, *MESSAGES[:2]], classes=True)
    kind, ids = runs(rendered)[0]
    assert kind == PREFIX
    queries = [tokenizer.decode(found) for kind, found in runs(rendered) if kind == QUERY]
    assert [query.strip() for query in queries] == [USERS[0]]
    before = tokenizer.decode(rendered.input_ids.tolist()).partition(USERS[0])[0]
    assert ("Be brief." in tokenizer.decode(ids)) == ("Be brief." in before)  # some put it into a later turn


def test_without_a_user_turn_all_before_the_answer_is_prefix(tmp_path: Path) -> None:
    renderer = Renderer.from_folder(FAMILIES[0].folder(tmp_path))
    rendered = renderer.render(
        [{"role": "system", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], classes=True
    )
    assert rendered.token_classes is not None
    n_prefix = int((rendered.token_classes == PREFIX).sum())
    assert n_prefix == int(np.flatnonzero(rendered.response_mask)[0])
    assert (rendered.token_classes[n_prefix:] == OTHER).all()
