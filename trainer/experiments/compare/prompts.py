"""Figures of cells by seed, with what single prompts gave: the values that the figures are means of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    found: dict[str, Groups] = {
        name: [np.array(group, dtype=np.float64) for group in groups]
        for name, groups in result.get("by_question", {}).items()
    }
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


@dataclass(frozen=True)
class Series:
    """One figure, or a contrast of figures, by seed; `groups` are its values by prompt, where these are known."""

    values: Mapping[int, float]
    groups: Mapping[int, Groups] = field(default_factory=dict)

    def minus(self, other: "Series", factor: float = 1.0) -> "Series":
        """This less `factor` times the other, over the seeds of both; by prompt where both asked the same ones."""
        values = {
            seed: value - factor * other.values[seed] for seed, value in self.values.items() if seed in other.values
        }
        groups = {
            seed: [one - factor * two for one, two in zip(self.groups[seed], other.groups[seed], strict=True)]
            for seed in values
            if _same_prompts(self.groups.get(seed), other.groups.get(seed))
        }
        return Series(values, groups)

    def above(self, bound: float, sign: float) -> "Series":
        """`sign` times (this less `bound`)."""
        return Series(
            {seed: sign * (value - bound) for seed, value in self.values.items()},
            {seed: [sign * (group - bound) for group in groups] for seed, groups in self.groups.items()},
        )

    def interval(self, limits: tuple[float, float] | None = None) -> OverSeeds | None:
        """Its mean over seeds, with an interval over seeds and prompts; over seeds alone, cut to `limits`, where some
        seed's values by prompt are not known."""
        groups = [self.groups[seed] for seed in self.values if seed in self.groups]
        if self.values and len(groups) == len(self.values):
            return over_seeds_and_prompts(groups)
        return over_seeds(list(self.values.values()), limits)


@dataclass(frozen=True)
class Runs:
    """The finished cells of one method and ratio: figures by seed (null where not measured), and what single prompts
    gave."""

    figures: Mapping[int, Mapping[str, float | None]] = field(default_factory=dict)
    prompts: ByPrompt = field(default_factory=dict)

    def series(self, figure: str) -> Series:
        """One figure, of the seeds where it is measured."""
        values = {seed: value for seed, found in self.figures.items() if (value := found.get(figure)) is not None}
        groups = {seed: self.prompts[seed][figure] for seed in values if figure in self.prompts.get(seed, {})}
        return Series(values, groups)


def _same_prompts(one: Groups | None, other: Groups | None) -> bool:
    return one is not None and other is not None and [len(item) for item in one] == [len(item) for item in other]
