"""What a request comes to for the model at hand: its identity and its window."""

from typing import TYPE_CHECKING

from curator.scoring.identity import Identity, declared_identity, model_identity, model_window
from curator.scoring.request import ScoreRequest

if TYPE_CHECKING:
    from curator.render import Renderer


def identity_of(request: ScoreRequest, renderer: "Renderer", window: int) -> Identity:
    """What the losses of a request depend on: measured from its folders, or declared."""
    measured = (renderer, request.mask_rule, window, request.dtype, request.engine, request.engine_version)
    if request.declared is not None:
        return declared_identity(request.declared.weights_sha256, request.declared.adapter_sha256, *measured)
    identity = model_identity(request.model_dir, request.adapter_dir, *measured)
    # The aligned model's too, though it has no adapter: what may share a gap was scored with the same options.
    return {**identity, "adapter_mode": "merged"} if request.merge_adapter else identity


def effective_window(request: ScoreRequest) -> tuple[int, list[str]]:
    """The window in tokens that binds, and a note where the model's own is the smaller one."""
    if request.declared is not None:  # the caller asked the server
        return request.max_length, []
    own = model_window(request.model_dir)
    if own is None or own >= request.max_length:
        return request.max_length, []
    return own, [f"max length {request.max_length} lowered to {own}, the model's own window"]
