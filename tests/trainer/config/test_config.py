from typing import Any

import pytest
from pydantic import ValidationError

from curator.errors import BadInputError
from trainer.config import SEVEN_PROJECTIONS, TrainConfig, parse_config
from trainer.config.options import parse_arguments

BASE: dict[str, Any] = {"model": "m", "out": "o", "data": "d.jsonl"}
ARGV = ["--model", "m", "--out", "o", "--data", "d.jsonl"]


def test_defaults_are_the_methods_recipe() -> None:
    config = parse_config(BASE)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout, config.lora.rslora) == (32, 64.0, 0.0, True)
    assert config.lora.targets == SEVEN_PROJECTIONS
    assert (config.lr, config.warmup_steps, config.weight_decay) == (1e-4, 5, 0.01)
    assert config.batch_size * config.grad_accum == 16
    assert (config.epochs, config.max_length, config.mask_rule) == (1, 2048, "all")
    assert parse_arguments(ARGV).config == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": 1e-4}, "/learning_rate: is not a known key"),
        ({"lr": 0}, "/lr: 0 must be above 0"),
        ({"lr": float("nan")}, "lr: "),
        ({"batch_size": 0}, "batch_size: "),
        ({"max_length": 1}, "max_length: "),
        ({"dtype": "float16"}, "dtype: "),
        ({"lora": {"r": 0}}, "/lora/r: "),
        ({"lora": {"rank": 4}}, "/lora/rank: is not a known key"),
        ({"lora": {"targets": []}}, "/lora/targets: .*at least one module"),
        ({"defences": [{"name": "kl", "weight": -1}]}, "/defences/0/kl/weight: "),
        ({"defences": [{"name": "kl", "direction": "up"}]}, "/defences/0/kl/direction: "),
        ({"defences": [{"name": "kl"}, {"name": "kl"}]}, "each defence once"),
        ({"data": None}, "refused: give exactly one of --mix-id and --data$"),
        ({"mix_id": "a" * 32}, "exactly one of --mix-id and --data"),
        ({"data": None, "mix_id": "a" * 32}, "exactly one of --api-url and --store"),
        ({"data": None, "mix_id": "a" * 32, "api_url": "u", "store": "s"}, "exactly one of --api-url and --store"),
        ({"store": "s"}, "go with --mix-id"),
        ({"template_date": "3.2.2031"}, "template_date: .*give a day as YYYY-MM-DD"),
        ({"accept_dropped": ["thoughts"]}, "/accept_dropped/0: "),
        ({"lr": 0, "epochs": 0}, "/epochs: .*; /lr: "),
    ],
)
def test_bad_values_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        parse_config(BASE | fields)


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse_config(BASE).lr = 1.0  # type: ignore[misc]


def test_places_are_no_part_of_what_is_trained() -> None:
    moved = parse_config(BASE | {"model": "elsewhere/m", "out": "o2", "data": "copy.jsonl"})
    assert moved.without_places() == parse_config(BASE).without_places()
    assert parse_config(BASE | {"seed": 1}).without_places() != moved.without_places()


def test_every_option_reaches_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [
        "--model", "m", "--out", "o", "--mix-id", "a" * 32, "--api-url", "http://h", "--tenant", "t", "--epochs", "2",
        "--max-steps", "7", "--batch-size", "3", "--grad-accum", "5", "--lr", "0.01", "--warmup-steps", "1",
        "--weight-decay", "0.5", "--max-grad-norm", "2", "--max-length", "99", "--seed", "8", "--mask-rule", "last",
        "--allow-masked-rows", "--dtype", "float32", "--device", "cpu", "--gradient-checkpointing", "--lora-r", "4",
        "--lora-alpha", "9", "--lora-dropout", "0.1", "--lora-targets", "q_proj,v_proj", "--no-rslora", "--kl", "0.3",
        "--overwrite", "--json", "--api-key", "k",
        "--monitor", "d", "--monitor-alarm", "r", "--monitor-every", "6", "--monitor-stop",
        "--reserve", "0.5", "--reserve-bound", "0.1",
        "--safelora", "b", "--safelora-tau", "0.5", "--template-date", "2031-02-03",
        "--accept-dropped", "reasoning", "--accept-dropped", "tool_calls", "--accept-dropped", "reasoning",
    ]  # fmt: skip
    invocation = parse_arguments(argv)
    expected = parse_config(
        {
            "model": "m", "out": "o", "mix_id": "a" * 32, "api_url": "http://h", "tenant": "t", "epochs": 2,
            "max_steps": 7, "batch_size": 3, "grad_accum": 5, "lr": 0.01, "warmup_steps": 1, "weight_decay": 0.5,
            "max_grad_norm": 2, "max_length": 99, "seed": 8, "mask_rule": "last", "allow_masked_rows": True,
            "dtype": "float32", "device": "cpu", "gradient_checkpointing": True,
            "lora": {"r": 4, "alpha": 9, "dropout": 0.1, "targets": ["q_proj", "v_proj"], "rslora": False},
            "monitor": {"directions": "d", "alarm": "r", "every": 6, "stop": True},
            "reserve": {"share": 0.5, "bound": 0.1},
            "defences": [{"name": "kl", "weight": 0.3}],
            "safelora": {"base": "b", "tau": 0.5}, "template_date": "2031-02-03",
            "accept_dropped": ["tool_calls", "reasoning"],
        }
    )  # fmt: skip
    assert invocation.config == expected
    assert (invocation.api_key, invocation.overwrite, invocation.json) == ("k", True, True)
    changed = {
        name for name in TrainConfig.model_fields if getattr(expected, name) != getattr(parse_config(BASE), name)
    }
    runs = {
        "cache",
        "save_steps",
        "keep_checkpoints",
        "report_to",
        "reorder",
        "full",
        "four_bit",
    }  # trainer.config.options
    runs |= {"start_adapter"}  # has LoRA settings of its own
    of_files = {"data_format", "data_layout", "on_bad_rows"}
    assert changed == set(TrainConfig.model_fields) - {"model", "out", "store"} - of_files - runs
    monkeypatch.setenv("BALLAST_API_KEY", "from-environment")
    assert parse_arguments(ARGV).api_key == "from-environment"


def test_a_mix_is_read_from_the_default_store(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["--model", "m", "--out", "o", "--mix-id", "a" * 32]
    monkeypatch.delenv("BALLAST_STORE", raising=False)
    assert parse_arguments(argv).config.store == "./store"
    monkeypatch.setenv("BALLAST_STORE", "memory://other")
    assert parse_arguments(argv).config.store == "memory://other"


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse_arguments(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "python -m trainer.sft --model MODEL_DIR --mix-id ID --api-url" in text
    for word in ("--kl", "--data", "(default: 0.0001)", "(default: 2048)", "Exit codes"):
        assert word in text
