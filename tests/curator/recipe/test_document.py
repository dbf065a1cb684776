"""A recipe's text and values: what YAML 1.2 says, no value taken for another, and bounds on everything."""

import json
import re
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from curator.audit.options import AuditOptions, parse_options
from curator.errors import BadInputError, RecipeError
from curator.recipe import Recipe, parse_recipe
from curator.recipe.base import Spec
from curator.recipe.document import load_document
from curator.recipe.policy import Policy, parse_policy


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:1", "1:1"),
        ("010", 10),
        ("yes", "yes"),
        ("on", "on"),
        ("2020-01-01", "2020-01-01"),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("~", None),
        ("", None),
        ('{"b": [true, null, 1.5e-3]}', {"b": [True, None, 0.0015]}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert load_document(f"a: {text}") == {"a": value}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rows: 1\nrows: 2", "'rows' stands twice"),
        ('{"pools": [{"corpus": "a", "corpus": "b"}]}', "'corpus' stands twice"),
        ("a: &x 1\nb: *x", "aliases"),
        ("a: [", "neither JSON nor YAML at line 1"),
        ("a: " + "9" * 5000, "cannot hold"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_texts_that_are_not_taken(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_document(text)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"rows": True}, "/rows: expected a number, found True"),
        ({"rows": "2"}, "/rows: expected a number, found '2'"),
        ({"interleave_ratio": "0.1"}, "/interleave_ratio: expected a number"),
        ({"rows": 1, "allow_negative_control": "yes"}, "/allow_negative_control: expected true or false"),
        ({"filters": ["refusal", {"name": "hygiene", "max_repeated": "0.5"}]}, "/filters/1/max_repeated: expected a n"),
        ({"strategy": {"name": "stratified", "by": "domain", "quotas": {"a": True}}}, "/strategy/quotas/a: expected"),
        ({"strategy": {"name": "threshold", "min": float("nan")}}, "/strategy/min: nan"),
        ({"strategy": {"name": "threshold", "max": float("inf")}}, "/strategy/max: inf"),
        ({"strategy": {"name": "weighted", "temperature": 5e-324}}, "temperature: 5e-324 must be at least 1e-06"),
        ({"corpus": "a" * 300}, "does not fit the pattern"),
        ({"corpus": "../chats"}, "does not fit the pattern"),
        ({"hold_out": ["a" * 201]}, "/pools/0/hold_out/0: .*at most 200"),
        ({"hold_out": ["a"] * 257}, "/pools/0/hold_out: .*at most 256"),
        ({"hold_out": ["a"] * 100_000}, "/hold_out: 100,000 items: at most 1,000"),
        (
            {"strategy": {"name": "stratified", "by": "source", "quotas": {f"d{n}": 1 for n in range(100_000)}}},
            "100,000",
        ),
        ({"filters": [{"name": "source", "exclude": [f"d{n}" for n in range(200_000)]}]}, "200,000 items"),
        ({"inoculation": "x" * 100_000}, "a text of 100,000 characters"),
        ({"seed": [[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]}, "nested too deeply"),
    ],
)
def test_recipes_that_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as refused:
        parse_recipe({"corpus": "chats", **more})
    assert len(refused.value.message) < 5_000


def test_whole_numbers_are_taken_where_any_number_is() -> None:
    assert parse_recipe({"corpus": "chats", "interleave_ratio": 1}).pools[0].interleave_ratio == 1.0


@pytest.mark.parametrize(
    "recipe",
    [
        {"interleave_ratio": 0},
        {"mix_share": 0},
        {"interleave_ratio": 0, "score": {"name": "gap_rel", "eps": 0}},
        {"ensemble": {"reducer": "weighted", "weights": {"m-b": 1, "m-a": 0}}},
        {"strategy": {"name": "threshold", "min": 0}},
        {"strategy": {"name": "quantile_band", "low": 0, "high": 0.5}},
        {"filters": [{"name": "refusal", "max_share": 0}]},
    ],
)
def test_a_zero_with_a_minus_is_the_same_recipe(recipe: dict[str, Any]) -> None:
    plain = json.dumps({"corpus": "chats", **recipe})
    minus = re.sub(r": 0(?=[,}])", ": -0.0", plain)
    assert minus != plain
    texts = {parse_recipe(load_document(text)).model_dump_json() for text in (plain, minus)}
    assert len(texts) == 1
    assert "-0.0" not in texts.pop()


def test_every_model_of_a_recipe_writes_zero_one_way() -> None:
    """A model with another base would let -0.0 through to the id."""
    models = {*_models(Recipe), *_models(Policy), *_models(AuditOptions)}
    assert len(models) > 15
    for model in models:
        assert issubclass(model, Spec), model.__name__


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from _models(field.annotation)
    for part in get_args(kind):
        yield from _models(part)


def _text_fields(kind: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a model's documents may hold texts, as the steps to them; a list by its first item."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield from _text_fields(field.annotation, (*at, name))
    elif kind is str:
        yield at
    elif get_origin(kind) in (Union, UnionType):
        for part in get_args(kind):
            yield from _text_fields(part, at)
    elif get_origin(kind) is tuple:
        yield from _text_fields(get_args(kind)[0], (*at, 0))
    elif get_origin(kind) is dict:
        yield (*at, "\ud800")
        yield from _text_fields(get_args(kind)[1], (*at, "key"))
    elif get_args(kind):  # Annotated
        yield from _text_fields(get_args(kind)[0], at)


def _document(steps: tuple[Any, ...]) -> Any:
    value: Any = "half \ud800 a pair"
    for step in reversed(steps):
        value = [value] if step == 0 else {step: value}
    return value


MODELS: list[tuple[type[BaseModel], Any]] = [
    (Recipe, parse_recipe),
    (AuditOptions, parse_options),
    (Policy, parse_policy),
]
FIELDS = [(parse, steps) for kind, parse in MODELS for steps in dict.fromkeys(_text_fields(kind))]


def test_every_text_field_is_among_those_tried() -> None:
    names = {step for _, steps in FIELDS for step in steps}
    assert {"corpus", "hold_out", "quotas", "prompts", "by_source", "clean_prompt", "exclude", "keep", "name"} <= names


@pytest.mark.parametrize(("parse", "steps"), FIELDS)
def test_half_of_a_surrogate_pair_is_refused_in_every_text_field(parse: Any, steps: tuple[Any, ...]) -> None:
    with pytest.raises(BadInputError, match="half of a surrogate pair") as refused:
        parse(_document(steps))
    refused.value.message.encode()
