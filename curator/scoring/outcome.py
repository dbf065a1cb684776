"""What becomes of one row: a loss, or null with a reason; never a loss on a wrong slice."""

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

from curator.canonical import load_messages
from curator.errors import RenderError
from curator.scoring.engine import RowLoss

if TYPE_CHECKING:
    from curator.render import Rendered, Renderer

MaskRule = Literal["all", "last"]


class ScoreRow(NamedTuple):
    """One row of schema.SCORES, in column order."""

    example_id: str
    status: Literal["scored", "too_long", "no_response", "failed"]
    nll_sum: float | None
    n_response_tokens: int | None
    n_tokens: int | None
    reason: str | None


def render_row(
    renderer: "Renderer", example_id: str, messages: str, mask_rule: MaskRule, window: int
) -> "Rendered | ScoreRow":
    """The rendered conversation, or the finished row of one that can have no loss.

    `messages` is canonical JSON; `window` is the most tokens a row may have. A response token at position 0
    has no logit before it and is not counted.
    """
    try:
        row = renderer.render(load_messages(messages), mask_rule)
    except RenderError as error:
        return ScoreRow(example_id, "failed", None, None, None, error.message)
    n_response = row.n_response_tokens
    if not n_response:
        return ScoreRow(example_id, "no_response", None, 0, row.n_tokens, "no response token to score")
    if row.n_tokens > window:
        reason = f"{row.n_tokens} tokens, the window is {window}"
        return ScoreRow(example_id, "too_long", None, n_response, row.n_tokens, reason)
    return row


def scored_row(example_id: str, row: "Rendered", loss: RowLoss | str) -> ScoreRow:
    """The row of a scored conversation; `failed` with the reason given, or when the model gave no finite loss."""
    if isinstance(loss, str):
        return ScoreRow(example_id, "failed", None, row.n_response_tokens, row.n_tokens, loss)
    if not math.isfinite(loss.nll_sum):
        reason = f"the model's loss is {loss.nll_sum}"
        return ScoreRow(example_id, "failed", None, loss.n_response_tokens, row.n_tokens, reason)
    return ScoreRow(example_id, "scored", loss.nll_sum, loss.n_response_tokens, row.n_tokens, None)
