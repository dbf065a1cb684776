"""Structured logs: one JSON object a line on stderr, with request ids and without user text.

The text of an exception may quote a user's row, so only its type and the places it passed are written; and the text
of the store's own errors, which name files and hashes.
"""

import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

import orjson

from curator.errors import StoreError

LOGGER = "ballast.api"
FIELDS = "fields"  # name of the extra attribute that carries an event's own fields


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON: time, level, event and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without line feed."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        document.update(getattr(record, FIELDS, {}))
        if record.exc_info and record.exc_info[1] is not None:
            document.update(describe_error(record.exc_info[1]))
        return orjson.dumps(document, default=str).decode()


def describe_error(error: BaseException) -> dict[str, Any]:
    """An exception's type, its causes' types, and the places it passed (module file, line, function).

    Of the store's own errors also the reason: it says which file is not what its manifest says.
    """
    kinds: list[str] = []
    current: BaseException | None = error
    while current is not None and len(kinds) < 5:
        kinds.append(type(current).__name__)
        current = current.__cause__ or current.__context__
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    places = [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    reason = {"reason": error.message} if isinstance(error, StoreError) else {}
    return {"error": kinds, **reason, "at": places}


def set_up_logging(level: str) -> None:
    """Send our log and the server's through the formatter, once a process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name, least in ((LOGGER, level), ("uvicorn.error", "warning")):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least.upper())


def log_event(level: int, event: str, error: BaseException | None = None, **fields: object) -> None:
    """Write one event with its fields."""
    logging.getLogger(LOGGER).log(level, event, extra={FIELDS: fields}, exc_info=error)


def _short(filename: str) -> str:
    return "/".join(filename.split("/")[-2:])
