"""A plan: commands of the product in order, shown before they run, each skipping what is complete."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import orjson
import yaml
from pydantic import ValidationError

from curator.console import as_typed, say
from curator.errors import BadInputError
from curator.recipe.base import Strict
from curator.recipe.problems import problem_line, problems_of
from trainer.plans.commands import Commands, command_line
from trainer.plans.cost import Cost
from trainer.runs.folder import write_json

_MADE = "made.json"
S = TypeVar("S", bound=Strict)


@dataclass(frozen=True)
class Step:
    """One step: a command with its arguments, or a `check` of this process where there is none.

    `use` is given what a command with --json printed. `complete` says that there is nothing to do, for commands that do
    not see it by themselves. `note` says what makes the step long or what it needs, `cost` what it would take.
    """

    title: str
    module: str | None = None
    arguments: Sequence[object] = ()
    check: Callable[[], None] | None = None
    use: Callable[[Any], None] | None = None
    complete: Callable[[], bool] | None = None
    note: str | None = None
    cost: Cost | None = None

    @property
    def line(self) -> str | None:
        """The command as a reader would type it."""
        return None if self.module is None else command_line(self.module, self.arguments)


@dataclass(frozen=True)
class Made:
    """Files of a folder and what each was made from, for commands that cannot see by themselves that nothing changed.

    What they were made from is kept in made.json, as JSON values.
    """

    folder: Path

    def is_current(self, name: str, inputs: Any) -> bool:
        """Whether the file is there and was made from these inputs."""
        return (self.folder / name).is_file() and self._read().get(name) == orjson.loads(orjson.dumps(inputs))

    def keep(self, name: str, inputs: Any) -> None:
        """Note what the file was made from, once it is there."""
        write_json(self.folder / _MADE, {**self._read(), name: inputs})

    def _read(self) -> dict[str, Any]:
        path = self.folder / _MADE
        found: dict[str, Any] = orjson.loads(path.read_bytes()) if path.is_file() else {}
        return found


@dataclass
class PlanRun:
    """Runs steps one after the other; `commands` keeps the lines that were run, `n_steps` counts all steps."""

    quiet: bool = False
    commands: list[str] = field(default_factory=list)
    n_steps: int = 0

    def run(self, steps: Sequence[Step]) -> None:
        """Every step in order. Raises CommandError or BallastError at the first that fails; what is done stays."""
        for step in steps:
            self.n_steps += 1
            if not self.quiet:
                say(f"\n[{self.n_steps}] {step.title}")
            if step.complete is not None and step.complete():
                if not self.quiet:
                    say("  complete before; nothing to do")
                continue
            if step.module is not None:
                runner = Commands()
                printed, _ = runner.run(step.module, *step.arguments)
                self.commands += runner.commands
                if step.use is not None:
                    step.use(printed)
            if step.check is not None:
                step.check()


def show_plan(steps: Sequence[Step], price_per_hour: float | None = None) -> None:
    """Print each step with its command line, and what it would take where that was measured."""
    for number, step in enumerate(steps, 1):
        say(f"[{number}] {step.title}")
        if step.line is not None:
            say(as_typed(f"  $ {step.line}"))
        if step.note is not None:
            say(as_typed(f"    {step.note}"))
        if step.cost is not None:
            say(f"    {step.cost.line(price_per_hour)}")
    hours = [step.cost.hours for step in steps if step.cost is not None and step.cost.hours is not None]
    if hours:
        price = "" if price_per_hour is None else f", price {sum(hours) * price_per_hour:.2f}"
        say(f"In all {sum(hours):.3g} hours{price}, by short bursts here.")
        left_out = [
            f"[{number}] {step.title.partition(':')[0]}"
            for number, step in enumerate(steps, 1)
            if step.cost is None or step.cost.hours is None
        ]
        if left_out:
            say(f"Not measured, so not in these hours: {'; '.join(left_out)}.")
    say("No step was run. The same command without --plan runs it, skips what is complete, and goes on after a stop.")


def plan_document(steps: Sequence[Step], price_per_hour: float | None = None) -> list[dict[str, Any]]:
    """The plan as plain values, for --plan --json."""
    return [
        {
            "title": step.title, "command": step.line, "note": step.note,
            "cost": None if step.cost is None else step.cost.document(price_per_hour),
        }
        for step in steps
    ]  # fmt: skip


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """--plan and what goes with it."""
    add = parser.add_argument
    add("--plan", action="store_true",
        help="print each step with its command line, rows, tokens, hours and memory, and run nothing")  # fmt: skip
    add("--no-burst", action="store_true", help="with --plan: leave out what has to be measured")


def read_settings(file: Path | None, given: Mapping[str, Any], settings: type[S]) -> S:
    """Settings from a YAML file (its keys are the options' names with _) and from options, which win.

    Raises BadInputError naming the file's fault, unknown keys and values out of range.
    """
    document: dict[str, Any] = {}
    if file is not None:
        try:
            loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise BadInputError(f"--settings {file} cannot be read: {error}") from error
        if not isinstance(loaded, dict):
            raise BadInputError(f"--settings {file}: write one `name: value` a line")
        document = loaded
    document |= {name: value for name, value in given.items() if value not in (None, [], ())}
    try:
        return settings.model_validate(document)
    except ValidationError as error:
        problems = problems_of(error)
        raise BadInputError(f"settings refused: {problem_line(problems)}", details=problems) from error
