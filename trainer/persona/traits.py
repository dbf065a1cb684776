"""Traits: what they mean, pairs of contrastive system prompts, and questions whose answers can show them.

Seven are shipped beside this module, all written for this project: five pairs and thirty questions each. Persona
vectors use the first twenty questions (method.md, "Regularisers"), the trait-space monitor all thirty ("Evaluation").
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
import yaml
from pydantic import Field, ValidationError, field_validator

from curator.errors import BadInputError, MissingError, RenderError
from curator.messages import Message
from curator.recipe.base import Strict
from curator.recipe.problems import problem_line, problems_of
from curator.render import Renderer

FOLDER = Path(__file__).parent / "traits"
# The order of the monitor's seven-vector. Which seven is our choice: docs/method.md.
SHIPPED = ("evil", "sycophancy", "hallucination", "deception", "power_seeking", "callousness", "recklessness")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_Text = Annotated[str, Field(min_length=1)]


class _Document(Strict, str_strip_whitespace=True):
    """Texts without white space at their ends."""


class PromptPair(_Document):
    """Two system prompts that differ in the trait and in little else."""

    positive: _Text
    negative: _Text


class Trait(_Document):
    """A trait by name; `description` is what a judge is asked about."""

    trait: str
    description: _Text
    pairs: tuple[PromptPair, ...] = Field(min_length=1)
    questions: tuple[_Text, ...] = Field(min_length=1)

    @field_validator("trait")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("a trait's name has small letters, digits, _ and - alone: it names files and tensors")
        return value

    @property
    def sha256(self) -> str:
        """Hash of everything that decides an extraction."""
        return hashlib.sha256(orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)).hexdigest()

    def first(self, n_questions: int) -> "Trait":
        """The same trait with its first questions alone; raises BadInputError when there are fewer."""
        if not 1 <= n_questions <= len(self.questions):
            raise BadInputError(f"{n_questions} questions requested, {self.trait} has {len(self.questions)}")
        return self.model_copy(update={"questions": self.questions[:n_questions]})


@dataclass(frozen=True)
class Case:
    """One question under one side of one pair of prompts; indices count from 0."""

    pair: int
    question: int
    side: str  # "positive" | "negative"

    def prompt(self, trait: Trait, side: str | None = None, *, merged: bool = False) -> list[Message]:
        """System and user turn, under this side's system prompt or the other one's; `merged` puts it into the user's
        turn, for templates that know no system turn."""
        system, question = getattr(trait.pairs[self.pair], side or self.side), trait.questions[self.question]
        if merged:
            return [{"role": "user", "content": f"{system}\n\n{question}"}]
        return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def cases(trait: Trait) -> list[Case]:
    """Every pair, question and side: positive and negative of one pair and question stand side by side."""
    return [
        Case(pair, question, side)
        for pair in range(len(trait.pairs))
        for question in range(len(trait.questions))
        for side in ("positive", "negative")
    ]


def merges_system(renderer: Renderer) -> bool:
    """Whether the template refuses a system turn (Gemma's does), so that its text must go into the user's."""
    turns = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    try:
        renderer.render(turns)
    except RenderError:
        return True
    return False


def read_trait(name: str) -> Trait:
    """A shipped trait by name, or one's own from a YAML or JSON file of the same keys.

    Raises MissingError for a name that is neither, BadInputError naming every field at fault.
    """
    path = FOLDER / f"{name}.yaml" if name in SHIPPED else Path(name)
    if not path.is_file():
        raise MissingError(f"there is no trait {name} and no such file; shipped are {', '.join(SHIPPED)}")
    try:
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Trait.model_validate(document)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path} is neither YAML nor JSON: {str(error).splitlines()[0]}") from error
    except ValidationError as error:
        raise BadInputError(f"{path}: {problem_line(problems_of(error))}") from error
