"""docs/recipe.md is the reference of every key: each example parses, and each key, filter and strategy has one."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from curator.errors import RecipeError
from curator.recipe import (
    FilterSpec,
    Pool,
    Recipe,
    StrategySpec,
    parse_recipe,
)
from curator.recipe.inoculation import Inoculation
from curator.recipe.pools import Ensemble, ScoreSpec

PAGE = (Path(__file__).parents[1] / "docs" / "recipe.md").read_text(encoding="utf-8")
EXAMPLES: list[Any] = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]


def keys_of(document: Any) -> set[str]:
    """Every mapping key anywhere in a document."""
    if isinstance(document, dict):
        return set(document).union(*map(keys_of, document.values()))
    return set().union(*map(keys_of, document)) if isinstance(document, list) else set()


def names_of(union: Any) -> dict[str, type[BaseModel]]:
    """The models of a discriminated union by each name that they go by."""
    models = get_args(get_args(union)[0])
    return {name: model for model in models for name in get_args(model.model_fields["name"].annotation)}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda item: "+".join(item))
def test_every_example_parses_and_survives_a_round_trip(example: Any) -> None:
    recipe = parse_recipe(example)
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


def test_a_key_that_is_not_known_is_refused_everywhere() -> None:
    for example in EXAMPLES:
        with pytest.raises(RecipeError, match="recipe refused"):
            parse_recipe({**example, "no_such_key": 1})


@pytest.mark.parametrize("model", [Recipe, Pool, ScoreSpec, Ensemble, Inoculation])
def test_every_key_has_an_example(model: type[BaseModel]) -> None:
    shown = set().union(*map(keys_of, EXAMPLES))
    assert model.model_fields.keys() - shown == set()


@pytest.mark.parametrize("union", [FilterSpec, StrategySpec], ids=["filters", "strategies"])
def test_every_filter_and_strategy_has_a_section_and_an_example_of_each_setting(union: Any) -> None:
    written = [
        spec for example in EXAMPLES for spec in [*example.get("filters", []), example.get("strategy", "top_gap")]
    ]
    for name, model in names_of(union).items():
        assert re.search(rf"^###.*`{name}`", PAGE, re.M), f"{name} has no section"
        shown = [set(spec) if isinstance(spec, dict) else {"name"} for spec in written if _name(spec) == name]
        assert shown, f"{name} has no example"
        if name not in ("domain", "language", "license", "source"):
            assert model.model_fields.keys() <= set().union(*shown), f"{name}: a setting has no example"


def _name(spec: Any) -> str:
    return spec if isinstance(spec, str) else str(spec["name"])


def test_every_amount_and_choice_is_named() -> None:
    for field in ("when_short", "score", "order"):
        annotation = {**Pool.model_fields, **Recipe.model_fields}[field].annotation
        choices = get_args(ScoreSpec.model_fields["name"].annotation if field == "score" else annotation)
        assert choices
        missing = [choice for choice in choices if f"`{choice}`" not in PAGE]
        assert not missing, f"{field}: {missing}"


WRONG = [
    ({"corpus": "c", "rows": 1, "tokens": 1}, "exactly one amount, not rows and tokens"),
    ({"corpus": "c", "strategy": "threshold"}, "needs `min` or `max`"),
    ({"corpus": "c", "strategy": {"name": "threshold", "min": 2, "max": 1}}, "`min` is above its `max`"),
    ({"corpus": "c", "strategy": {"name": "quantile_band", "low": 0.5, "high": 0.5}}, "`low` must be below"),
    ({"corpus": "c", "strategy": {"name": "stratified", "by": "domain", "quotas": {}}}, "name no value"),
    ({"corpus": "c", "strategy": "bottom_gap"}, "allow_negative_control"),
    ({"corpus": "c", "strategy": "best"}, "'best' is not a known name: use one of 'random', 'top_gap'"),
    ({"corpus": "c", "filters": ["domain"]}, "needs `include` or `exclude`"),
    ({"corpus": "c", "filters": [{"name": "domain", "include": ["a"], "exclude": ["a"]}]}, "includes and excludes a"),
    ({"corpus": "c", "filters": ["length"]}, "at least one bound"),
    ({"corpus": "c", "filters": [{"name": "length", "min_chars": 2, "max_chars": 1}]}, "lower bound is above"),
    ({"corpus": "c", "filters": ["contamination"]}, "sets: is needed and not there"),
    ({"corpus": "c", "filters": [{"name": "contamination", "sets": ["../x"]}]}, "sets/0"),
    ({"corpus": "c", "filters": ["refusal", "refusal"]}, "one refusal filter"),
    ({"corpus": "c", "ensemble": "weighted"}, "give `weights` with"),
    ({"corpus": "c", "ensemble": {"reducer": "mean", "weights": {"a": 1}}}, "give `weights` with"),
    ({"corpus": "c", "ensemble": {"reducer": "weighted", "weights": {"a": 0}}}, "above 0"),
    ({"corpus": "c", "when_short": "cycle"}, "`max_copies`"),
    ({"corpus": "c", "max_copies": 2}, "`max_copies`"),
    ({"corpus": "c", "score": "ppl"}, "score/name: 'ppl' is none of 'gap_rel'"),
    ({"corpus": "c", "rows": -1}, "/pools/0/rows: -1 must be at least 0"),
    ({"corpus": "c", "rows": 1.5}, "expected a whole number, found 1.5"),
    ({"corpus": "c", "whatever": 1}, "/pools/0/whatever: is not a known key"),
    ({"corpus": "c", "strategy": {"nam": "x"}}, "a key `name` is needed"),
    ({"corpus": "c", "filters": "refusal"}, "expected a list, found 'refusal'"),
    ([1], "expected an object, found [1]"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "message"), WRONG, ids=lambda item: item if isinstance(item, str) else "")
def test_what_makes_no_sense_is_refused_by_name(document: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse_recipe(document)
