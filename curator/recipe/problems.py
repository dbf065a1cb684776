"""Validation errors of pydantic as problems: one pointer and one message for each field at fault.

A message says what was found and what would be right.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

_MAX_SHOWN = 60
_MAX_CHARS = 500  # of one message

_KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text", "tuple": "a list",
    "list": "a list", "dict": "an object", "model": "an object", "model_attributes": "an object",
}  # fmt: skip
_COMPARED = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


class HasErrors(Protocol):
    """What pydantic's and FastAPI's validation errors share."""

    def errors(self) -> Sequence[Any]:
        """One mapping for each field at fault: `loc`, `type`, `msg`, `input`, `ctx`."""
        ...


def problems_of(error: HasErrors, *, inside: str = "", show_values: bool = True) -> list[dict[str, str]]:
    """One `{"pointer", "message"}` for each field at fault; `inside` names the part of a request in the pointers.

    `show_values` false keeps the values out of the messages, for answers that must not repeat what a client sent.
    """
    return [
        {
            "pointer": "/" + "/".join(str(part) for part in ([inside] if inside else []) + list(item["loc"])),
            "message": (_message(item) if show_values else str(item["msg"]))[:_MAX_CHARS],
        }
        for item in error.errors()
    ]


def problem_line(problems: Iterable[Mapping[str, str]], *, most: int = 5) -> str:
    """The first problems on one line; the pointer of the whole document is left out."""
    shown = [f"{item['pointer']}: {item['message']}".removeprefix("/: ") for item in problems]
    return "; ".join(shown[:most])


def _message(item: Mapping[str, Any]) -> str:
    kind, given, context = str(item["type"]), _shown(item.get("input")), item.get("ctx", {})
    if kind == "missing":
        return "is needed and not there"
    if kind == "extra_forbidden":
        return "is not a known key: remove it or correct its name"
    if kind in _COMPARED:
        name, words = _COMPARED[kind]
        return f"{given} must be {words} {context[name]:g}"
    if kind in ("literal_error", "enum"):
        return f"{given} is none of {context['expected']}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        found = f"{context['tag']!r}" if "tag" in context else given
        tags = context.get("expected_tags")
        wanted = ", a key `name` is needed" if tags is None else f": use one of {tags}"
        return f"{found} is not a known name{wanted}"
    if kind in ("too_short", "too_long"):
        bound = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return f"{given} must have {bound} items, it has {context['actual_length']}"
    if kind == "string_too_short":
        return f"a text of at least {context['min_length']} characters is needed, found {given}"
    if kind == "string_pattern_mismatch":
        return f"{given} does not fit the pattern {context['pattern']}"
    if kind == "value_error":
        return str(context["error"])
    right = _KINDS.get(kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float"))
    return f"expected {right}, found {given}" if right else f"{given}: {item['msg'][:1].lower()}{item['msg'][1:]}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"
