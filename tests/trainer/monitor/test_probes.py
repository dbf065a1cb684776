"""Directions and drift on tiny real models, against plain transformers and numpy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curator.errors import BadInputError
from curator.render import Renderer
from curator.scoring.identity import weights_sha256
from tests.models import tiny_model_folder
from tests.trainer.tiny import adapted_model
from trainer.monitor.__main__ import main
from trainer.monitor.directions import (
    Directions,
    load_directions,
    neutral_prompts,
    save_directions,
)
from trainer.monitor.probe import PrefixProbe, TraitProbe
from trainer.persona.models import load_base
from trainer.persona.traits import SHIPPED, read_trait


def last_state(model: Any, tokenizer: Any, messages: list[dict[str, str]], row: int) -> np.ndarray:
    """transformers' hidden_states[row] at the last token of the templated prompt."""
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[row]
    found: np.ndarray = hidden[0, -1].double().numpy()
    return found


def test_directions_are_unit_differences_at_the_last_prompt_token(llama: Path, directions: Path) -> None:
    from transformers import AutoTokenizer

    model, tokenizer = load_base(llama, "cpu", "float32"), AutoTokenizer.from_pretrained(llama)
    found = load_directions(directions, weights_sha256(llama), Renderer.from_folder(llama).renderer_id)
    assert (found.traits, found.layer, found.n_questions) == (("evil", "recklessness"), 1, 2)
    for name, unit in zip(found.traits, found.unit_KD, strict=True):
        trait, means = read_trait(name), []
        for side in ("positive", "negative"):
            states = [
                last_state(
                    model, tokenizer,
                    [{"role": "system", "content": getattr(pair, side)}, {"role": "user", "content": question}], 1,
                )
                for pair in trait.pairs
                for question in trait.questions[:2]
            ]  # fmt: skip
            means.append(np.mean(states, axis=0))
        expected = (means[0] - means[1]) / np.linalg.norm(means[0] - means[1])
        np.testing.assert_allclose(unit, expected, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found.unit_KD, axis=1), 1, atol=1e-6)


def test_drift_is_the_mean_projection_over_step_0s_norm_minus_step_0(llama: Path, directions: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, renderer = AutoTokenizer.from_pretrained(llama), Renderer.from_folder(llama)
    model = adapted_model(llama, dtype=torch.float32)  # its adapter is drawn at random, so it drifts already
    prompts, found = neutral_prompts()[:6], load_directions(directions)
    probe = TraitProbe(model, renderer, found, prompts)
    drift = probe.drift(model)
    model.eval()
    after = np.stack([last_state(model, tokenizer, prompt, 1) for prompt in prompts])
    with model.disable_adapter():
        before = np.stack([last_state(model, tokenizer, prompt, 1) for prompt in prompts])
    norm = np.linalg.norm(before, axis=1).mean()
    expected = [(after @ unit).mean() / norm - (before @ unit).mean() / norm for unit in found.unit_KD]
    np.testing.assert_allclose(drift, expected, atol=1e-5)
    assert np.abs(drift).max() > 1e-3
    with model.disable_adapter():
        np.testing.assert_allclose(probe.drift(model), 0, atol=1e-7)


def test_prefix_drift_is_the_relative_distance_of_cached_keys_and_values(llama: Path) -> None:
    renderer, prompt = Renderer.from_folder(llama), neutral_prompts()[0]
    model = adapted_model(llama, dtype=torch.float32).eval()
    probe = PrefixProbe(model, renderer, [{"role": "system", "content": "Be brief and kind."}, *prompt])
    assert probe.reason is None
    caches = []
    for off in (False, True):
        with torch.no_grad():
            if off:
                with model.disable_adapter():
                    cache = model(input_ids=probe._batch.input_ids, use_cache=True).past_key_values
            else:
                cache = model(input_ids=probe._batch.input_ids, use_cache=True).past_key_values
        caches.append([(layer.keys[0], layer.values[0]) for layer in cache.layers])  # (heads, T, width)
    distances = []
    for layer, layer0 in zip(*caches, strict=True):
        for found, found0 in zip(layer, layer0, strict=True):
            squared = ((found - found0) ** 2).sum((0, 2)) / (found0**2).sum((0, 2))  # rotations change no norm
            # The padding token's embedding is zero here, and so are its keys and values: 0 / 0 is not a distance.
            distances.append(squared.double().nan_to_num(0.0).numpy())
    expected = np.sum(distances, axis=0).mean() / len(caches[0])
    assert probe.drift(model) == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3
    with model.disable_adapter():
        assert probe.drift(model) == pytest.approx(0.0, abs=1e-10)


def test_a_template_without_prefix_has_no_prefix_drift(tmp_path: Path) -> None:
    bare = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    folder = tiny_model_folder(tmp_path / "bare", template=bare)
    probe = PrefixProbe(load_base(folder, "cpu", "float32"), Renderer.from_folder(folder), neutral_prompts()[0])
    assert probe.drift(None) is None
    assert probe.reason is not None
    assert "no token before the user's text" in probe.reason


def test_directions_survive_their_file(tmp_path: Path) -> None:
    unit = np.eye(3)[:2]
    one = Directions(("a", "b"), 4, unit, "w" * 64, "r" * 32, 30)
    save_directions(tmp_path / "d.safetensors", one)
    again = load_directions(tmp_path / "d.safetensors")
    assert again.directions_id == one.directions_id
    np.testing.assert_array_equal(again.unit_KD, unit)
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(BadInputError, match="holds no trait directions"):
        load_directions(tmp_path / "text.safetensors")


def test_ninety_neutral_prompts_are_shipped_and_ask_for_no_trait() -> None:
    texts = [prompt[0]["content"] for prompt in neutral_prompts()]
    assert len(texts) == len(set(texts)) == 90
    assert len(SHIPPED) == 7
    asked = {question for name in SHIPPED for question in read_trait(name).questions}
    assert not asked & set(texts)
    starts = [" ".join(text.lower().split()[:3]) for text in texts]
    assert max(starts.count(start) for start in starts) <= 9


def test_directions_of_the_papers_set(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "paper.safetensors"
    arguments = ["directions", "--model", str(llama), "--trait-set", "paper", "--n-questions", "1", "--layer", "1",
                 "--out", str(out), "--dtype", "float32", "--device", "cpu", "--json"]  # fmt: skip
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["traits"][:2] == ["honesty", "helpfulness"]
    assert (len(found["traits"]), found["n_questions"]) == (7, 1)
