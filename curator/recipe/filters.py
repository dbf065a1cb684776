"""Filters on pool rows as a recipe writes them (docs/recipe.md). They run in the order in which they are listed.

A filter that needs a label says what to do with rows that lack it (`missing`): `fail` refuses the recipe, `ignore`
lets those rows pass and counts them, `drop` leaves them out with a reason of their own.
"""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from curator.recipe.base import Spec

RefusalRule = Literal["v1", "v2"]
Missing = Literal["fail", "ignore", "drop"]
Against = Literal["pool", "task"]
TextPart = Literal["conversation", "prompt", "response"]
HygieneCheck = Literal["template_marker", "no_question", "empty", "looped"]
LabelName = Literal["domain", "language", "license", "source"]

# What data sets call a response that does no harm; compared case-folded.
HARMLESS = ("harmless", "unharmful", "safe", "none", "no", "false")

Labels = tuple[Annotated[str, Field(min_length=1)], ...]


class RefusalFilter(Spec):
    """Rows whose last answer opens like a refusal (method.md, "Choosing safe rows"): dropped, or capped to a share.

    `max_share` is the largest share of chosen rows that may be refusals; 0 drops them all.
    """

    name: Literal["refusal"] = "refusal"
    rule: RefusalRule = "v1"
    max_share: float = Field(default=0.0, ge=0.0, le=1.0)


class HarmFilter(Spec):
    """Keep rows whose response harm label is one of `keep` (compared case-folded)."""

    name: Literal["harm"] = "harm"
    keep: Labels = Field(default=HARMLESS, min_length=1)
    missing: Missing = "fail"


class LabelFilter(Spec):
    """Keep rows by domain, language, licence or source file: those in `include`, without those in `exclude`."""

    name: LabelName
    include: Labels = ()
    exclude: Labels = ()
    missing: Missing = "fail"

    @model_validator(mode="after")
    def _says_something(self) -> "LabelFilter":
        if not self.include and not self.exclude:
            raise ValueError(f"the {self.name} filter needs `include` or `exclude`")
        both = sorted(set(self.include) & set(self.exclude))
        if both:
            raise ValueError(f"the {self.name} filter both includes and excludes {', '.join(both)}")
        return self


class LengthFilter(Spec):
    """Keep rows within bounds: characters of all turns, or response tokens under the aligned scorer's tokenizer."""

    name: Literal["length"] = "length"
    min_chars: int | None = Field(default=None, ge=0)
    max_chars: int | None = Field(default=None, ge=0)
    min_tokens: int | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=0)
    missing: Missing = "fail"

    @model_validator(mode="after")
    def _bounds(self) -> "LengthFilter":
        pairs = ((self.min_chars, self.max_chars), (self.min_tokens, self.max_tokens))
        if all(bound is None for pair in pairs for bound in pair):
            raise ValueError("the length filter needs at least one bound")
        if any(low is not None and high is not None and low > high for low, high in pairs):
            raise ValueError("the length filter's lower bound is above its upper bound")
        return self


class HygieneFilter(Spec):
    """Drop rows with leaked chat-template markers, without a question, with empty turns, or with answers that loop.

    `max_repeated` is the largest share of an answer's word 5-grams that may have occurred in it before.
    """

    name: Literal["hygiene"] = "hygiene"
    checks: tuple[HygieneCheck, ...] = Field(default=get_args(HygieneCheck), min_length=1)
    max_repeated: float = Field(default=0.5, gt=0.0, le=1.0)


class ExactDuplicates(Spec):
    """Drop rows whose text, case and white space aside, occurs before in the pool (by id) or in the task set."""

    name: Literal["exact_duplicates"] = "exact_duplicates"
    against: tuple[Against, ...] = Field(default=("pool", "task"), min_length=1)
    part: TextPart = "conversation"


class NearDuplicates(Spec):
    """Drop rows whose word 3-grams have at least this Jaccard similarity with an earlier row's, or a task row's."""

    name: Literal["near_duplicates"] = "near_duplicates"
    against: tuple[Against, ...] = Field(default=("pool", "task"), min_length=1)
    part: TextPart = "conversation"
    similarity: float = Field(default=0.8, ge=0.3, le=1.0)


class ContaminationFilter(Spec):
    """Drop rows that hold `ngram` consecutive words of a prompt of a named evaluation set.

    A prompt with fewer words counts when the row holds all of it. Sets are `evaluations/NAME.txt` (a prompt a
    line) or `evaluations/NAME.jsonl` in the store.
    """

    name: Literal["contamination"] = "contamination"
    sets: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")], ...] = Field(min_length=1)
    ngram: int = Field(default=8, ge=2, le=50)


FilterSpec = Annotated[
    RefusalFilter
    | HarmFilter
    | LabelFilter
    | LengthFilter
    | HygieneFilter
    | ExactDuplicates
    | NearDuplicates
    | ContaminationFilter,
    Field(discriminator="name"),
]


# Answers of one or two words and an end marker teach nothing, and their mean loss scatters most.
DEFAULT_MIN_TOKENS = 4


def default_filters(refusals: FilterSpec | None = None) -> tuple[FilterSpec, ...]:
    """What a pool is filtered by unless its recipe says otherwise; `refusals` in the place of the rule for refusals.

    Rows without a token count (of a corpus that is not scored) pass, and are counted.
    """
    short = LengthFilter(min_tokens=DEFAULT_MIN_TOKENS, missing="ignore")
    return (refusals or RefusalFilter(), HygieneFilter(), short)
