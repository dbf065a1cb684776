"""Micro-batches by length and the head on labelled positions alone: the same step at less cost."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.tiny import (
    PAD,
    adapted_model,
    examples,
    lora_parameters,
    rows,
    trainer_of,
)
from trainer.config.defences import LdifsSettings
from trainer.data.collate import Collator, by_length, labelled_alone
from trainer.defenses import KlSettings, build_defences
from trainer.loop import trainer as loop


@given(st.integers(0, 50), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_rows_stay_whole_and_sizes_as_they_were(seed: int, sizes: list[int]) -> None:
    prepared = rows(sum(sizes), seed)
    places = torch.split(torch.arange(sum(sizes)), sizes)
    before = [Collator(PAD)(examples(prepared, part.tolist())) for part in places]
    after = by_length(before)
    assert [len(batch["row"]) for batch in after] == sizes
    seen = []
    for batch in after:
        lengths = batch["attention_mask"].sum(1)
        assert batch["input_ids"].shape[1] == (lengths.max() if len(sizes) > 1 else before[0]["input_ids"].shape[1])
        for index, row in enumerate(batch["row"].tolist()):
            n_tokens = int(lengths[index])
            assert batch["input_ids"][index, :n_tokens].tolist() == prepared.input_ids[row].tolist()
            assert batch["labels"][index, :n_tokens].tolist() == prepared.labels[row].tolist()
            assert (batch["labels"][index, n_tokens:] == -100).all()
            assert batch["token_classes"][index, :n_tokens].tolist() == prepared.classes[row].tolist()
            assert bool(batch["safe"][index]) == prepared.safe[row]
            seen.append((n_tokens, row))
    assert sorted(row for _, row in seen) == list(range(sum(sizes)))
    if len(sizes) > 1:
        assert [n for n, _ in seen] == sorted((n for n, _ in seen), reverse=True)


def test_a_long_row_does_not_stretch_the_short_ones() -> None:
    ones = torch.ones(4, dtype=torch.long)
    lengths = ([2, 9], [3, 8], [2, 2])
    batches = [
        {"attention_mask": torch.stack([torch.cat([ones.repeat(3)[:n], 0 * ones.repeat(3)[: 9 - n]]) for n in pair])}
        for pair in lengths
    ]
    assert [tuple(batch["attention_mask"].shape) for batch in by_length(batches)] == [(2, 9), (2, 3), (2, 2)]


@pytest.mark.parametrize("defended", [False, True])
def test_a_step_is_the_same_in_any_division(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    """One batch, micro-batches in the order of the rows with the whole head, and ours: the same weights."""
    settings = [KlSettings(weight=0.5), LdifsSettings(weight=0.5, every=1)] if defended else []
    trained, losses = [], []
    for how, size in (("whole", 12), ("plain", 3), ("ours", 3)):
        with monkeypatch.context() as patch:
            if how == "plain":
                patch.setattr(loop, "by_length", list)
                patch.setattr(loop, "labelled_alone", lambda _, inputs: nullcontext(inputs))
            model = adapted_model(llama)
            trainer = trainer_of(
                model, rows(12), llama, defences=build_defences(settings), output_dir=str(tmp_path), max_steps=1,
                per_device_train_batch_size=size, gradient_accumulation_steps=12 // size,
            )  # fmt: skip
            trainer.train()
            trained.append(lora_parameters(model))
            losses.append(trainer.finish_step())
    for name, expected in trained[0].items():
        for other in trained[1:]:
            torch.testing.assert_close(other[name], expected, rtol=1e-5, atol=1e-7)
    for other_losses in losses[1:]:
        assert other_losses == pytest.approx(losses[0], rel=1e-5)


def test_the_head_sees_labelled_positions_alone(llama: Path) -> None:
    model = adapted_model(llama, dtype=torch.float32)
    lm = model.get_base_model()
    batch = Collator(PAD)(examples(rows(3), [0, 1, 2]))
    inputs = {name: batch[name] for name in ("input_ids", "labels", "attention_mask")}
    whole = lm.base_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    labelled = inputs["labels"][:, 1:] != -100
    with labelled_alone(lm.base_model, inputs) as given_inputs:
        seen: Any = lm.base_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    torch.testing.assert_close(seen.last_hidden_state, whole[:, :-1][labelled][None])
    assert given_inputs["shift_labels"].tolist() == [inputs["labels"][:, 1:][labelled].tolist()]
    again = lm.base_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    assert again.shape == whole.shape  # the hook is gone


def test_a_micro_batch_without_a_label_adds_nothing(llama: Path, tmp_path: Path) -> None:
    prepared = rows(4)
    for index in (0, 1):
        prepared.labels[index][:] = -100
    model = adapted_model(llama, dtype=torch.float32)
    trainer = trainer_of(
        model, prepared, llama, output_dir=str(tmp_path), per_device_train_batch_size=1,
        gradient_accumulation_steps=4, max_steps=1,
    )  # fmt: skip
    trainer.train()
    assert trainer.counts.n_response == sum(int((prepared.labels[index] != -100).sum()) for index in (2, 3))
    assert 0 < trainer.finish_step()["loss"] < 20
