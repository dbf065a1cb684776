"""Command-line flags of the defences, made from their settings: a field is described once, where it is declared.

The flag named like the defence switches it on and takes its main setting (a weight, or the vectors' file); every other
field is `--DEFENCE-FIELD`.
"""

import argparse
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from curator.errors import BadInputError
from trainer.defenses.schedule import SYNTAX
from trainer.defenses.settings import ALL_SETTINGS, DefenceBase

# What the flag named like the defence takes; None: nothing.
MAIN_FIELD: dict[str, str | None] = {
    "kl": "weight",
    "ldifs": "weight",
    "treft": "weight",
    "steering": "vectors",
    "gating": None,
}
_TITLES = {
    "kl": "add WEIGHT * KL against the model before training",
    "ldifs": "add WEIGHT * distance of normalised hidden states from those before training",
    "treft": "add WEIGHT * relative distance of keys and values at template tokens",
    "steering": "add persona vectors to the residual stream while training",
    "gating": "train gates on the attention outputs instead of the adapter",
}


def add_defence_options(parser: argparse.ArgumentParser) -> None:
    """A group of flags for every defence."""
    group = parser.add_argument_group("defences (docs/defences.md says what each of them computes)")
    for settings in ALL_SETTINGS:
        name = defence_name(settings)
        main = MAIN_FIELD[name]
        if main is None:
            group.add_argument(f"--{name}", action="store_true", default=None, help=_TITLES[name])
        else:
            group.add_argument(
                f"--{name}",
                metavar="FILE" if main == "vectors" else "WEIGHT",
                help=f"{_TITLES[name]}: {settings.model_fields[main].description}",
            )
        for field, info in other_fields(settings).items():
            group.add_argument(flag(name, field), metavar=_metavar(info), choices=_choices(info), help=_help(info))


def defence_documents(given: dict[str, Any]) -> list[dict[str, Any]]:
    """The defences of parsed arguments (those not given left out), as documents for TrainConfig.

    Raises BadInputError for a defence's option without the defence.
    """
    documents = []
    for settings in ALL_SETTINGS:
        name, main = defence_name(settings), MAIN_FIELD[defence_name(settings)]
        options = {field: given[key] for field in other_fields(settings) if (key := _key(name, field)) in given}
        if name not in given:
            if options:
                raise BadInputError(f"{flag(name, next(iter(options)))} goes with --{name}, which was not given")
            continue
        if "layers" in options:
            options["layers"] = [part for part in options["layers"].split(",") if part]
        documents.append({"name": name} | ({main: given[name]} if main else {}) | options)
    return documents


def defence_name(settings: type[DefenceBase]) -> str:
    """The name that a defence's settings carry."""
    return str(settings.model_fields["name"].default)


def other_fields(settings: type[DefenceBase]) -> dict[str, FieldInfo]:
    """The fields that have a flag of their own."""
    main = MAIN_FIELD[defence_name(settings)]
    names = [field for field in settings.model_fields if field not in ("name", "schedule", main)]
    return {field: settings.model_fields[field] for field in [*names, "schedule"]}


def flag(name: str, field: str) -> str:
    """`--kl-sample-share` for field `sample_share` of `kl`."""
    return f"--{name}-{field.replace('_', '-')}"


def _key(name: str, field: str) -> str:
    return f"{name}_{field}"


def _choices(info: FieldInfo) -> tuple[str, ...] | None:
    return get_args(info.annotation) if get_origin(info.annotation) is Literal else None


def _metavar(info: FieldInfo) -> str | None:
    if _choices(info) is not None:
        return None
    text = str(info.annotation)
    if "Schedule" in text:
        return SYNTAX
    if "tuple" in text:
        return "L,L"
    return "NAME" if "str" in text else "N" if "int" in text else "X"


def _help(info: FieldInfo) -> str:
    default = info.default
    if default is None or not isinstance(default, str | int | float):
        return f"{info.description}"
    return f"{info.description} (default: {default})"
