"""Junk is left out of a mix unless the recipe turns that off by name."""

import argparse
from typing import Any

import pytest

from curator.cli import mix
from curator.recipe import parse_recipe
from curator.recipe.filters import HygieneFilter, LengthFilter, RefusalFilter, default_filters
from curator.recipe.policy import Policy, under_policy
from tests.pools import Row, candidates_of, filtered, strategy_of


def test_hygiene_and_a_least_length_are_in_every_recipe() -> None:
    found = parse_recipe({"corpus": "chats"}).pools[0].filters
    assert found == (RefusalFilter(), HygieneFilter(), LengthFilter(min_tokens=4, missing="ignore"))
    assert set(HygieneFilter().checks) == {"template_marker", "no_question", "empty", "looped"}


def test_the_defaults_drop_junk_and_say_why() -> None:
    rows = {
        "hygiene:empty": Row("\u200b", n_tokens=9, row_id="a"),
        "hygiene:no_question": Row(prompt=" \ufeff", n_tokens=9, row_id="b"),
        "hygiene:looped": Row("ha ha ha", n_tokens=9, row_id="c"),
        "hygiene:template_marker": Row("Yes.<|im_end|>", n_tokens=9, row_id="d"),
        "length:short": Row("Yes.", n_tokens=3, row_id="e"),
        "refusal:v1": Row("I am sorry, I will not.", n_tokens=9, row_id="f"),
        None: Row("The Rhine.", n_tokens=4, row_id="g"),
    }
    result = filtered(candidates_of(list(rows.values())), default_filters(), strategy_of("random"))
    assert result.reason_column.to_list() == list(rows)


def test_rows_without_a_token_count_pass_and_are_counted() -> None:
    result = filtered(candidates_of([Row("The Rhine.")]), default_filters(), strategy_of("random"))
    assert result.reason_column.to_list() == [None]
    assert result.n_unjudged == {"length": 1}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ["refusal", "hygiene", "length"]),
        (["--without", "hygiene"], ["refusal", "length"]),
        (["--without", "length", "--without", "hygiene"], ["refusal"]),
        (["--refusals", "keep"], ["hygiene", "length"]),
        (["--refusals", "v2"], ["refusal", "hygiene", "length"]),
        (["--filter", "exact_duplicates"], ["refusal", "hygiene", "length", "exact_duplicates"]),
        (["--filter", "hygiene"], ["refusal", "hygiene", "length"]),
        (["--refusals", "keep", "--without", "hygiene", "--without", "length"], []),
    ],
)
def test_each_is_turned_off_by_name(options: list[str], names: list[str]) -> None:
    parser = argparse.ArgumentParser()
    mix.add_parser(parser.add_subparsers())
    args: Any = parser.parse_args(["mix", "task.jsonl", "--corpus", "chats", *options])
    filters = mix._recipe(args).pools[0].filters
    assert [spec.name for spec in filters] == names
    rules = [spec.rule for spec in filters if isinstance(spec, RefusalFilter)]
    assert rules == (["v2"] if "v2" in options else ["v1"] if "refusal" in names else [])
    assert all(spec.min_tokens == 4 for spec in filters if isinstance(spec, LengthFilter))


@pytest.mark.parametrize(
    ("listed", "names"),
    [([], []), (["near_duplicates"], ["near_duplicates"]), (["hygiene", "refusal"], ["hygiene", "refusal"])],
)
def test_a_list_takes_the_place_of_the_default_as_a_whole(listed: list[str], names: list[str]) -> None:
    other = {"corpus": "others", "rows": 1}
    pools = parse_recipe({"pools": [{"corpus": "chats", "filters": listed}, other]}).pools
    assert [spec.name for spec in pools[0].filters] == names
    assert pools[1].filters == default_filters()


def test_a_policy_adds_to_the_default_and_to_a_list() -> None:
    policy = Policy.model_validate({"name": "p", "filters": [{"name": "hygiene"}, {"name": "length", "min_tokens": 9}]})
    for given, names in (
        ({}, ["refusal", "hygiene", "length", "length"]),
        ({"filters": ["near_duplicates"]}, ["near_duplicates", "hygiene", "length"]),
    ):
        recipe = under_policy(policy, parse_recipe({"corpus": "chats", **given}))
        assert [spec.name for spec in recipe.pools[0].filters] == names
