"""How a data set is read and how its rows are rendered: the same options, with one meaning, for every command.

Each is declared here once. `python -m curator score` has `--template-date` and `--accept-dropped` of the same meaning.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from curator.corpus.formats import Container, Layout
from curator.corpus.task_set import OnBadRows
from curator.recipe.base import Strict
from curator.render import PARTS, Part, RenderSettings
from curator.render.settings import DEFAULT_DATE
from trainer.config.flags import Option, add_options, given_values
from trainer.config.ranges import at_least


class ReadOptions(Strict):
    """How records are packed and conversations written (default: detected), and how bad records are treated."""

    data_format: Annotated[Container | None, Option(flag="--format")] = Field(
        default=None, description="how records of a data set are packed (default: detected)"
    )
    data_layout: Annotated[Layout | None, Option(flag="--layout")] = Field(
        default=None, description="how a conversation of a data set is written (default: detected by record)"
    )
    on_bad_rows: OnBadRows = Field(
        default="refuse", description="refuse a data set with bad rows and list them (default), or keep them out"
    )


class RenderOptions(Strict):
    """What a user decides about the chat template's text."""

    template_date: Annotated[str | None, Option("YYYY-MM-DD")] = Field(
        default=None,
        description=f"date for a template that asks for today's date (default: its own, else {DEFAULT_DATE})",
    )
    accept_dropped: tuple[Part, ...] = Field(
        default=(),
        description="take rows although the template leaves out this part, and count them (default: they are refused); "
        "may be repeated",
    )

    @field_validator("template_date")
    @classmethod
    def _a_day(cls, value: str | None) -> str | None:
        RenderSettings.parse(value)
        return value

    @field_validator("accept_dropped")
    @classmethod
    def _each_once(cls, value: tuple[Part, ...]) -> tuple[Part, ...]:
        return tuple(part for part in PARTS if part in value)  # the same parts are the same run

    @property
    def rendering(self) -> RenderSettings:
        """The renderer's settings."""
        return RenderSettings.parse(self.template_date, self.accept_dropped)


AS_DETECTED, AS_THE_TEMPLATE = ReadOptions(), RenderSettings()


@dataclass(frozen=True)
class Loading:
    """How a model folder is loaded to measure it or to let it answer, `batch` prompts at a time."""

    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Option(help="weights in memory")] = "auto"
    device: Annotated[str, Option(help="auto, cpu, cuda or cuda:N")] = "auto"
    batch: Annotated[int, Option(help="answers at a time", parse=at_least(1))] = 16
    rendering: RenderSettings = AS_THE_TEMPLATE


LOADED_BY_DEFAULT = Loading()


def add_model_options(target: Any) -> None:
    """`--dtype` and `--device`, `--template-date` and `--accept-dropped`: of commands that measure a model folder."""
    add_options(target, Loading, ("dtype", "device"))
    add_options(target, RenderOptions)


def loading_of(args: argparse.Namespace) -> Loading:
    """How the model is loaded, among parsed options; raises BadInputError for a template date that is not a day."""
    return Loading(**given_values(vars(args), Loading), rendering=rendering_of(args))


def rendering_of(args: argparse.Namespace) -> RenderSettings:
    """The renderer's settings among parsed options; raises BadInputError for a date that is not a day."""
    parts: Sequence[str] = args.accept_dropped or ()
    return RenderSettings.parse(args.template_date, parts)


def add_read_options(target: Any) -> None:
    """`--format`, `--layout` and `--on-bad-rows`."""
    add_options(target, ReadOptions)


def reading_of(args: argparse.Namespace) -> ReadOptions:
    """How data sets are read, among parsed options."""
    return ReadOptions(**given_values(vars(args), ReadOptions))
