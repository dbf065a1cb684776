import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from curator.errors import BadInputError
from curator.recipe.base import Strict
from trainer.config import parse_config
from trainer.config.defences import ALL_SETTINGS
from trainer.config.flags import Option, add_options, flag, given_settings, given_values
from trainer.config.options import defence_name, other_fields, parse_arguments

ARGV = ["--model", "m", "--out", "o", "--data", "d.jsonl"]
FROM_MIX = ["--model", "m", "--out", "o", "--mix-id", "a" * 32, "--store", "s"]


def defences(*argv: str, mix: bool = False) -> tuple[Any, ...]:
    found: tuple[Any, ...] = parse_arguments([*(FROM_MIX if mix else ARGV), *argv]).config.defences
    return found


def test_every_flag_reaches_its_setting() -> None:
    argv = [
        "--kl", "0.3", "--kl-direction", "reference_student", "--kl-tokens", "response", "--kl-rows", "safe",
        "--kl-estimator", "sampled", "--kl-sample-share", "0.5", "--kl-schedule", "linear:0:9:0.5",
        "--ldifs", "2", "--ldifs-every", "3", "--ldifs-layers", "5,7", "--ldifs-tokens", "response",
        "--ldifs-schedule", "cosine", "--treft", "7", "--treft-tokens", "postfix", "--treft-layers", "1,2",
        "--treft-hinge", "0.1", "--treft-schedule", "window:1:2", "--steering", "v.safetensors", "--steering-vector",
        "evil", "--steering-alpha", "-3", "--steering-layers", "20", "--steering-tokens", "response",
        "--steering-schedule", "constant", "--inoculation-adapter", "./runs/a", "--inoculation-adapter-scale", "0.5",
        "--inoculation-adapter-schedule", "linear", "--gating", "--gating-layers", "4",
        "--gating-schedule", "window:0:3",
    ]  # fmt: skip
    flags = {item for item in argv if item.startswith("--")}
    for settings in ALL_SETTINGS:
        name = defence_name(settings)
        assert {flag("", name), *(flag(name, field) for field in other_fields(settings))} <= flags
    kl, ldifs, treft, steering, inoculation, gating = defences(*argv, mix=True)
    assert (kl.weight, kl.direction, kl.tokens, kl.rows) == (0.3, "reference_student", "response", "safe")
    assert (kl.estimator, kl.sample_share, kl.schedule.final) == ("sampled", 0.5, 0.5)
    assert (ldifs.weight, ldifs.every, ldifs.layers, ldifs.tokens) == (2.0, 3, (5, 7), "response")
    assert ldifs.schedule.shape == "cosine"
    assert (treft.weight, treft.tokens, treft.layers, treft.hinge) == (7.0, "postfix", (1, 2), 0.1)
    assert treft.schedule.last_step == 2
    assert (steering.vectors, steering.vector, steering.alpha) == (Path("v.safetensors"), "evil", -3.0)
    assert (steering.layers, steering.tokens) == ((20,), "response")
    assert (inoculation.adapter, inoculation.scale) == (Path("runs/a"), 0.5)
    assert inoculation.schedule.shape == "linear"
    assert (gating.layers, gating.schedule.shape) == ((4,), "window")


def test_the_published_values_are_the_defaults() -> None:
    kl, ldifs, treft, steering = defences("--kl", "0.1", "--ldifs", "1", "--treft", "10", "--steering", "v.safetensors")
    assert (kl.direction, kl.tokens, kl.rows, kl.estimator) == ("student_reference", "all", "all", "full")
    assert (ldifs.every, ldifs.layers) == (5, None)
    assert (treft.tokens, treft.hinge) == ("prefix", 0.0)
    assert (steering.alpha, steering.tokens) == (5.0, "all")
    assert all(item.schedule.shape == "constant" for item in (kl, ldifs, treft, steering))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--kl-tokens", "all"], "--kl-tokens goes with --kl, which was not given"),
        (["--ldifs", "1", "--ldifs-layers", ""], "ldifs: an empty list of layers would do nothing"),
        (["--ldifs", "1", "--ldifs-layers", "3,3"], "each layer once"),
        (["--ldifs", "1", "--ldifs-layers", "0"], "must be at least 1"),
        (["--kl", "0.1", "--kl-rows", "safe"], "rows=safe needs a mix"),
        (["--gating", "--full"], "gating trains its gates alone"),
        (["--kl", "nan"], "finite number"),
        (["--treft", "-1"], "must be at least 0"),
        (["--treft", "1", "--treft-schedule", "window:5:5"], "must come after its first"),
        (["--kl", "0.1", "--kl-schedule", "steps"], "shape"),
    ],
)
def test_what_would_do_nothing_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        defences(*argv)


def test_all_defences_go_together_and_each_once() -> None:
    document = {"model": "m", "out": "o", "data": "d.jsonl"}
    every = [{"name": "kl"}, {"name": "ldifs"}, {"name": "treft"}, {"name": "gating"}]
    assert len(parse_config(document | {"defences": [*every, {"name": "steering", "vectors": "v"}]}).defences) == 5
    with pytest.raises(BadInputError, match="each defence once"):
        parse_config(document | {"defences": [*every, {"name": "gating"}]})


def test_token_classes_are_rendered_only_where_a_defence_needs_them() -> None:
    document = {"model": "m", "out": "o", "data": "d.jsonl"}
    assert not parse_config(document | {"defences": [{"name": "kl"}, {"name": "gating"}]}).needs_classes
    assert parse_config(document | {"defences": [{"name": "treft"}]}).needs_classes


def test_a_vectors_file_counts_by_content_in_what_is_trained(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"same")
    (tmp_path / "c").write_bytes(b"other")
    document = {"model": "m", "out": "o", "data": "d.jsonl"}
    one, two, three = (
        parse_config(document | {"defences": [{"name": "steering", "vectors": tmp_path / name}]}).without_places()
        for name in ("a", "b", "c")
    )
    assert one == two != three
    assert str(tmp_path) not in str(one)


class _Oven(Strict):
    """Settings with a field of each kind."""

    shelf: Literal["top", "low"] = Field(default="low", description="where it stands")
    degrees: float = Field(default=200.0, description="100 % of the heat")
    minutes: Annotated[int | None, Option(aliases=("--time",))] = Field(default=None, description="for so long")
    fan: bool = Field(default=True, description="without the fan")
    trays: tuple[str, ...] = Field(default=("a", "b"), description="in this order")


@dataclass(frozen=True)
class _Cake:
    eggs: Annotated[int, Option(help="how many")] = 3
    tin: Annotated[Path | None, Option("TIN", help="baked in")] = None


def test_options_come_from_a_models_fields(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, _Oven, prefix="oven")
    assert given_values(vars(parser.parse_args([])), _Oven, prefix="oven") == {}
    argv = ["--oven-shelf", "top", "--oven-degrees", "180", "--time", "5", "--oven-fan", "--oven-trays", "c,d"]
    found = given_values(vars(parser.parse_args(argv)), _Oven, prefix="oven")
    assert found == {"shelf": "top", "degrees": 180.0, "minutes": 5, "fan": False, "trays": ("c", "d")}
    with pytest.raises(SystemExit, match="0"):
        parser.parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("where it stands (default: low)", "100 % of the heat (default: 200)", "in this order (default: a,b)"):
        assert text in shown
    assert "for so long (default" not in shown


def test_options_come_from_a_dataclass(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, _Cake, defaults={"eggs": 4})
    assert given_values(vars(parser.parse_args(["--tin", "round", "--eggs", "2"])), _Cake) == {
        "tin": Path("round"), "eggs": 2,
    }  # fmt: skip
    with pytest.raises(SystemExit, match="0"):
        parser.parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "how many (default: 4)" in shown
    assert "--tin TIN baked in" in shown


def test_a_setting_without_its_switch_is_refused() -> None:
    assert given_settings({}, _Oven, prefix="oven", main="minutes") is None
    given = {"oven_minutes": 3, "oven_shelf": "top", "other": 1}
    assert given_settings(given, _Oven, prefix="oven", main="minutes") == {"minutes": 3, "shelf": "top"}
    with pytest.raises(BadInputError, match="--oven-shelf goes with --oven-minutes, which was not given"):
        given_settings({"oven_shelf": "top"}, _Oven, prefix="oven", main="minutes")
