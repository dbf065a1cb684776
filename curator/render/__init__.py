"""Conversations to token ids and a response mask: the one renderer, for scoring and for training alike."""

from curator.render.cache import RENDERERS, RendererCache
from curator.render.mask import (
    OTHER,
    POSTFIX,
    PREFIX,
    QUERY,
)
from curator.render.renderer import MaskRule, Rendered, Renderer
from curator.render.settings import PARTS, Part, RenderSettings

__all__ = [
    "OTHER",
    "PARTS",
    "POSTFIX",
    "PREFIX",
    "QUERY",
    "RENDERERS",
    "MaskRule",
    "Part",
    "RenderSettings",
    "Rendered",
    "Renderer",
    "RendererCache",
]
