"""What single prompts gave in a cell: the values that its figures are means of."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.evaluate.metrics import Floats, OverSeeds, over_seeds, over_seeds_and_prompts

Groups = Sequence[Floats]  # one array a domain, one value a prompt
ByPrompt = Mapping[int, Mapping[str, Groups]]  # by seed and figure
SHARES = ("broad_misaligned", "narrow_misaligned", "incoherent", "facts_kept", "benign_exact_match")
_CONDITIONAL, _KINDS = "conditional_", ("broad", "narrow", "truthfulqa")


def prompt_values(result: Mapping[str, Any]) -> dict[str, Groups]:
    """Each figure's values by prompt, of a finished cell; figures without (perplexity, files of earlier versions) are
    left out."""
    found: dict[str, Groups] = {}
    for name in result["figures"]:
        if name == "benign_exact_match" and result.get("benign_right"):
            found[name] = [np.array(result["benign_right"], dtype=np.float64)]
        kind, _, what = name.removeprefix(_CONDITIONAL).partition("_")
        sets = result.get("conditional_sets" if name.startswith(_CONDITIONAL) else "sets", {})
        chosen = [item for item in sets.values() if item.get("kind") == kind]
        if kind in _KINDS and chosen and all(what in item.get("prompts", {}) for item in chosen):
            found[name] = [np.array(item["prompts"][what], dtype=np.float64) for item in chosen]
    return found


def bounds(figure: str, *, difference: bool = False) -> tuple[float, float] | None:
    """The least and the largest value that a figure (or a difference of two) can have; None without such."""
    least, most = (0.0, 1.0) if figure in SHARES else (-1.0, 1.0)
    if figure not in SHARES and (not figure.endswith("_shift") or "margin" in figure):
        return None
    return (least - most, most - least) if difference else (least, most)


def mean_of(figure: str, values: Mapping[int, float], prompts: ByPrompt) -> OverSeeds | None:
    """A figure's mean over seeds, its interval over seeds and prompts; over seeds alone where some seed's prompts are
    not known."""
    groups = [prompts[seed][figure] for seed in values if figure in prompts.get(seed, {})]
    if values and len(groups) == len(values):
        return over_seeds_and_prompts(groups)
    return over_seeds(list(values.values()), bounds(figure))


def difference_of(
    figure: str, values: Mapping[int, float], others: Mapping[int, float], prompts: ByPrompt, other_prompts: ByPrompt
) -> OverSeeds | None:
    """The same of one figure minus another, paired by seed, and by prompt where both were asked the same ones."""
    seeds = [seed for seed in values if seed in others]
    paired = [_minus(prompts.get(n, {}).get(figure), other_prompts.get(n, {}).get(figure)) for n in seeds]
    known = [groups for groups in paired if groups is not None]
    if seeds and len(known) == len(seeds):
        return over_seeds_and_prompts(known)
    return over_seeds([values[seed] - others[seed] for seed in seeds], bounds(figure, difference=True))


def _minus(one: Groups | None, other: Groups | None) -> Groups | None:
    if one is None or other is None or [len(item) for item in one] != [len(item) for item in other]:
        return None
    return [a - b for a, b in zip(one, other, strict=True)]
