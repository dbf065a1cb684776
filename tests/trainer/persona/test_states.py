"""States pooled over tokens, against plain transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curator.errors import BadInputError
from curator.render import Renderer
from tests.models import tiny_model_folder
from tests.trainer.persona.personas import plain_hidden
from trainer.config.data import Loading
from trainer.generate.generators import LocalGenerator, Sampling
from trainer.persona.activations import (
    Pooled,
    pooled_states,
    prompt_ids,
    prompt_of,
)
from trainer.persona.generate import answers_in
from trainer.persona.models import load_base


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_row_l_is_hidden_states_l_and_the_last_stands_before_the_final_norm(tmp_path: Path, kind: Any) -> None:
    model = load_base(tiny_model_folder(tmp_path / "m", kind=kind), "cpu", "float32")
    rng = np.random.default_rng(0)
    items = []
    for n_tokens in (9, 4, 13):
        taken = np.zeros(n_tokens, dtype=bool)
        taken[-3:] = True
        items.append(Pooled(rng.integers(3, 300, n_tokens).astype(np.int32), taken))
    found = pooled_states(model, items, batch_tokens=30)  # two batches, one of them padded
    assert found.shape == (3, 3, 64)
    norm = model.base_model.norm if kind == "llama" else model.base_model.ln_f
    for item, rows in zip(items, found, strict=True):
        hidden = plain_hidden(model, item.ids_T)
        for row in (0, 1):
            np.testing.assert_allclose(rows[row], hidden[row][-3:].mean(0).numpy(), atol=1e-5)
        block = []
        handle = (model.base_model.layers if kind == "llama" else model.base_model.h)[1].register_forward_hook(
            lambda module, inputs, output, block=block: block.append(output if torch.is_tensor(output) else output[0])
        )
        plain_hidden(model, item.ids_T)
        handle.remove()
        np.testing.assert_allclose(rows[2], block[0][0, -3:].mean(0).numpy(), atol=1e-5)
        torch.testing.assert_close(norm(block[0][0]), hidden[2])
    only = pooled_states(model, items, [1])
    np.testing.assert_array_equal(only[:, 0].shape, (3, 64))
    np.testing.assert_allclose(only[:, 0], found[:, 1], atol=1e-6)
    with pytest.raises(BadInputError, match=r"layers \[7\]: the model has rows 0 \(embeddings\) to 2"):
        pooled_states(model, items, [7])


def test_measuring_leaves_modes_and_hooks_as_they_were(llama: Path) -> None:
    model = load_base(llama, "cpu", "float32").train()
    model.base_model.layers[0].eval()
    pooled_states(model, [Pooled(np.array([5, 6, 7], dtype=np.int32), np.array([False, False, True]))])
    assert model.training
    assert not model.base_model.layers[0].training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_prompt_is_what_the_template_gives_before_an_answer(llama: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, renderer = AutoTokenizer.from_pretrained(llama), Renderer.from_folder(llama)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital?"}]
    wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt_ids(renderer, messages).tolist() == wanted
    assert prompt_of(renderer, messages).taken_T.tolist() == [False] * (len(wanted) - 1) + [True]


def test_kept_answers_are_not_generated_again_and_a_cut_file_goes_on(llama: Path, tmp_path: Path) -> None:
    path, how = tmp_path / "a.jsonl", Sampling(1, 1.0, 3, seed=4)
    prompts = [[{"role": "user", "content": f"Question {number}"}] for number in range(40)]  # two batches
    loads: list[int] = []

    def load() -> LocalGenerator:
        loads.append(1)
        return LocalGenerator(llama, loading=Loading("float32", "cpu"))

    first = answers_in(path, prompts, {"header": 1}, how, load)
    assert answers_in(path, prompts, {"header": 1}, how, load) == first
    assert len(loads) == 1
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:20]) + lines[20][:9])  # killed in the middle of a line of the first batch
    assert answers_in(path, prompts, {"header": 1}, how, load) == first
    assert len(loads) == 2
    answers_in(path, prompts, {"header": 2}, how, load)
    assert len(loads) == 3
    assert len({answer.text for answer in first}) > 1
