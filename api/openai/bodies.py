"""What a client may ask of a fine-tuning job, and the refusal of what this service has no place for."""

from typing import Annotated, Any, Literal

from pydantic import Field

from api.errors import ApiError
from api.openai.errors import refused
from curator.recipe.base import Strict

Auto = Literal["auto"]
_OWN_PREFIX = "ballast_"
METADATA_RECIPE = "ballast_recipe"


class Hyperparameters(Strict):
    """What training is to do; `auto` leaves it to whoever trains."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50, strict=True)] | None = None
    batch_size: Auto | Annotated[int, Field(ge=1, le=65_536, strict=True)] | None = None
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=1e6)] | None = None

    def given(self) -> dict[str, Any]:
        """The ones that were given, by name."""
        return self.model_dump(exclude_none=True)


class Supervised(Strict):
    """The settings of supervised training."""

    hyperparameters: Hyperparameters | None = None


class Method(Strict):
    """How to train; settings of other methods than `supervised` are not looked at, since those are refused."""

    type: str = Field(max_length=64)
    supervised: Supervised | None = None
    dpo: dict[str, Any] | None = None
    reinforcement: dict[str, Any] | None = None


class Ballast(Strict):
    """The one field that OpenAI's requests do not have: a recipe that tightens the service's."""

    recipe: dict[str, Any] | None = None


class CreateJob(Strict):
    """The body of a create."""

    model: str = Field(min_length=1, max_length=256)
    training_file: str = Field(max_length=64)
    validation_file: str | None = Field(default=None, max_length=64)
    suffix: str | None = Field(default=None, min_length=1, max_length=64)
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=8_192)]] | None = Field(
        default=None, max_length=16
    )
    integrations: list[Any] | None = Field(default=None, max_length=16)
    ballast: Ballast | None = None

    def request(self) -> dict[str, Any]:
        """What a job keeps of it, in one form for all ways of saying it. Raises ApiError 400 for what is refused."""
        if self.method is not None and self.method.type != "supervised":
            raise _unsupported_method(self.method.type)
        if self.integrations:
            raise refused(400, "unsupported_integration", "this service has no integrations", "integrations")
        own = [key for key in self.metadata or {} if key.startswith(_OWN_PREFIX) and key != METADATA_RECIPE]
        if own:
            message = (
                f"keys of metadata that begin with {_OWN_PREFIX!r} are the service's own, but for {METADATA_RECIPE}"
            )
            raise refused(400, "invalid_value", message, f"metadata.{own[0]}")
        supervised = self.method.supervised if self.method is not None else None
        inner = supervised.hyperparameters if supervised is not None else None
        chosen = {**(self.hyperparameters or Hyperparameters()).given(), **(inner or Hyperparameters()).given()}
        fields = {"model", "training_file", "validation_file", "suffix", "seed"}
        return {**self.model_dump(include=fields), "metadata": self.metadata or {}, "hyperparameters": chosen}

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The caller's recipe in `ballast`, None without one."""
        return None if self.ballast is None else self.ballast.recipe


def _unsupported_method(name: str) -> ApiError:
    known = {"dpo": "direct preference", "reinforcement": "reinforcement"}.get(name, name[:40])
    message = f"{known} fine-tuning is not offered: safe rows are mixed into supervised training alone"
    return refused(400, "unsupported_method", message, "method.type")
