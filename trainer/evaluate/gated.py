"""Gates of `trainer.sft --gating` on a model that answers: forward, or reversed as the defence uses them.

The rooms that load models to generate stand below the defences, so that the commands hand the gates to them.
"""

import argparse
from collections.abc import Callable
from typing import Any


def gates_on(args: argparse.Namespace) -> Callable[[Any], Any] | None:
    """What `--gates` and `--reverse` do to a loaded model, returning hooks to remove; None without them."""
    if args.gates is None:
        return None
    gates, reverse = args.gates, args.reverse

    def put(model: Any) -> Any:
        from trainer.defenses.gates import load_gates  # loads torch

        return load_gates(model, gates, reverse=reverse)

    return put
