import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from curator.errors import BadInputError
from curator.recipe.base import Strict
from curator.recipe.document import load_document
from trainer.config import parse_config
from trainer.config.defences import ALL_SETTINGS
from trainer.config.flags import Option, add_options, given_settings, given_values
from trainer.config.options import defence_name, parse_arguments

ARGV = ["--model", "m", "--out", "o", "--data", "d.jsonl"]
FROM_MIX = ["--model", "m", "--out", "o", "--mix-id", "a" * 32, "--store", "s"]


def defences(*argv: str, mix: bool = False) -> tuple[Any, ...]:
    found: tuple[Any, ...] = parse_arguments([*(FROM_MIX if mix else ARGV), *argv]).config.defences
    return found


FILE = """
kl: {weight: 0.3, direction: reference_student, tokens: response, rows: safe, estimator: sampled, sample_share: 0.5,
     schedule: "linear:0:9:0.5"}
ldifs: {weight: 2, every: 3, layers: [5, 7], tokens: response, schedule: cosine}
treft: {weight: 7, tokens: postfix, layers: [1, 2], hinge: 0.1, schedule: {shape: window, first_step: 1, last_step: 2}}
steering: {vectors: v.safetensors, vector: evil, alpha: -3, layers: [20], tokens: response, schedule: constant}
inoculation_adapter: {adapter: ./runs/a, scale: 0.5, schedule: linear}
gating: {layers: [4], schedule: "window:0:3"}
"""


def of_file(folder: Path, text: str, *argv: str, mix: bool = False) -> tuple[Any, ...]:
    """The defences of a file that holds `text`, beside other options."""
    path = folder / "defenses.yaml"
    path.write_text(text)
    return defences("--defenses", str(path), *argv, mix=mix)


def test_every_setting_of_a_file_reaches_its_defence(tmp_path: Path) -> None:
    document = load_document(FILE)
    for settings in ALL_SETTINGS:
        assert set(document[defence_name(settings)]) == set(settings.model_fields) - {"name"}
    found = of_file(tmp_path, FILE, mix=True)
    kl, ldifs, treft, steering, inoculation, gating = found
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
    assert of_file(tmp_path, json.dumps(document), mix=True) == found


def test_flags_and_a_file_go_together_in_one_order(tmp_path: Path) -> None:
    argv = ("--kl", "0.3", "--steering", "v", "--inoculation-adapter", "./runs/a", "--gating")
    found = of_file(tmp_path, "treft: {hinge: 0.5}\nldifs:\n", *argv)
    assert [item.name for item in found] == list(map(defence_name, ALL_SETTINGS))
    assert (found[0].weight, found[1].weight, found[2].hinge, found[2].weight) == (0.3, 1.0, 0.5, 10.0)
    assert defences(*argv) == (found[0], *found[3:])


def test_an_option_of_a_finer_setting_says_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        defences("--kl", "0.1", "--kl-rows", "safe")
    assert "put it into a file, as `kl: {rows: ...}`, and give that as --defenses" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ldifs: {layers: []}", "ldifs: an empty list of layers would do nothing"),
        ("ldifs: {layers: [3, 3]}", "each layer once"),
        ("ldifs: {layers: [0]}", "must be at least 1"),
        ("kl: {rows: safe}", "rows=safe needs a mix"),
        ("treft: {schedule: 'window:5:5'}", "must come after its first"),
        ("kl: {schedule: steps}", "shape"),
        ("kl: {wieght: 0.1}", r"defenses\.yaml: kl refused: /wieght: is not a known key"),
        ("kl: {weight: -1}", r"defenses\.yaml: kl refused: /weight: -1 must be at least 0"),
        ("kl: {weight: '0.1'}", r"defenses\.yaml: kl refused: /weight: expected a number, found '0\.1'"),
        ("treft: {schedule: {shape: linear, fnal: 1}}", r"defenses\.yaml: treft refused: .*fnal: is not a known key"),
        ("kll: {weight: 0.1}", "there is no defence 'kll'; known are kl, ldifs"),
        ("steering: {alpha: 1}", "vectors"),
        ("kl: 0.1", "kl takes settings by name"),
        ("kl: {name: ldifs}", "kl takes settings by name"),
        ("- kl", "holds no defence"),
        ("", "holds no defence"),
        ("kl: {weight: 1}\nkl: {weight: 2}", "neither YAML nor JSON"),
        ("gating: {}", "defenses.yaml has gating, and so has --gating: leave one of them out"),
        ("inoculation_adapter: {adapter: org/nowhere@v1}", "hf download org/nowhere"),
    ],
)
def test_what_a_file_cannot_say_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match=message):
        of_file(tmp_path, text, *(["--gating"] if text.startswith("gating") else []))


def test_a_flag_at_fault_is_named_as_it_was_written() -> None:
    with pytest.raises(BadInputError, match=r"^--kl refused: /weight: -1\.0 must be at least 0$"):
        defences("--kl", "-1")


def test_the_page_has_every_setting_with_its_default() -> None:
    section = (Path(__file__).parents[3] / "docs/defences.md").read_text().split("## Settings in a file")[1]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section.split("## Schedules")[0], re.MULTILINE))
    for settings in ALL_SETTINGS:
        row = rows[defence_name(settings)]
        for name, field in settings.model_fields.items():
            if name not in ("name", "schedule"):
                default = f" {field.default:g}" if isinstance(field.default, float | int) else f" {field.default}"
                assert f"`{name}`{default if field.default and not field.is_required() else ''}" in row, (row, name)


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
        (["--monitor-every", "2"], "--monitor-every goes with --monitor, which was not given"),
        (["--gating", "--full"], "gating trains its gates alone"),
        (["--kl", "nan"], "finite number"),
        (["--treft", "-1"], "must be at least 0"),
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
