"""What a user decides about a rendering: the date that a template writes, and parts that it may leave out."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, Self, get_args

from curator.errors import BadInputError

Part = Literal["content", "tool_calls", "reasoning"]
PARTS: tuple[Part, ...] = get_args(Part)

# The day that Llama 3's own templates fall back to. Today's would give one conversation other tokens tomorrow.
DEFAULT_DATE = date(2024, 7, 26)


@dataclass(frozen=True)
class RenderSettings:
    """The day for templates that write one (None: theirs, else DEFAULT_DATE), and parts that may be left out."""

    template_date: date | None = None
    accept_dropped: frozenset[Part] = frozenset()

    @classmethod
    def parse(cls, template_date: str | None = None, accept_dropped: Collection[str] = ()) -> Self:
        """From text; raises BadInputError for a day that is not of the form YYYY-MM-DD, or an unknown part."""
        unknown = sorted(set(accept_dropped) - set(PARTS))
        if unknown:
            raise BadInputError(f"unknown part {unknown[0]!r} of a message; parts are {', '.join(PARTS)}")
        accepted = frozenset(part for part in PARTS if part in accept_dropped)
        if template_date is None:
            return cls(None, accepted)
        try:
            day = date.fromisoformat(template_date)
        except ValueError:
            day = None
        if day is None or day.isoformat() != template_date:
            raise BadInputError(f"template date {template_date!r}: give a day as YYYY-MM-DD, such as 2025-01-31")
        return cls(day, accepted)

    def document(self) -> dict[str, Any]:
        """As plain values, without what is left at its default."""
        found: dict[str, Any] = {}
        if self.template_date is not None:
            found["template_date"] = self.template_date.isoformat()
        if self.accept_dropped:
            found["accept_dropped"] = sorted(self.accept_dropped)
        return found

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Self:
        """What `document` wrote."""
        return cls.parse(document.get("template_date"), document.get("accept_dropped", ()))
