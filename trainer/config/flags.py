"""Command-line options rendered from the fields of a pydantic model or a dataclass.

A field is described once, where it is declared: its type gives the parser and the choices, its description the help
text, its default the words at the end of the help. `Option` in its annotation holds what argparse alone needs. An
option that is not given has the value None, so that defaults stand in the model alone.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from curator.errors import BadInputError


@dataclass(frozen=True)
class Option:
    """What a field's option has beside its name, type and default.

    `help` is for fields of a dataclass; a pydantic field has its description. `flag` replaces the name made from the
    field's, `aliases` stand beside it. `parse` replaces the parser that the type gives.
    """

    metavar: str | None = None
    help: str | None = None
    flag: str | None = None
    aliases: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None


@dataclass(frozen=True)
class _Described:
    """One field of either kind of settings."""

    name: str
    kind: Any  # the annotation without None and without Annotated
    default: Any  # None where the field is required as well
    required: bool
    text: str
    option: Option


def add_options(
    target: Any,
    settings: type,
    names: Sequence[str] | None = None,
    *,
    prefix: str = "",
    defaults: Mapping[str, Any] | None = None,
    optional: bool = False,
) -> None:
    """Add an option for each named field (default: all) to a parser or a group of one.

    With a `prefix` the option of field `rank` is `--PREFIX-rank`, and none is required: see `given_settings`. Nor is
    any where they are `optional`, since a file may hold them.
    `defaults` are the words of the help where a command has other defaults than the model.
    """
    for field in _described(settings, names):
        flags = (field.option.flag or flag(prefix, field.name), *field.option.aliases)
        shown = (defaults or {}).get(field.name, field.default)
        options: dict[str, Any] = {"dest": destination(prefix, field.name), "default": None}
        options["help"] = _help(field.text, shown).replace("%", "%%")
        if field.kind is bool and field.default is None and not field.required:  # yes, no, or as the command decides
            options["action"] = argparse.BooleanOptionalAction
        elif field.kind is bool:
            options["action"] = "store_false" if field.default is True else "store_true"
        elif _listed(field.kind):
            options["action"], options["choices"] = "append", _listed(field.kind)
        else:
            options["metavar"], options["choices"] = field.option.metavar or _metavar(field.kind), _choices(field.kind)
            options["type"] = field.option.parse or _parser_of(field.kind)
            options["required"] = field.required and not prefix and not optional
        target.add_argument(*flags, **options)


def given_values(given: Mapping[str, Any], settings: type, *, prefix: str = "") -> dict[str, Any]:
    """The fields of `settings` among parsed options, without those that were not given."""
    keys = {field.name: destination(prefix, field.name) for field in _described(settings)}
    return {name: given[key] for name, key in keys.items() if given.get(key) is not None}


def given_settings(given: Mapping[str, Any], settings: type, *, prefix: str, main: str) -> dict[str, Any] | None:
    """The same for settings that are switched on by the option of their field `main`; None when it was not given.

    Raises BadInputError for another of their options without it.
    """
    found = given_values(given, settings, prefix=prefix)
    if found and main not in found:
        switch = next(field.option.flag or flag(prefix, main) for field in _described(settings, (main,)))
        raise BadInputError(f"{flag(prefix, next(iter(found)))} goes with {switch}, which was not given")
    return found or None


def flag(prefix: str, name: str) -> str:
    """`--monitor-alarm` for field `alarm` with the prefix `monitor`."""
    return "--" + destination(prefix, name).replace("_", "-")


def destination(prefix: str, name: str) -> str:
    """The name of the parsed value."""
    return f"{prefix}_{name}" if prefix else name


def _described(settings: type, names: Sequence[str] | None = None) -> Iterator[_Described]:
    every = _model_fields(settings) if issubclass(settings, BaseModel) else _plain_fields(settings)
    found = {field.name: field for field in every}
    yield from (found.values() if names is None else (found[name] for name in names))


def _model_fields(settings: type[BaseModel]) -> Iterator[_Described]:
    for name, info in settings.model_fields.items():
        option = next((item for item in info.metadata if isinstance(item, Option)), Option())
        required = info.is_required()
        yield _Described(
            name, _bare(info.annotation), None if required else info.default, required, info.description or "", option
        )


def _plain_fields(settings: type) -> Iterator[_Described]:
    assert is_dataclass(settings)
    hints = get_type_hints(settings, include_extras=True)
    for field in fields(settings):
        hint = hints[field.name]
        marks = hint.__metadata__ if get_origin(hint) is Annotated else ()
        option = next((item for item in marks if isinstance(item, Option)), Option())
        required = field.default is MISSING and field.default_factory is MISSING
        default = None if field.default is MISSING else field.default
        yield _Described(field.name, _bare(hint), default, required, option.help or "", option)


def _bare(annotation: Any) -> Any:
    """The type without Annotated and without None."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [_bare(item) for item in get_args(annotation) if item is not NoneType]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation


def _choices(kind: Any) -> tuple[Any, ...] | None:
    return get_args(kind) if get_origin(kind) is Literal else None


def _listed(kind: Any) -> tuple[Any, ...] | None:
    """The choices of an option that may be repeated; None for another."""
    return _choices(get_args(kind)[0]) if get_origin(kind) is tuple else None


def _parser_of(kind: Any) -> Callable[[str], Any] | None:
    if get_origin(kind) is tuple:
        return _comma_separated
    return kind if kind in (int, float, Path) else None


def _comma_separated(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _metavar(kind: Any) -> str | None:
    if get_origin(kind) is tuple:
        return "L,L" if int in map(_bare, get_args(kind)) else "NAMES"
    return {int: "N", float: "X", Path: "DIR", str: "NAME"}.get(kind) if isinstance(kind, type) else None


def _help(text: str, default: Any) -> str:
    """The description, and the default where the description does not mention it."""
    if default is None or isinstance(default, bool) or "default" in text:
        return text
    if isinstance(default, tuple) and default:
        return f"{text} (default: {','.join(map(str, default))})"
    if isinstance(default, str | int | float):
        return f"{text} (default: {default:g})" if isinstance(default, float) else f"{text} (default: {default})"
    return text
