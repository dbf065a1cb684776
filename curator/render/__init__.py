"""Conversations to token ids and a response mask: the one renderer, for scoring and for training alike."""

from curator.render.mask import (
    OTHER,
    POSTFIX,
    PREFIX,
    QUERY,
)
from curator.render.renderer import MaskRule, Rendered, Renderer

__all__ = ["OTHER", "POSTFIX", "PREFIX", "QUERY", "MaskRule", "Rendered", "Renderer"]
