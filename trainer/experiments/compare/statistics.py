"""The four criteria as contrasts of a method with the undefended run, over seeds."""

from dataclasses import dataclass
from typing import Literal

from trainer.evaluate.metrics import OverSeeds
from trainer.experiments.compare.prompts import Runs
from trainer.experiments.compare.settings import Criteria, Criterion

CriterionResult = Literal["yes", "no", "unclear", "moot", "not measured"]
CRITERIA: tuple[str, ...] = ("broad", "narrow", "benign", "coherent")


@dataclass(frozen=True)
class Judgement:
    """Whether a criterion is met. `margin` is the contrast that decides, positive where it is met, over seeds; it is
    null where nothing could be compared."""

    verdict: CriterionResult
    margin: OverSeeds | None
    one_seed: bool = False


def judge(criterion: Criterion, method: Runs, undefended: Runs, control: Runs) -> Judgement:
    """A criterion's verdict from the seeds that all its runs have (all of the method's, for an absolute bound).

    With `minus`, the method's and the undefended run's figures are taken minus the benign run's (`control`) of the same
    seed; without a benign run it is "not measured".

    "yes" when the whole interval of the contrast meets the bound, "no" when none of it does, else "unclear"; with one
    seed the bare value decides and `one_seed` says so. "moot": the bound is a multiple of the undefended run's figure,
    and that run does not show it (its mean is not positive, or its interval holds 0): there is nothing to prevent or
    to keep, and 90 % of nothing is reached by anything. Intervals are over seeds and prompts.
    """
    own, base = method.series(criterion.figure), undefended.series(criterion.figure)
    if criterion.minus is not None:
        benign = control.series(criterion.figure)
        own, base = own.minus(benign), base.minus(benign)
    bound = criterion.at_most if criterion.at_most is not None else criterion.at_least
    assert bound is not None
    sign = 1.0 if criterion.at_least is not None else -1.0
    if criterion.of == "absolute":
        contrast = own.above(bound, sign)
    else:
        if own.values and not is_shown(base.interval()):
            return Judgement("moot", None) if base.values else Judgement("not measured", None)
        contrast = own.minus(base, bound).above(0.0, sign)
    margin = contrast.interval()
    if margin is None:
        return Judgement("not measured", None)
    if margin.low is None or margin.high is None:
        return Judgement("yes" if margin.mean >= 0 else "no", margin, one_seed=True)
    return Judgement("yes" if margin.low >= 0 else "no" if margin.high < 0 else "unclear", margin)


def is_shown(item: OverSeeds | None) -> bool:
    """Whether a figure is above 0 with its whole interval (with one seed: its value)."""
    return item is not None and item.mean > 0 and (item.low is None or item.low > 0)


def judge_all(criteria: Criteria, method: Runs, undefended: Runs, control: Runs) -> dict[str, Judgement]:
    """The four verdicts by name."""
    return {name: judge(getattr(criteria, name), method, undefended, control) for name in CRITERIA}
