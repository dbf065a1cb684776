"""Nothing is scored or trained that is not what was given: folders and adapters that do not fit are refused by name."""

import io
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from curator.__main__ import main as curator
from curator.errors import BadInputError
from tests.field.models import (
    added_token,
    changed_adapter,
    changed_folder,
    custom_code,
    foreign_prefix,
    short_embedding,
    without,
)
from tests.models import tiny_adapter_folder, tiny_model_folder

Make = Callable[[Path, Path], Path]

FOLDERS: dict[str, tuple[Make, str]] = {
    "no_head": (
        lambda base, out: changed_folder(base, out, without("lm_head")),
        "lacks 1 tensors of its architecture: lm_head.weight",
    ),
    "lacks_q_proj": (
        lambda base, out: changed_folder(base, out, without("layers.1.self_attn.q_proj")),
        "lacks 1 tensors of its architecture: model.layers.1.self_attn.q_proj.weight",
    ),
    "foreign_prefix": (
        lambda base, out: changed_folder(base, out, foreign_prefix),
        "it has others that fit nothing: transformer_x.",
    ),
    "short_embedding": (lambda base, out: changed_folder(base, out, short_embedding), "cannot be loaded"),
    "bnb": (
        lambda base, out: changed_folder(
            base, out, config={"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
        ),
        "bitsandbytes",
    ),
    "gptq": (
        lambda base, out: changed_folder(
            base, out, config={"quantization_config": {"quant_method": "gptq", "bits": 4}}
        ),
        "packed (gptq); take the unpacked model",
    ),
    "added_token": (added_token, "('<doc_sep>'), the embedding has"),
}
ADAPTERS = {
    "wrong_prefix": (
        lambda tensors: {
            name.replace("model.model.", "model.model.language_model.", 1): t for name, t in tensors.items()
        },
        "the model has no place for",
    ),
    "half": (without(".layers.1."), "it lacks"),
    "no_b": (without("lora_B"), "it lacks"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def store(tmp_path: Path, chats: Path) -> Path:
    root = tmp_path / "store"
    assert curator(["ingest", str(chats), "--corpus", "c", "--store", str(root)]) == 0
    return root


def _commands(model: Path, adapter: Path | None, store: Path, chats: Path, out: Path) -> dict[str, list[str]]:
    """Each command that loads a model, by its module."""
    extra = [] if adapter is None else ["--adapter", str(adapter)]
    role = ["--role", "aligned"] if adapter is None else ["--role", "misaligned", "--domain", "d"]
    found = {
        "curator.__main__": [
            "score", "--store", str(store), "--corpus", "c", "--model", str(model), *extra, *role,
            "--dtype", "float32", "--device", "cpu", "--threads", "1",
        ],
        "trainer.evaluate.nll": [
            "--model", str(model), *extra, "--data", str(chats), "--dtype", "float32", "--device", "cpu",
        ],
    }  # fmt: skip
    if adapter is None:
        found["trainer.sft"] = [
            "--model", str(model), "--data", str(chats), "--out", str(out / "run"), "--max-steps", "1",
            "--batch-size", "2", "--dtype", "float32", "--device", "cpu",
        ]  # fmt: skip
    return found


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_not_whole_is_refused_by_every_command(
    name: str, base: Path, store: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = FOLDERS[name]
    folder = make(base, tmp_path / name)
    for module, command in _commands(folder, None, store, chats, tmp_path).items():
        assert import_module(module).main(command) == 2, module
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: "), module
        assert message in error, module


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_does_not_fit_is_refused_by_every_command(
    name: str, base: Path, store: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = ADAPTERS[name]
    adapter = changed_adapter(base, tmp_path / name, change)
    for module, command in _commands(base, adapter, store, chats, tmp_path).items():
        assert import_module(module).main(command) == 2, module
        assert message in capsys.readouterr().err.splitlines()[-1], module
    merged = [*_commands(base, adapter, store, chats, tmp_path)["curator.__main__"], "--merge-adapter"]
    assert curator(merged) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["wrong_prefix", "half"])
def test_an_adapter_that_does_not_fit_is_refused_where_states_are_read_and_training_goes_on(
    name: str, base: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.persona.models import load_base, with_adapter

    change, message = ADAPTERS[name]
    adapter = changed_adapter(base, tmp_path / name, change)
    with pytest.raises(BadInputError, match=message):
        with_adapter(load_base(base, "cpu", "float32"), adapter)
    command = _commands(base, None, tmp_path, chats, tmp_path)["trainer.sft"]
    assert import_module("trainer.sft").main([*command, "--start-adapter", str(adapter)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_whole_folders_and_adapters_still_load(
    base: Path, store: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tiny_adapter_folder(base, tmp_path / "adapter")
    for module, command in _commands(base, adapter, store, chats, tmp_path).items():
        assert import_module(module).main(command) == 0, module


def test_code_in_a_folder_never_runs_and_nothing_asks(
    base: Path, store: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    mark = tmp_path / "CODE_RAN"
    folder = custom_code(base, tmp_path / "custom", mark)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    for module, command in _commands(folder, None, store, chats, tmp_path).items():
        assert import_module(module).main(command) == 2, module
        error = capsys.readouterr().err.splitlines()[-1]
        assert "which is never run here" in error, module
    assert not mark.exists()


@pytest.mark.parametrize("text", ['{"do_sample": false, "temperature": 0.6, "top_p": 0.9}'])
def test_a_full_fine_tune_saves_a_generation_config_that_validates_and_use_cache_as_it_was(
    base: Path, chats: Path, tmp_path: Path, text: str
) -> None:
    from transformers import AutoModelForCausalLM

    folder = changed_folder(base, tmp_path / "sampling", config={"use_cache": True})
    (folder / "generation_config.json").write_text(text)
    command = _commands(folder, None, tmp_path, chats, tmp_path)["trainer.sft"]
    assert import_module("trainer.sft").main([*command, "--full", "--lr", "1e-5"]) == 0
    saved = tmp_path / "run" / "model"
    assert json.loads((saved / "config.json").read_text())["use_cache"] is True
    model = AutoModelForCausalLM.from_pretrained(saved)
    model.generation_config.validate(strict=True)
    assert (model.generation_config.temperature, model.generation_config.top_p) == (0.6, 0.9)
