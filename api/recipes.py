"""A recipe as text: JSON or YAML, decoded without running anything and without room to blow up."""

from typing import Any

import yaml

from curator.errors import RecipeError


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Safe YAML without aliases, which let a few bytes stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise RecipeError("recipe refused: YAML aliases (*name) are not taken; write the value out")
        return super().compose_node(parent, index)


def decode_recipe(text: str) -> Any:
    """The document that a recipe's text holds (JSON is read as the YAML it is).

    Raises RecipeError when it is neither, naming the line.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except RecipeError:  # a ValueError too
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise RecipeError(f"recipe refused: neither JSON nor YAML{place}") from error
    except (RecursionError, ValueError) as error:
        raise RecipeError("recipe refused: nested too deeply, or a value that YAML cannot hold") from error
