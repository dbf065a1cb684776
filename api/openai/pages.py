"""Lists as OpenAI pages them: newest first, by `after` and `has_more`."""

from collections.abc import Sequence
from typing import Any

from api.openai.errors import refused


def page(items: Sequence[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """The `limit` items that follow the id `after`. Raises ApiError 400 for an id that is not in the list."""
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise refused(400, "invalid_value", f"after: there is no {after!r} in this list", "after")
    start = 0 if after is None else ids.index(after) + 1
    shown = list(items[start : start + limit])
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": start + limit < len(items),
    }
