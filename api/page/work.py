"""What the page has done in a process of its own, with bounds of time and memory: reading texts that may be long."""

from typing import Any

from api.processes.builders import kept_store
from curator.messages import Message
from curator.render import RENDERERS, MaskRule


def render_pieces(root: str, renderer_id: str, messages: list[Message], rule: MaskRule) -> dict[str, Any]:
    """A conversation as text cut where response tokens begin and end, and its counts of tokens."""
    renderer = RENDERERS.get(kept_store(root), renderer_id)
    rendered = renderer.render(messages, rule)
    counts = {"n_tokens": rendered.n_tokens, "n_trained": rendered.n_response_tokens}
    return {"pieces": renderer.pieces(rendered), **counts}
