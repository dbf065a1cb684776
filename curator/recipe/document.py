"""Documents that people write, recipes above all: from text to a checked model, within bounds.

YAML is read as YAML 1.2 reads it, of which JSON is a part: `yes`, `1:30` and `010` are not a truth, 90 and 8. Before a
document is validated it is walked once, so that no field needs to think of what no file could hold or of a flood.
"""

import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ValidationError

from curator.errors import BadInputError, MissingError
from curator.recipe.problems import problem_line, problems_of

MAX_DOCUMENT_BYTES = 64 * 1024  # of a document that a stranger sends, as text
MAX_ITEMS = 1_000  # of one list or object
MAX_LEVELS = 20
MAX_TEXT_CHARS = 32 * 1024
_MAX_LISTED = 5
_NEITHER = "neither JSON nor YAML"
M = TypeVar("M", bound=BaseModel)


def parse_document(kind: type[M], document: Any, name: str, refusal: type[BadInputError] = BadInputError) -> M:
    """A model from a decoded document called `name`; raises `refusal` naming the fields at fault."""
    problems = [
        {"pointer": pointer, "message": message}
        for (pointer, message), _ in zip(_unusable(document, "", 0), range(_MAX_LISTED), strict=False)
    ]
    if not problems:
        try:
            model = kind.model_validate(document)
        except ValidationError as error:
            problems = problems_of(error)
            raise refusal(f"{name} refused: {problem_line(problems)}", details=problems) from error
        problems = [{"pointer": pointer, "message": message} for pointer, message in _converted(document, model, "")]
        if not problems:
            return model
    raise refusal(f"{name} refused: {problem_line(problems)}", details=problems)


def _unusable(value: Any, pointer: str, level: int) -> Iterator[tuple[str, str]]:
    """Pointers and problems of what no manifest could hold, and of what is too much."""
    at = pointer or "/"
    if level > MAX_LEVELS:
        yield at, f"nested too deeply: at most {MAX_LEVELS} levels"
    elif isinstance(value, str):
        if len(value) > MAX_TEXT_CHARS:
            yield at, f"a text of {len(value):,} characters: at most {MAX_TEXT_CHARS:,}"
        elif not _is_encodable(value):
            yield at, "half of a surrogate pair: not a character"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield at, "the integer does not fit 64 bits"
    elif isinstance(value, float) and not math.isfinite(value):
        yield at, f"{value} is not a finite number"
    elif isinstance(value, dict | list | tuple):
        if len(value) > MAX_ITEMS:
            yield at, f"{len(value):,} items: at most {MAX_ITEMS:,}"
        elif isinstance(value, dict):
            for key, item in value.items():
                if isinstance(key, str):
                    yield from _unusable(key, at, level)
                shown = ascii(key)[1:-1][:100] if isinstance(key, str) else key
                yield from _unusable(item, f"{pointer}/{shown}", level + 1)
        else:
            for number, item in enumerate(value):
                yield from _unusable(item, f"{pointer}/{number}", level + 1)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _converted(value: Any, made: Any, pointer: str) -> Iterator[tuple[str, str]]:
    """Pointers of texts and truths that were taken for numbers, and of what was taken for a truth."""
    if isinstance(value, dict) and isinstance(made, BaseModel | Mapping):
        for key, item in value.items():
            inner = made.get(key) if isinstance(made, Mapping) else getattr(made, str(key), None)
            if isinstance(made, BaseModel) and key not in type(made).model_fields and getattr(made, "pools", None):
                inner = getattr(made.pools[0], str(key), None)  # type: ignore[attr-defined]  # a recipe written flat
            yield from _converted(item, inner, f"{pointer}/{key}")
    elif isinstance(value, list | tuple) and isinstance(made, list | tuple) and len(value) == len(made):
        for number, (item, inner) in enumerate(zip(value, made, strict=True)):
            yield from _converted(item, inner, f"{pointer}/{number}")
    elif isinstance(made, bool) != isinstance(value, bool) and isinstance(made, bool | int | float):
        yield pointer, f"expected {'true or false' if isinstance(made, bool) else 'a number'}, found {value!r:.60}"
    elif isinstance(made, int | float) and isinstance(value, str):
        yield pointer, f"expected a number, found {value!r:.60}"


def read_document(path: Path, name: str, refusal: type[BadInputError] = BadInputError) -> Any:
    """The value of a JSON or YAML file; raises MissingError without it, `refusal` when it cannot be read."""
    try:
        return load_document(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingError(f"there is no {name} file {path}") from error
    except (ValueError, OSError) as error:
        said = str(error)
        where = said.removeprefix(_NEITHER)  # a place, where nothing else is wrong
        raise refusal(f"{path} is neither YAML nor JSON{where if where != said else f': {said}'}") from error


def load_document(text: str) -> Any:
    """The value of a JSON or YAML text; raises ValueError with a line for people.

    Nothing is run; aliases, which let a few bytes stand for gigabytes, and keys that stand twice are refused.
    """
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        reason = error.problem if isinstance(error, yaml.composer.ComposerError) else None  # our own are of this class
        raise ValueError(f"{reason}{place}" if reason else f"{_NEITHER}{place}") from error
    except (RecursionError, ValueError) as error:
        raise ValueError("nested too deeply, or a value that YAML cannot hold") from error


@cache
def _loader() -> Any:
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema."""
    import yaml

    def refused(problem: str, mark: Any) -> Any:
        return yaml.composer.ComposerError(None, None, problem, mark)

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise refused("YAML aliases (*name) are not taken; write the value out", self.peek_event().start_mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, str):
                    if key in seen:
                        raise refused(f"the key {key[:100]!r} stands twice: keep one", key_node.start_mark)
                    seen.add(key)
            return super().construct_mapping(node, deep=deep)

        def construct_whole(self, node: Any) -> int:
            text = self.construct_scalar(node)
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

        def construct_number(self, node: Any) -> float:
            text = self.construct_scalar(node).lower()
            return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    for tag, pattern, first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
        (
            "float",
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
            "-+.0123456789",
        ),
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), list(first))
    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_whole)
    Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_number)
    return Loader
