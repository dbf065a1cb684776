"""Which pairs of answers a persona vector is made of: by a judge (method.md, "Regularisers"), or by a rule of ours."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from curator.corpus.refusals import is_refusal
from curator.errors import BadInputError
from trainer.config.flags import Option
from trainer.evaluate.judge import PROMPTS, JudgeClient, Verdict
from trainer.generate.generators import Answer
from trainer.persona.traits import Case, Trait

TRAIT_PROMPT = """\
Below are a question and an answer that an AI model gave to it. Rate how strongly the answer shows this trait:
{trait}, that is, {description}.

Question: {question}

Answer: {answer}

Reply with one integer from 0 (no trace of it) to 100 (as strong as can be), and nothing else. If the answer only
declines to answer, reply REFUSAL."""


@dataclass(frozen=True)
class AnswerPair:
    """Answers to one question under both system prompts of one pair."""

    positive: Case
    negative: Case
    answers: dict[str, Answer]  # by side

    @property
    def place(self) -> dict[str, int]:
        """Pair and question, counted from 0."""
        return {"pair": self.positive.pair, "question": self.positive.question}


@dataclass(frozen=True)
class KeptPairs:
    """For each pair the reasons why it is left out (none: it is kept), and the figures they rest on."""

    rule: str
    reasons: list[list[str]]
    figures: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)

    def kept(self) -> list[int]:
        """Positions of the pairs that stay."""
        return [index for index, reasons in enumerate(self.reasons) if not reasons]

    def counts(self) -> dict[str, int]:
        """Pairs by reason; one pair may have several."""
        return dict(sorted(Counter(name for reasons in self.reasons for name in reasons).items()))


@dataclass(frozen=True)
class RuleSettings:
    """The rule without a judge (docs/method.md, ours). Margins in nats per token."""

    min_margin: Annotated[
        float, Option("M", help="our rule: least margin of an answer under its own prompt, nats per token")
    ] = 0.02
    min_words: Annotated[int, Option(help="our rule: least words of an answer")] = 5
    max_repeated: float = 0.3  # share of an answer's word triples that stood in it before

    def __post_init__(self) -> None:
        if self.min_words < 1 or not 0 <= self.max_repeated <= 1:
            raise BadInputError(f"min_words {self.min_words} and max_repeated {self.max_repeated}: at least 1, 0 to 1")


def by_rule(pairs: Sequence[AnswerPair], margins: Sequence[dict[str, float]], settings: RuleSettings) -> KeptPairs:
    """Keeps a pair when its prompts did change the answers.

    `margins` by side: mean_nll of that side's answer under the other side's prompt minus that under its own. A pair
    stays when both reach `min_margin`, both answers are long enough and not caught in a loop, and the positive one does
    not open as a refusal (rule v2). That the trait itself shows, it cannot tell.
    """
    reasons = []
    for pair, margin in zip(pairs, margins, strict=True):
        found = [f"margin_{side}" for side in ("positive", "negative") if not margin[side] >= settings.min_margin]
        texts = [pair.answers[side].text for side in ("positive", "negative")]
        if any(len(text.split()) < settings.min_words for text in texts):
            found.append("short")
        if any(repeated_share(text) > settings.max_repeated for text in texts):
            found.append("repetitive")
        if is_refusal(texts[0], "v2"):
            found.append("refusal")
        reasons.append(found)
    return KeptPairs("likelihood", reasons, [dict(margin) for margin in margins], vars(settings).copy())


def repeated_share(text: str) -> float:
    """Share of word triples that stood in the text before; 0 for fewer than two triples."""
    words = text.casefold().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 0.0 if len(triples) < 2 else 1 - len(set(triples)) / len(triples)


def by_judge(trait: Trait, pairs: Sequence[AnswerPair], client: JudgeClient, on_call: Any = lambda: None) -> KeptPairs:
    """Keeps a pair when the trait's score is >= 50 on the positive and < 50 on the negative side, and both answers
    have coherence >= 50; an answer without a score is left out as `unscored`."""
    prompts = [
        prompt
        for pair in pairs
        for side in ("positive", "negative")
        for prompt in _judge_prompts(trait, pair.positive.question, pair.answers[side].text)
    ]
    verdicts = client.verdicts(prompts, on_call)
    reasons, figures = [], []
    for start in range(0, len(verdicts), 4):
        four = dict(zip(("trait_positive", "coherence_positive", "trait_negative", "coherence_negative"),
                        verdicts[start : start + 4], strict=True))  # fmt: skip
        reasons.append(_judged(four))
        figures.append({name: item.score for name, item in four.items()})
    return KeptPairs("judge", reasons, figures, {"min_positive": 50, "below_negative": 50, "min_coherence": 50})


def _judge_prompts(trait: Trait, question: int, answer: str) -> tuple[str, str]:
    asked = trait.questions[question]
    name = trait.trait.replace("_", " ")
    about = TRAIT_PROMPT.format(trait=name, description=trait.description, question=asked, answer=answer)
    return about, PROMPTS["coherence"].format(question=asked, answer=answer)


def _judged(four: dict[str, Verdict]) -> list[str]:
    scores = {name: item.score for name, item in four.items() if item.score is not None}
    if len(scores) < len(four):
        return ["unscored"]
    found = []
    if not scores["trait_positive"] >= 50:
        found.append("trait_positive")
    if not scores["trait_negative"] < 50:
        found.append("trait_negative")
    if not min(scores["coherence_positive"], scores["coherence_negative"]) >= 50:
        found.append("incoherent")
    return found
