"""Integers beyond 64 bits are refused in a recipe before any work."""

import pytest

from curator.errors import RecipeError
from curator.recipe import parse_recipe


@pytest.mark.parametrize(
    ("document", "pointer"), [({"rows": 2**70}, "/rows"), ({"filters": [{"a": -(2**64)}]}, "/filters/0/a")]
)
def test_an_integer_that_no_manifest_could_hold_is_refused(document: dict[str, object], pointer: str) -> None:
    with pytest.raises(RecipeError, match=pointer):
        parse_recipe({"corpus": "c", **document})


def test_the_largest_that_fits_is_judged_by_its_field() -> None:
    assert parse_recipe({"corpus": "c", "rows": 2**62}).pools[0].rows == 2**62
