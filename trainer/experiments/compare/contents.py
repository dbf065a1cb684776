"""Hashes of the files that a plan names: a file corrected in place makes other cells, as another file does."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import yaml
from pydantic import Field

from curator.errors import BadInputError, MissingDependencyError, MissingError
from curator.recipe.base import Strict
from curator.render.model_source import locate_model, model_option
from curator.scoring.identity import adapter_sha256, weights_sha256
from trainer.config import TrainConfig
from trainer.config.defences import ALL_SETTINGS
from trainer.config.flags import Option, add_options
from trainer.config.monitor import MonitorSettings
from trainer.config.options import add_defence_options, defence_name, defences_of_file
from trainer.data.inputs import data_sha256
from trainer.experiments.compare.data import source_path
from trainer.experiments.compare.settings import OwnMethod, Plan

DEFENSES = "--defenses"  # of `trainer.sft`: a file
MIX_FILES = ("--recipe", "--policy", "--inoculation-rows")  # of `curator mix`: files that decide its rows


def with_contents(plan: Plan, *, needed: bool) -> Plan:
    """The plan with `contents`: SHA-256 of every file that it names, those that own methods and their files of defences
    name among them (of a model folder its weights' hash, of an adapter's that of its tensors and settings).

    Raises BadInputError for a file that is not there, unless `needed` is false: a page can be written without them
    only if its cells were (see `check_cells_found`).
    """
    found: dict[str, str] = {}
    absent: list[str] = []
    models = {plan.base_model, *(source for source, is_model in _own_sources(plan).items() if is_model)}
    for source in [*data_sources(plan), *method_sources(plan)]:
        try:
            found[source] = _content(source, fetch=needed, is_model=source in models)
        except MissingError:
            absent.append(source)
        except MissingDependencyError:  # a package, for which its own error says what to run
            if needed and source not in known_origins():
                raise
            absent.append(source)
    if absent and needed:
        raise _absent(absent)
    origins = known_origins()
    for source, digest in found.items():
        if source in origins and origins[source].sha256 != digest:
            sys.stderr.write(
                f"warning: {source} has SHA-256 {digest}, the file that the preset names {origins[source].sha256}\n"
            )
    return plan.model_copy(update={"contents": found})


class Origin(Strict):
    """Where a file that a preset names is from; `hub` is a data set of the Hugging Face hub, `get` what to run."""

    what: str
    hub: str | None
    place: str
    licence: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    get: str

    def describe(self) -> str:
        """In one line."""
        hub = f"; hub: {self.hub}" if self.hub else ""
        return f"{self.what}; from {self.place}{hub}; licence: {self.licence}; SHA-256 {self.sha256}; run: {self.get}"


@cache
def known_origins() -> Mapping[str, Origin]:
    """By name as the presets have it."""
    document = yaml.safe_load((Path(__file__).parent / "origins.yaml").read_text(encoding="utf-8"))
    return {name: Origin.model_validate(item) for name, item in document.items()}


def _absent(sources: Sequence[str]) -> BadInputError:
    """What is absent; of files that presets name also where they are from, each in a line on stderr and in details."""
    origins = known_origins()
    listed = [f"{name}: {origins[name].describe()}" for name in sources if name in origins]
    sys.stderr.writelines(f"  {line}\n" for line in listed)
    more = f", nor {', '.join(sources[1:])}" if len(sources) > 1 else ""
    how = "get them as listed, or" if listed else ""
    return BadInputError(
        f"there is no file {sources[0]}{more}; the plan names it: {how} name files of your own (--override KEY=FILE)",
        details=listed or list(sources),
    )


def _content(source: str, *, fetch: bool, is_model: bool) -> str:
    """Hash of a model's weights, of an adapter, or of a data set's files; MissingError where there is none here."""
    try:
        path = locate_model(source) if is_model else source_path(source)
    except BadInputError as error:
        if is_model:
            raise MissingError(error.message) from error
        raise
    if (path / "config.json").is_file():
        return weights_sha256(path)
    if (path / "adapter_config.json").is_file():
        return adapter_sha256(path)
    if not path.exists() and not fetch:
        raise MissingError(f"there is no file {source}")
    return data_sha256(source if path == Path(source) else path)


def check_cells_found(plan: Plan, found: Sequence[object | None], work: Path) -> None:
    """Raise BadInputError where no cell is found and something that the plan names is not here: names of cells hold
    hashes of all of it, so that finished ones would not be found, and the page would wrongly say that there are none.
    """
    named = [source for source in [*data_sources(plan), *method_sources(plan)] if source not in plan.contents]
    absent = [*([plan.model] if plan.weights_sha256 is None else []), *named]
    if absent and not any(item is not None for item in found):
        raise BadInputError(
            f"no finished cell under {work} has a name that this plan gives without {', '.join(absent[:3])}"
            f"{' and others' if len(absent) > 3 else ''}, not found here: cells are named by what these hold. Run the"
            " command where they are",
            details=absent,
        )


def data_sources(plan: Plan) -> list[str]:
    """What the shared files are made of, sorted."""
    named = {plan.task.file, plan.pool.file, plan.task.aligned, plan.evaluation.truthfulqa, plan.evaluation.text}
    named |= {file for domain in plan.domains for file in (*domain.files, *domain.aligned)}
    return sorted(name for name in named if name is not None)


def method_sources(plan: Plan) -> list[str]:
    """What single methods need besides."""
    named = [plan.steering_vectors, plan.self_recognition_rows, plan.base_model, *_own_sources(plan)]
    return [source for source in named if source is not None]


def _own_sources(plan: Plan) -> dict[str, bool]:
    """What own methods name in their flags or in a file of defences, and whether it is a model or an adapter."""
    found: dict[str, bool] = {}
    flags = {**_path_flags(), **dict.fromkeys(MIX_FILES, False)}
    for method in plan.methods:
        if isinstance(method, OwnMethod):
            words = (*(method.mix or ()), *method.sft)
            parts = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
            for flag, value in pairwise(parts):
                if flag in flags and value != "{vectors}":  # those are the plan's
                    found[value] = flags[flag]
                if flag == DEFENSES:
                    found |= _named_in(Path(value))
    return found


@cache
def _path_flags() -> Mapping[str, bool]:
    """Flags of `trainer.sft` whose value is a file, or a model or adapter (true), that decides what is trained."""
    parser = argparse.ArgumentParser()
    add_defence_options(parser)
    add_options(parser, MonitorSettings, prefix="monitor")
    add_options(parser, TrainConfig, ("start_adapter",))
    return {
        flag: action.type is model_option
        for action in parser._actions
        if action.type in (Path, model_option)
        for flag in action.option_strings
    }


def _named_in(file: Path) -> dict[str, bool]:
    """Files and adapters that a file of defences names, as it writes them, and whether it is a model or adapter; none
    where the file is not here."""
    found: dict[str, bool] = {}
    settings_of = {defence_name(settings): settings for settings in ALL_SETTINGS}
    for name, values in (defences_of_file(file) if file.exists() else {}).items():
        for field, info in settings_of[name].model_fields.items():
            if info.annotation is Path and isinstance(values.get(field), str):
                found[values[field]] = any(
                    isinstance(item, Option) and item.parse is model_option for item in info.metadata
                )
    return found
