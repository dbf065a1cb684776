"""The one error tree. Every leaf is also a standard exception, so callers may catch either.

A message states what was asked, what was found, which item binds and what would fix it.
"""

import errno
import os
from collections.abc import Sequence

# The machine, or a disk of it, cannot: no descriptor or memory left, or a failure of a device.
_OUT_OF_SERVICE = frozenset({errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.ESTALE})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_DESCRIPTOR = os.strerror(errno.EMFILE)  # DuckDB's and Polars's errors have the text alone
MAX_MESSAGE_CHARS = 4_000


class BallastError(Exception):
    """Base of every error this product raises on purpose.

    `code` is stable and machine-readable; `details` lists the items concerned (already capped).
    """

    code = "error"
    is_told = False  # whether a command that ran inside this one has said it on stderr

    def __init__(self, message: str, *, details: Sequence[object] = ()) -> None:
        if len(message) > MAX_MESSAGE_CHARS:  # what a stranger sent may stand in it
            message = message[: MAX_MESSAGE_CHARS - 1] + "…"
        super().__init__(message)
        self.message = message
        self.details = list(details)


class BadInputError(BallastError, ValueError):
    """The caller's data or options cannot be used as they are."""

    code = "bad_input"


class BadRowsError(BadInputError):
    """A file has rows that cannot be used; `details` holds the first of them."""

    code = "bad_rows"


class UnpackedTooLargeError(BadInputError):
    """A packed file unpacks to more bytes than its reader allows."""

    code = "unpacked_too_large"


class TooManyRowsError(BadInputError):
    """A data set has more rows than its reader allows."""

    code = "too_many_rows"


class RecipeError(BadInputError):
    """A recipe is malformed, or asks for what cannot be."""

    code = "bad_recipe"


class PolicyError(RecipeError):
    """A recipe asks for what the provider's policy does not allow; `details` names the rule."""

    code = "policy_refused"


class NotEnoughRowsError(RecipeError):
    """A recipe asks for more safe rows than pass the filters."""

    code = "not_enough_rows"


class MissingError(BallastError, LookupError):
    """Something named does not exist in the store."""

    code = "not_found"


class AmbiguousError(BadInputError):
    """A name fits several things; `details` lists them."""

    code = "ambiguous"


class IncompatibleScorersError(BadInputError):
    """Scorers that differ in more than weights and adapter were put into one gap."""

    code = "incompatible_scorers"


class RenderError(BadInputError):
    """A conversation cannot be rendered with this chat template; `reason` is a short stable word for why."""

    code = "render_failed"

    def __init__(self, message: str, *, reason: str = "render_failed", details: Sequence[object] = ()) -> None:
        super().__init__(message, details=details)
        self.reason = reason


class StoreError(BallastError, OSError):
    """The store cannot be read or written, or has another format version."""

    code = "store"


class UnreachableError(StoreError):
    """The server behind the store does not answer, or asks to come back later."""

    code = "unavailable"


class LockedError(StoreError):
    """Another process is the writer of a folder."""


class IntegrityError(StoreError):
    """A file's bytes or rows differ from what its manifest says."""

    code = "integrity"


class ScoringError(BallastError, RuntimeError):
    """An engine failed in a way that more attempts do not mend."""

    code = "scoring_failed"


class RemoteError(BallastError, ConnectionError):
    """The HTTP service answered with an error or not at all."""

    code = "remote"


class MissingDependencyError(BallastError, ImportError):
    """An optional package is absent; the message names the extra that brings it."""

    code = "missing_dependency"


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a disk without room."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def is_out_of_service(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is the machine's or the store's and says nothing about what was asked."""
    while error is not None:
        if isinstance(error, UnreachableError) or (isinstance(error, OSError) and error.errno in _OUT_OF_SERVICE):
            return True
        if not isinstance(error, BallastError) and _NO_DESCRIPTOR in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
