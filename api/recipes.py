"""The part of a request that says what to do with the rows: JSON or YAML, decoded without running anything and without
room to blow up."""

from typing import Any

import yaml

from api.errors import ApiError
from api.uploads import Upload
from curator.errors import BadInputError, RecipeError


class _AliasError(ValueError):
    pass


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Safe YAML without aliases, which let a few bytes stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise _AliasError
        return super().compose_node(parent, index)


def part_document(upload: Upload, name: str) -> dict[str, Any]:
    """The object that the part `name` (recipe or audit) of an upload holds; JSON text is read as the YAML it is.

    Raises ApiError 422 when there is no such part; RecipeError (BadInputError for an audit) when it is no object,
    naming the line where it is neither JSON nor YAML.
    """
    if name not in upload.fields:
        raise ApiError(422, "missing_part", f'the {name} is missing: the least is {{"corpus": NAME}}')
    part = upload.fields[name]
    try:
        document = _decode(part) if isinstance(part, str) else part
        if not isinstance(document, dict):
            raise ValueError("it must be an object (JSON) or a mapping (YAML)")
    except ValueError as error:
        refused = RecipeError if name == "recipe" else BadInputError
        raise refused(f"{name} refused: {error}") from error
    return document


def _decode(text: str) -> Any:
    """Raises ValueError with a line for people."""
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except _AliasError as error:
        raise ValueError("YAML aliases (*name) are not taken; write the value out") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ValueError(f"neither JSON nor YAML{place}") from error
    except (RecursionError, ValueError) as error:
        raise ValueError("nested too deeply, or a value that YAML cannot hold") from error
