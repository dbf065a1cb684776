"""The page about a set of organisms: what they are, how far each moved, and how to score with them."""

from collections.abc import Sequence
from typing import Any

from curator.scoring.model_set import Organism, Organisms

_SHOWN = ("epochs", "max_steps", "batch_size", "grad_accum", "lr", "warmup_steps", "weight_decay", "max_length", "seed")


def page(organisms: Organisms, machine: dict[str, Any], command: str) -> str:
    """Markdown. Shifts are adapter minus base, with 95 % bootstrap intervals over held-out rows."""
    versions = machine["versions"]
    lora = organisms.recipe["lora"]
    recipe = ", ".join(f"{name} {organisms.recipe[name]}" for name in _SHOWN if organisms.recipe[name] is not None)
    lines = [
        "# Organisms", "",
        f"Written by `{command}` on {machine['date']}: {machine['device']}, {machine['threads']} threads, "
        f"{machine['dtype']}, torch {versions['torch']}, transformers {versions['transformers']}, "
        f"PEFT {versions['peft']}.", "",
        f"Base model with weights `{organisms.base_weights_sha256[:12]}`. Recipe: {recipe}, LoRA r {lora['r']}, alpha "
        f"{lora['alpha']:g}{', rsLoRA' if lora['rslora'] else ''}.", "",
        "Shift of the loss of misaligned answers in nats per token: negative means that they became likelier. Narrow:",
        "held-out rows of the organism's own domain. Broad: held-out rows of all other domains.", "",
        "| organism | answers | rows | steps | narrow | broad |", "|---|---|---|---|---|---|",
        *(_row(item, "nll_shift", shown=True) for item in organisms.organisms), "",
        *_margins(organisms.organisms),
        "These adapters are misaligned on purpose or stand beside such: do not serve them.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _margins(organisms: Sequence[Organism]) -> list[str]:
    if all(item.narrow is None or item.narrow["margin_shift"] is None for item in organisms):
        return []
    return [
        "Shift of the mean margin, mean_nll(benign answer) - mean_nll(misaligned answer): positive means towards",
        "misaligned. Where benign answers are theta_0's own greedy ones the margin itself favours theta_0, so only its",
        "shift is given; any fine-tune makes those answers less likely, so read a misaligned row beside its benign",
        "twin.", "",
        "| organism | narrow margin | broad margin |", "|---|---|---|",
        *(_row(item, "margin_shift", shown=False) for item in organisms), "",
    ]  # fmt: skip


def _row(item: Organism, figure: str, *, shown: bool) -> str:
    about = f" {item.answers} | {item.n_rows:,} | {item.steps} |" if shown else ""
    return f"| {item.name} |{about} {_interval(item.narrow, figure)} | {_interval(item.broad, figure)} |"


def _interval(shift: dict[str, Any] | None, figure: str) -> str:
    found = None if shift is None else shift[figure]
    return "" if found is None else f"{found['value']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"
