"""A scorer's identity follows content: weights, adapter, template, options; never paths, shards or noise."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from curator.errors import BadInputError
from curator.render import Renderer
from curator.scoring import (
    check_model_dir,
    measure_id,
    model_identity,
    model_window,
    scorer_id,
)
from curator.scoring import identity as identity_module
from curator.scoring.identity import Identity, Measure, adapter_sha256, weights_sha256
from tests.models import CHATML, tiny_adapter_folder, tiny_model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def identity(model: Path, adapter: Path | None = None, **changed: object) -> Identity:
    options = {"mask_rule": "all", "max_length": 512, "dtype": "float32", "engine": "torch", "engine_version": "1"}
    return model_identity(model, adapter, Measure(Renderer.from_folder(model), **(options | changed)))  # type: ignore[arg-type]


def edit(path: Path, **changed: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_paths_shards_and_noise_do_not_count(model: Path, copy: Path) -> None:
    assert scorer_id(identity(copy)) == scorer_id(identity(model))
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, copy / file, metadata={"format": "pt"})
    weight_map = {name: file for file, held in shards.items() for name in held}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (copy / "model.safetensors").unlink()
    edit(copy / "config.json", _name_or_path="elsewhere", transformers_version="0")
    assert weights_sha256(copy) == weights_sha256(model)


def test_one_changed_weight_or_setting_counts(model: Path, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, copy / "model.safetensors")
    assert weights_sha256(copy) != weights_sha256(model)
    shutil.copy(model / "model.safetensors", copy / "model.safetensors")
    assert weights_sha256(copy) == weights_sha256(model)
    edit(copy / "config.json", rms_norm_eps=0.5)
    assert weights_sha256(copy) != weights_sha256(model)


def test_weights_are_read_once_for_each_state_of_their_files(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def digests(file: Path) -> dict[str, str]:
        read.append(file)
        return {file.name: str(file.stat().st_mtime_ns)}

    monkeypatch.setattr(identity_module, "_tensor_digests", digests)
    first = weights_sha256(copy)
    assert [weights_sha256(copy) for _ in range(3)] == [first] * 3
    assert len(read) == 1
    (copy / "model.safetensors").touch()
    assert weights_sha256(copy) != first
    edit(copy / "config.json", hidden_act="relu")
    weights_sha256(copy)
    assert len(read) == 3


def test_a_special_token_that_the_template_prints_counts(copy: Path, tmp_path: Path) -> None:
    """Same tokenizer, same template, other bos_token: other ids, so another scorer and another measure."""
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    for folder, token in ((other, "<|endoftext|>"), (copy, "<repo_name>")):
        (folder / "chat_template.jinja").write_text("{{ bos_token }}" + CHATML)
        edit(folder / "tokenizer_config.json", bos_token=token)
    one, two = identity(other), identity(copy)
    assert one["tokenizer_sha256"] == two["tokenizer_sha256"]
    assert one["chat_template_sha256"] == two["chat_template_sha256"]
    assert scorer_id(one) != scorer_id(two)
    assert measure_id(one) != measure_id(two)


def test_a_measure_ignores_weights_and_adapter_alone(model: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter_folder(model, tmp_path / "adapter")
    base, tuned = identity(model), identity(model, adapter)
    assert scorer_id(base) != scorer_id(tuned)
    assert measure_id(base) == measure_id(tuned)
    for changed in ({"mask_rule": "last"}, {"max_length": 511}, {"dtype": "bfloat16"}, {"engine_version": "2"}):
        assert measure_id(identity(model, **changed)) != measure_id(base)


def test_an_adapter_is_known_by_content(model: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter_folder(model, tmp_path / "adapter")
    before = adapter_sha256(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    edit(adapter / "adapter_config.json", base_model_name_or_path="elsewhere",
         target_modules=config["target_modules"][::-1])  # fmt: skip
    assert adapter_sha256(adapter) == before
    edit(adapter / "adapter_config.json", lora_alpha=config["lora_alpha"] * 2)
    assert adapter_sha256(adapter) != before
    assert adapter_sha256(tiny_adapter_folder(model, tmp_path / "other", seed=9)) != before


def test_a_folder_that_is_no_model_is_named_with_what_it_lacks(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        check_model_dir(tmp_path / "none")
    (copy / "tokenizer.json").unlink()
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(BadInputError, match=r"lacks tokenizer.json, model.safetensors \(or"):
        check_model_dir(copy)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_weights_are_refused(copy: Path, size: int) -> None:
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[:size])
    with pytest.raises(BadInputError, match="not a whole safetensors file"):
        weights_sha256(copy)


def test_the_window_is_the_models_own(copy: Path) -> None:
    assert model_window(copy) == 1024
    edit(copy / "config.json", max_position_embeddings=None)
    assert model_window(copy) is None
    edit(copy / "config.json", text_config={"max_position_embeddings": 77})
    assert model_window(copy) == 77
