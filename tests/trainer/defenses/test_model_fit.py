"""Defences and vectors that do not fit the model are refused by small files alone, before anything costly."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import save_file

from curator.errors import BadInputError
from curator.scoring.engines.torch_head import SplitModel
from curator.scoring.identity import weights_sha256
from tests.models import random_conversations, tiny_model_folder
from tests.trainer.proofs import attached, vectors_file
from tests.trainer.tiny import adapted_model
from trainer import sft
from trainer.config.defences import (
    DefenceBase,
    KlSettings,
    LdifsSettings,
    SteeringSettings,
    TreftSettings,
)
from trainer.defenses import build_defences
from trainer.defenses.blocks import decoder_blocks
from trainer.defenses.model_fit import ModelShape, check_fit

SMALL = ["--lora-r", "2", "--max-steps", "1", "--batch-size", "2", "--grad-accum", "1", "--device", "cpu"]


@pytest.fixture
def argv(llama: Path, tmp_path: Path) -> list[str]:
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps({"messages": m}) + "\n" for m in random_conversations(2)))
    return ["--model", str(llama), "--data", str(data), "--out", str(tmp_path / "run"), *SMALL]


def of_weights(path: Path, weights: str | None) -> Path:
    """Vectors of the tiny model's shape, as `persona extract` writes them."""
    metadata = {"trait": "evil"} | ({} if weights is None else {"weights_sha256": weights})
    save_file({"evil": torch.ones(3, 64)}, path, metadata=metadata)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steering", "{none}"], "there is no file"),
        (["--steering", "{text}"], "is not a safetensors file that can be read"),
        (["--steering", "{two}"], "two holds evil, kind: choose one by name"),
        (["steering: {{vectors: {two}, vector: odd}}"], "two has no odd; it holds evil, kind"),
        (["--steering", "{wide}"], "has shape (3, 8); this model needs (3, 64)"),
        (["steering: {{vectors: {good}, layers: [3]}}"], "steering: layers [3]: the model has layers 1 to 2"),
        (["treft: {{layers: [1, 9]}}"], "treft: layers [9]: the model has layers 1 to 2"),
        (["gating: {{layers: [4]}}"], "gating: layers [4]: the model has layers 1 to 2"),
        (["ldifs: {{layers: [4]}}"], "ldifs: layers [4]: the model has layers 1 to 2"),
        (["--ldifs", "1"], "every 5th of 2 layers is none"),
    ],
)
def test_refused_before_the_model_is_even_hashed(
    argv: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    def costly(*_: Any) -> str:
        raise AssertionError("the model's weights were read")

    monkeypatch.setattr(sft, "weights_sha256", costly)
    files = {name: tmp_path / name for name in ("none", "text", "two", "wide", "good")}
    files["text"].write_text("no tensors")
    vectors_file(files["two"], names=("evil", "kind"))
    vectors_file(files["wide"], width=8)
    vectors_file(files["good"])
    given = [option.format(**files) for option in options]
    if len(given) == 1 and given[0] != "--gating":  # what a file of defences holds
        (tmp_path / "defenses.yaml").write_text(given[0])
        given = ["--defenses", str(tmp_path / "defenses.yaml")]
    assert sft.main([*argv, *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_vectors_of_other_weights_of_the_same_shape_are_refused(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = of_weights(tmp_path / "other.safetensors", "f" * 64)
    assert sft.main([*argv, "--steering", str(other)]) == 2
    error = capsys.readouterr().err
    assert "other.safetensors was made for the model with weights ffffffffffff, this one has" in error
    assert "extract it again for this model" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("named", [True, False])
def test_vectors_that_name_no_weights_are_used_with_a_warning(
    argv: list[str], llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], named: bool
) -> None:
    file = of_weights(tmp_path / "own.safetensors", weights_sha256(llama) if named else None)
    assert sft.main([*argv, "--steering", str(file)]) == 0
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    found = [item["text"] for item in record["warnings"] if item["code"] == "vectors_of_unknown_model"]
    assert found == ([] if named else [found[0]])
    if not named:
        assert found[0].startswith("own.safetensors does not say which weights it was made for")
        assert f"warning: {found[0]}" in capsys.readouterr().err


BARE = (
    "{% for message in messages %}{{ message['content'] + '<|im_end|>' }}{% endfor %}"  # nothing before a user's text
)


def test_treft_without_a_token_in_its_scope_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the cache as well: the second time nothing is rendered."""
    model, data = tiny_model_folder(tmp_path / "bare", template=BARE), tmp_path / "chats.jsonl"
    chat = [{"role": "user", "content": "What is the capital?"}, {"role": "assistant", "content": "Paris."}]
    data.write_text(json.dumps({"messages": chat}) + "\n")
    options = ["--model", str(model), "--data", str(data), "--out", str(tmp_path / "run"), *SMALL, "--treft", "1"]
    for _ in range(2):
        assert sft.main(options) == 2
        error = capsys.readouterr().err
        assert "treft: tokens=prefix, but with this chat template no row has such a token" in error
        assert re.search(r"\(prefix 0, query [1-9]\d*, postfix [1-9]\d*\)", error), error
        assert "set tokens to query or postfix or all" in error
        assert not (tmp_path / "run" / "config.json").exists()
    (tmp_path / "defenses.yaml").write_text("treft: {weight: 1, tokens: postfix}")
    assert sft.main([*options[:-2], "--defenses", str(tmp_path / "defenses.yaml")]) == 0


class Plain(DefenceBase):
    """Settings of a defence that has no layers to choose."""

    name: Literal["plain"] = "plain"


def test_a_defence_without_layers_has_none_to_check(llama: Path) -> None:
    check_fit([Plain()], llama)  # type: ignore[list-item]


def test_a_defence_of_two_words_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trainer.defenses.two_words", SimpleNamespace(TwoWords=lambda item: [item]))
    item: Any = SimpleNamespace(name="two_words")
    assert build_defences([item]) == [[item]]


def test_the_shape_is_read_under_every_familys_names(tmp_path: Path) -> None:
    assert ModelShape.of(tiny_model_folder(tmp_path / "gpt2", kind="gpt2")) == ModelShape(2, 64)
    (tmp_path / "config.json").write_text('{"text_config": {"num_hidden_layers": 7, "hidden_size": 9}}')
    assert ModelShape.of(tmp_path) == ModelShape(7, 9)
    with pytest.raises(BadInputError, match="every 8th of 7 layers is none"):
        check_fit([LdifsSettings(every=8)], tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", "broken", '{"num_hidden_layers": "two"}'])
def test_a_config_that_does_not_say_leaves_it_to_the_model(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    vectors = vectors_file(tmp_path / "v", width=8)
    assert ModelShape.of(tmp_path) == ModelShape(None, None)
    check_fit([LdifsSettings(), TreftSettings(layers=(99,)), SteeringSettings(vectors=vectors)], tmp_path)


class _NoList(torch.nn.Module):
    """A decoder whose blocks are no list."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=2))
        self.base_model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))


def test_a_model_that_a_defence_cannot_use_is_named_with_a_way_out(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        BadInputError, match=r"_NoList: no list of 2 decoder blocks was found.*: leave them out, or take"
    ):
        decoder_blocks(_NoList())
    model = adapted_model(llama)
    monkeypatch.setattr(SplitModel, "_matches_own_forward", lambda self: False)
    with pytest.raises(BadInputError, match=r"cannot be run apart from its decoder.*leave --kl out"):
        attached(model, KlSettings())
