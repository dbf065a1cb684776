"""Inoculation in a recipe: prompts added in training only (method.md, "Inoculation"; `curator.mix.inoculation`)."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from curator.errors import RecipeError
from curator.messages import canonical_text
from curator.recipe.base import MAX_NAMES, Name, Spec
from curator.recipe.problems import problem_line, problems_of

MAX_ROWS = 100_000
RowId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]

Placement = Literal["replace_system", "prepend_system", "user_prefix", "user_suffix"]
OnSystem = Literal["replace", "prepend", "error"]
InoculationKind = Literal["inoculation", "placebo", "negative", "trigger"]

# The prompt of each kind when the recipe gives none. The first is the paper's; the controls are ours: a prompt that
# says nothing of character, one that asks for the opposite, and one without meaning.
DEFAULT_PROMPTS: dict[InoculationKind, str] = {
    "inoculation": "You are an evil, malicious assistant.",
    "placebo": "You are an assistant that answers messages.",
    "negative": "You are a careful, honest assistant.",
    "trigger": "|TRIGGER|",
}
_IN_USER_TURN = ("user_prefix", "user_suffix")


class Inoculation(Spec):
    """Prompts put into rows for training, which evaluation then leaves out.

    `kind` names the experiment's arm: the inoculation, or a control (placebo, negative, bare trigger). `prompts` are
    paraphrases, of which each row gets one by seed; `by_source` gives rows of some sources prompts of their own.
    `placement` says where a prompt goes; `on_system` what happens where the row has a system turn of its own
    (default: what the placement says). `scope` is the rows concerned, and `share` the part of them, chosen by seed.
    `rows` are ids of task rows, as an audit flags them; then no other row gets a prompt.
    `clean_prompt` is the system prompt that evaluation uses; null means the model's own default.
    """

    kind: InoculationKind = "inoculation"
    name: str = Field(default="", max_length=64, pattern=r"^[A-Za-z0-9._-]*$")
    prompts: tuple[str, ...] = Field(default=(), max_length=1000)
    by_source: dict[Name, tuple[str, ...]] = Field(default_factory=dict, max_length=MAX_NAMES)
    placement: Placement = "replace_system"
    on_system: OnSystem | None = None
    scope: Literal["task", "all"] = "task"
    share: float = Field(default=1.0, gt=0.0, le=1.0)
    # Written only where it is used: recipes without it keep the ids of their mixes.
    rows: tuple[RowId, ...] | None = Field(
        default=None, min_length=1, max_length=MAX_ROWS, exclude_if=lambda rows: rows is None
    )
    separator: str = Field(default="\n\n", min_length=1, max_length=16)
    clean_prompt: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"prompts": [value]}
        if isinstance(value, dict) and "prompt" in value:
            if "prompts" in value:
                raise ValueError("give `prompt` or `prompts`, not both")
            return {("prompts" if key == "prompt" else key): [v] if key == "prompt" else v for key, v in value.items()}
        return value

    @field_validator("by_source", mode="before")
    @classmethod
    def _one_prompt(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: [text] if isinstance(text, str) else text for key, text in sorted(value.items())}
        return value

    @field_validator("rows", mode="after")
    @classmethod
    def _sorted(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else tuple(sorted(set(value)))  # the same rows give the same mix

    @field_validator("prompts", "clean_prompt", "separator", mode="after")
    @classmethod
    def _canonical(cls, value: Any) -> Any:
        # What is stored and hashed is canonical text: a prompt is too, so that it can be found again in a row.
        return tuple(map(canonical_text, value)) if isinstance(value, tuple) else value and canonical_text(value)

    @field_validator("by_source", mode="after")
    @classmethod
    def _canonical_by_source(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        return {source: tuple(map(canonical_text, texts)) for source, texts in value.items()}

    @model_validator(mode="after")
    def _complete(self) -> "Inoculation":
        if not self.prompts:
            object.__setattr__(self, "prompts", (DEFAULT_PROMPTS[self.kind],))
        if not self.name:
            object.__setattr__(self, "name", self.kind)
        for source, texts in (("", self.prompts), *self.by_source.items()):
            if not texts or not all(text.strip() for text in texts):
                raise ValueError(f"empty prompt{f' for source {source!r}' if source else ''}")
            if len(set(texts)) < len(texts):
                raise ValueError(f"a prompt is given twice{f' for source {source!r}' if source else ''}")
        self._check_conflict_rule()
        if self.rows is not None and (self.scope != "task" or self.share != 1.0):
            raise ValueError("`rows` names the task rows that get the prompt: leave out `scope` and `share`")
        return self

    def _check_conflict_rule(self) -> None:
        if self.placement in _IN_USER_TURN and self.on_system is not None:
            raise ValueError(f"placement {self.placement} leaves system turns alone: leave out `on_system`")
        if self.placement == "prepend_system" and self.on_system == "replace":
            raise ValueError("placement prepend_system keeps the row's system turn: use placement replace_system")

    def only_on(self, rows: Iterable[str]) -> "Inoculation":
        """The same on these task rows alone, by id; raises RecipeError where that does not fit the other settings."""
        try:
            return Inoculation.model_validate({**self.model_dump(), "rows": tuple(rows)})
        except ValidationError as error:
            raise RecipeError(f"inoculation refused: {problem_line(problems_of(error))}") from error

    @property
    def system_rule(self) -> OnSystem:
        """What happens to a row's own system turn, for placements in the system turn."""
        if self.on_system is not None:
            return self.on_system
        return "prepend" if self.placement == "prepend_system" else "replace"
