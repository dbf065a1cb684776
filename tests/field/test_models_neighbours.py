"""Neighbours of the faults that people report in model folders and adapters: refused by name, or loaded as they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from curator.errors import BadInputError
from curator.scoring.engines.torch_engine import TorchEngine
from curator.scoring.engines.torch_folder import load_tokenizer
from curator.scoring.engines.torch_merge import load_merged, write_merged
from curator.scoring.engines.torch_model import Adapters, load_model, load_plain
from curator.scoring.engines.vllm_engine import VllmEngine, VllmLaunch
from tests.field.models import added_token, changed_adapter, changed_folder, short_embedding, without
from tests.models import tiny_adapter_folder, tiny_model_folder

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("base") / "base")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def fewer_layers(base: Path, out: Path) -> Path:
    return changed_folder(base, out, config={"num_hidden_layers": 1, "layer_types": None})


def eight_bits(tensors: Tensors) -> Tensors:
    return {name: t.to(torch.float8_e4m3fn) if "mlp" in name else t for name, t in tensors.items()}


def adapter_inside(base: Path, out: Path) -> Path:
    return tiny_adapter_folder(base, changed_folder(base, out))


def other_weights(base: Path, out: Path) -> Path:
    folder = changed_folder(base, out, config={"transformers_weights": "other.safetensors"})
    (folder / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return folder


def cut_file(base: Path, out: Path) -> Path:
    file = changed_folder(base, out) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return out


def half_sharded(base: Path, out: Path) -> Path:
    """Two shards and an index, of which one shard lacks a tensor that the index lists."""
    from safetensors.torch import load_file, save_file

    folder = changed_folder(base, out)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        kept = {name: tensors[name] for name in part if name != "model.norm.weight"}
        save_file(kept, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {name: file for file, part in halves.items() for name in part},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def padding_beyond(base: Path, out: Path) -> Path:
    """A padding token that was added without an embedding, as transformers#11102 has it."""
    folder = added_token(base, out)
    document = json.loads((folder / "tokenizer.json").read_text())
    document["added_tokens"][-1]["special"] = True
    (folder / "tokenizer.json").write_text(json.dumps(document))
    edit(folder / "tokenizer_config.json", pad_token="<doc_sep>")
    return folder


def twice(base: Path, out: Path) -> Path:
    """Shards of an earlier save beside the one file of a later one: transformers reads this, vLLM that."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(out.with_name("shards"), max_shard_size="60KB")
    changed_folder(base, out)
    for file in out.with_name("shards").glob("model*"):
        (out / file.name).write_bytes(file.read_bytes())
    return out


FOLDERS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "fewer_layers": (fewer_layers, r"9 others that fit nothing: model.layers.1.input_layernorm.weight"),
    "eight_bits": (lambda base, out: changed_folder(base, out, eight_bits), r"weights are packed \(model.*is F8_E4M3"),
    "adapter_inside": (adapter_inside, "holds an adapter beside the model"),
    "other_weights": (other_weights, "names other weights"),
    "cut_file": (cut_file, "cannot be loaded"),
    "half_sharded": (half_sharded, "lacks 1 tensors of its architecture: model.norm.weight"),
    "padding_beyond": (padding_beyond, "'<doc_sep>'.*the embedding has"),
    "twice": (twice, "holds weights twice"),
    "awq": (
        lambda base, out: changed_folder(base, out, config={"quantization_config": {"quant_method": "awq"}}),
        r"packed \(awq\)",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_not_the_model_it_says_is_refused_by_every_loader(
    name: str, base: Path, tmp_path: Path
) -> None:
    make, message = FOLDERS[name]
    folder = make(base, tmp_path / name)
    adapter = tiny_adapter_folder(base, tmp_path / "adapter")
    for load in (
        lambda: load_model(folder, "cpu", "float32"),
        lambda: load_plain(folder, None, "cpu", "float32"),
        lambda: load_merged(folder, adapter, "float32"),
        lambda: VllmEngine(VllmLaunch(folder, "cuda", "float32", "1", 64)),
    ):
        with pytest.raises(BadInputError, match=message):
            load()


@pytest.mark.parametrize("name", ["tied", "sharded", "special_beyond", "local_class"])
def test_a_whole_folder_of_another_form_is_the_same_model(name: str, base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids_BT = torch.tensor([[5, 9, 40, 41]])
    folder = tmp_path / name
    model = AutoModelForCausalLM.from_pretrained(base)
    if name == "tied":
        model.config.tie_word_embeddings = True
        model.tie_weights()
        changed_folder(base, folder)
        model.save_pretrained(folder)
    elif name == "sharded":
        changed_folder(base, folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="60KB")
        assert (folder / "model.safetensors.index.json").is_file()
    elif name == "special_beyond":  # as Gemma 3 has for images: no text becomes that token
        added_token(base, folder)
        document = json.loads((folder / "tokenizer.json").read_text())
        document["added_tokens"][-1]["special"] = True
        (folder / "tokenizer.json").write_text(json.dumps(document))
    else:  # code beside a model that transformers knows: its own class is taken
        changed_folder(base, folder, config={"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}})
        (folder / "modeling_x.py").write_text(f"open({str(tmp_path / 'CODE_RAN')!r}, 'w').write('x')\n")
    expected = model.eval()(input_ids=ids_BT).logits
    found = load_model(folder, "cpu", "float32")(input_ids=ids_BT).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not (tmp_path / "CODE_RAN").exists()


def test_a_tokenizer_with_code_of_its_own_is_refused_and_never_runs(base: Path, tmp_path: Path) -> None:
    folder = changed_folder(base, tmp_path / "model", config={"model_type": "new_llm"})
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="NewTokenizer", auto_map={"AutoTokenizer": ["tokenization_x.NewTokenizer", None]},
    )  # fmt: skip
    (folder / "tokenization_x.py").write_text(f"open({str(tmp_path / 'CODE_RAN')!r}, 'w').write('x')\n")
    with pytest.raises(BadInputError, match=r"tokenizer of .* cannot be loaded"):
        load_tokenizer(folder)
    assert not (tmp_path / "CODE_RAN").exists()


ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "activated": ({"alora_invocation_tokens": [5, 9]}, "acts only after tokens that invoke it"),
    "pissa": ({"init_lora_weights": "pissa"}, "it changes the base's own weights"),
    "import": ({"megatron_config": {"a": 1}, "megatron_core": "CODE"}, "names a Python module to import"),
}


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_an_adapter_of_packed_tensors_is_refused(dtype: torch.dtype, base: Path, tmp_path: Path) -> None:
    """Whole numbers would be taken for the factors that they stand for."""
    packed = changed_adapter(base, tmp_path / "packed", lambda tensors: {n: t.to(dtype) for n, t in tensors.items()})
    with pytest.raises(BadInputError, match=r"weights are packed \(base_model.*is torch"):
        Adapters(load_model(base, "cpu", "float32")).use(packed)


def test_a_setting_that_peft_does_not_know_is_refused_unless_it_is_off(base: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter_folder(base, tmp_path / "adapter")
    edit(adapter / "adapter_config.json", use_new_scaling=False, new_blocks=None, newer=[])
    Adapters(load_model(base, "cpu", "float32")).use(adapter)
    edit(adapter / "adapter_config.json", use_new_scaling=True)
    with pytest.raises(BadInputError, match="does not know: use_new_scaling"):
        Adapters(load_model(base, "cpu", "float32")).use(adapter)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_changes_the_base_or_names_a_module_is_refused(name: str, base: Path, tmp_path: Path) -> None:
    changes, message = ADAPTERS[name]
    adapter = tiny_adapter_folder(base, tmp_path / name)
    edit(adapter / "adapter_config.json", **changes)
    model = load_model(base, "cpu", "float32")
    with pytest.raises(BadInputError, match=message):
        Adapters(model).use(adapter)


def test_a_whole_module_that_an_adapter_replaces_must_be_in_its_file(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "whole")
    Adapters(load_model(base, "cpu", "float32")).use(tmp_path / "whole")
    from safetensors.torch import load_file, save_file

    file = tmp_path / "whole" / "adapter_model.safetensors"
    save_file(without("lm_head")(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(BadInputError, match=r"does not fit the model.*lm_head"):
        Adapters(load_model(base, "cpu", "float32")).use(tmp_path / "whole")


@pytest.mark.parametrize("factor", ["lora_A", "lora_B", "lora_"])
def test_tensors_saved_under_pefts_own_name_for_an_adapter_do_not_fit(factor: str, base: Path, tmp_path: Path) -> None:
    """As `torch.save(model.state_dict())` writes them: loaded under another name they would be left out."""
    adapter = changed_adapter(
        base,
        tmp_path / "raw",
        lambda tensors: {
            name.replace(".weight", ".default.weight") if factor in name else name: t for name, t in tensors.items()
        },
    )
    with pytest.raises(BadInputError, match=r"no place for \d+ of its tensors: .*\.default\.weight"):
        Adapters(load_model(base, "cpu", "float32")).use(adapter)


def scaled(part: str, factor: float) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: t * factor if part in name else t for name, t in tensors.items()}


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (scaled("lora_B", 0.0), {}, "changes nothing: all its lora_B are 0"),
        (scaled("lora_A", 0.0), {}, "changes nothing: in each layer lora_A or lora_B is 0"),
        (
            lambda tensors: scaled("layers.1.self_attn.q_proj.lora_A", 0.0)(
                {
                    name: t * (name.find("layers.1.self_attn.q_proj") >= 0 or "lora_A" in name)
                    for name, t in tensors.items()
                }
            ),
            {},
            "changes nothing: in each layer",
        ),
        (scaled("", 1.0), {"lora_alpha": 0}, "changes nothing: its lora_alpha is 0"),
    ],
)
def test_an_adapter_that_changes_nothing_is_not_scored(
    change: Callable[[Tensors], Tensors], config: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    """Every gap would be 0, with an exit code that says that all is well."""
    adapter = changed_adapter(base, tmp_path / "idle", change)
    edit(adapter / "adapter_config.json", **config)
    engine = TorchEngine(base, device="cpu", dtype="float32")
    with pytest.raises(BadInputError, match=message):
        engine.use_adapter(adapter)
    for merge in (False, True):
        with pytest.raises(BadInputError, match=message):
            VllmEngine(VllmLaunch(base, "cuda", "float32", "1", 64, adapter_dir=adapter, merge=merge))
    partly = {"alpha_pattern": {"q_proj": 4}} if config else {}
    works = changed_adapter(base, tmp_path / "works", scaled(".layers.1.", 0.0) if not config else scaled("", 1.0))
    edit(works / "adapter_config.json", **config, **partly)
    engine.use_adapter(works)


def test_a_refused_adapter_leaves_the_model_as_it_was(base: Path, tmp_path: Path) -> None:
    ids_BT = torch.tensor([[5, 9, 40, 41]])
    model = load_model(base, "cpu", "float32")
    before = model(input_ids=ids_BT).logits
    adapters = Adapters(model)
    with pytest.raises(BadInputError, match="it lacks"):
        adapters.use(changed_adapter(base, tmp_path / "half", without(".layers.1.")))
    torch.testing.assert_close(model(input_ids=ids_BT).logits, before)
    good = tiny_adapter_folder(base, tmp_path / "good")
    adapters.use(good)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), good).eval()
    torch.testing.assert_close(model(input_ids=ids_BT).logits, plain(input_ids=ids_BT).logits, atol=1e-5, rtol=1e-5)


def test_an_adapter_of_some_layers_alone_is_whole(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "some")
    Adapters(load_model(base, "cpu", "float32")).use(tmp_path / "some")


def test_vllm_is_given_no_adapter_that_does_not_fit(base: Path, tmp_path: Path) -> None:
    adapter = changed_adapter(base, tmp_path / "half", without(".layers.1."))
    for merge in (False, True):
        with pytest.raises(BadInputError, match="it lacks"):
            VllmEngine(VllmLaunch(base, "cuda", "float32", "1", 64, adapter_dir=adapter, merge=merge))


def test_a_merged_folder_is_saved_whatever_its_generation_settings(base: Path, tmp_path: Path) -> None:
    folder = changed_folder(base, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6}')
    merged = write_merged(folder, tiny_adapter_folder(base, tmp_path / "adapter"), "float32", tmp_path / "merged")
    assert (merged / "model.safetensors").is_file()


@pytest.mark.parametrize("text", ["", "{oops", "[1]"])
def test_generation_settings_that_cannot_be_read_are_refused_by_name(base: Path, tmp_path: Path, text: str) -> None:
    folder = changed_folder(base, tmp_path / "model")
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(BadInputError, match=r"generation_config\.json is not (a )?JSON"):
        load_model(folder, "cpu", "float32")


def test_a_full_fine_tune_keeps_the_settings_of_its_model(base: Path, chats: Path, tmp_path: Path) -> None:
    from trainer.sft import main

    folder = changed_folder(base, tmp_path / "model", config={"pad_token_id": None, "eos_token_id": [2, 1]})
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 1], "max_new_tokens": 7}')
    command = [
        "--model", str(folder), "--data", str(chats), "--out", str(tmp_path / "run"), "--max-steps", "1", "--full",
        "--batch-size", "2", "--dtype", "float32", "--device", "cpu", "--lr", "1e-5", "--save-steps", "1",
    ]  # fmt: skip
    assert main(command) == 0
    noise = {"transformers_version", "_from_model_config"}
    for name in ("config.json", "generation_config.json"):
        before, after = (json.loads((place / name).read_text()) for place in (folder, tmp_path / "run" / "model"))
        known = {key: value for key, value in before.items() if value is not None and key not in noise}
        assert {key: after.get(key) for key in known} == known, name
        assert after.get("pad_token_id") is None or name == "generation_config.json"


def test_wrong_shapes_are_named(base: Path, tmp_path: Path) -> None:
    folder = changed_folder(base, tmp_path / "short", short_embedding)
    with pytest.raises(BadInputError, match=r"lm_head.weight is \[20, 64\] and not \[\d+, 64\]"):
        load_model(folder, "cpu", "float32")
