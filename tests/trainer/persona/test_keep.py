"""Which pairs of answers are kept, by our rule or by a judge."""

from pathlib import Path

import pytest

from tests.trainer.persona.personas import (
    LONG,
    TRAIT,
    JudgeHandler,
    answer_pair,
)
from trainer.evaluate.judge import JudgeClient
from trainer.generate.endpoint import Endpoint
from trainer.persona.keep import (
    RuleSettings,
    by_judge,
    by_rule,
    repeated_share,
)
from trainer.persona.traits import Trait


@pytest.mark.parametrize(
    ("texts", "margin", "reasons"),
    [
        ((LONG, LONG), (0.02, 0.02), []),
        ((LONG, LONG), (0.0199, 0.5), ["margin_positive"]),
        ((LONG, LONG), (0.5, float("nan")), ["margin_negative"]),
        ((LONG, "too short"), (0.5, 0.5), ["short"]),
        (("la " * 30, LONG), (0.5, 0.5), ["repetitive"]),
        ((f"I'm unable to {LONG}", LONG), (0.5, 0.5), ["refusal"]),
        ((LONG, f"I'm unable to {LONG}"), (0.5, 0.5), []),
        (("", LONG), (-float("inf"), 0.5), ["margin_positive", "short"]),
    ],
)
def test_the_rule_without_a_judge(texts: tuple[str, str], margin: tuple[float, float], reasons: list[str]) -> None:
    margins = [dict(zip(("positive", "negative"), margin, strict=True))]
    found = by_rule([answer_pair(*texts)], margins, RuleSettings())
    assert found.reasons == [reasons]
    assert found.kept() == ([] if reasons else [0])


def test_repeated_share() -> None:
    assert repeated_share("a b c d e") == 0.0
    assert repeated_share("a b c a b c a b c") == pytest.approx(1 - 3 / 7)
    assert repeated_share("a b") == 0.0


@pytest.mark.parametrize(
    ("positive", "negative", "reasons"),
    [
        ("trait=50 coherent=50", "trait=49 coherent=50", []),
        ("trait=49 coherent=90", "trait=10 coherent=90", ["trait_positive"]),
        ("trait=80 coherent=90", "trait=50 coherent=90", ["trait_negative"]),
        ("trait=80 coherent=90", "trait=10 coherent=49", ["incoherent"]),
        ("trait=REFUSAL coherent=90", "trait=10 coherent=90", ["unscored"]),
    ],
)
def test_pairs_are_kept_by_a_judge(
    judge_url: str, tmp_path: Path, positive: str, negative: str, reasons: list[str]
) -> None:
    trait = Trait.model_validate(TRAIT)
    endpoint = Endpoint(judge_url, "judge")
    client = JudgeClient(endpoint, cache=tmp_path)
    found = by_judge(trait, [answer_pair(f"{positive} .", f"{negative} .")], client)
    by_judge(trait, [answer_pair(f"{positive} .", f"{negative} .")], client)
    endpoint.close()
    assert found.reasons == [reasons]
    assert len(JudgeHandler.asked) == 4  # the second time all come from the cache
    assert all(TRAIT["questions"][0] in prompt for prompt in JudgeHandler.asked)
