"""Conversations to token ids and a response mask: the one renderer, for scoring and for training alike.

In: canonical messages, and the tokenizer and chat template of a model folder. Out: `Rendered`. `renderer.Renderer` does
it: `template` writes the text, `spans` finds the answers in it, `tokenizer` keeps users' text from becoming control
tokens, `mask` says which tokens are response tokens, `presence` what the template left out. `skeletons`, `tracing`,
`units` and `pieces` make it fast and change nothing that is rendered; `counting` counts tokens without making them.
"""

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
