from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl import SFTConfig, SFTTrainer

from curator.errors import BadInputError, IntegrityError
from tests.trainer.tiny import (
    PAD,
    adapted_model,
    examples,
    lora_parameters,
    rows,
    trainer_of,
)
from trainer.config import ALL_LINEAR, SEVEN_PROJECTIONS
from trainer.data.collate import Collator
from trainer.data.order import OnceCheck, OrderCheck
from trainer.defenses.reference import reference_state
from trainer.loop.model import find_targets
from trainer.loop.trainer import sft_config


def test_the_collator_pads_right_and_masks_padding() -> None:
    prepared = rows(3)
    batch = Collator(PAD)(examples(prepared, [2, 0]))
    for index, row in enumerate((2, 0)):
        n_tokens = len(prepared.input_ids[row])
        np.testing.assert_array_equal(batch["input_ids"][index, :n_tokens], prepared.input_ids[row])
        np.testing.assert_array_equal(batch["labels"][index, :n_tokens], prepared.labels[row])
        assert batch["attention_mask"][index].sum() == n_tokens
        assert (batch["labels"][index, n_tokens:] == -100).all()
        assert (batch["input_ids"][index, n_tokens:] == PAD).all()
    assert batch["row"].tolist() == [2, 0]


def test_order_check_follows_epochs_and_resumes() -> None:
    check = OrderCheck(3)
    for batch in ([0, 1], [2], [0, 1], [2]):
        check.see(batch)
    assert check.n_seen == 6
    OrderCheck(3, start=4).see([1, 2])


@pytest.mark.parametrize("wrong", [[1, 0], [1], [0, 2], [0, 0]])
def test_order_check_refuses_swaps_gaps_and_repeats(wrong: list[int]) -> None:
    with pytest.raises(IntegrityError, match="left the order"):
        OrderCheck(3).see(wrong)


@pytest.mark.parametrize(("batch_size", "accumulation", "epochs"), [(4, 1, 2), (2, 3, 2), (3, 2, 3)])
def test_training_sees_every_row_in_order(
    llama: Path, tmp_path: Path, batch_size: int, accumulation: int, epochs: int
) -> None:
    model = adapted_model(llama, dtype=torch.float32)
    trainer = trainer_of(
        model, rows(7), llama, output_dir=str(tmp_path), per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation, max_steps=-1, num_train_epochs=epochs,
    )  # fmt: skip
    trainer.train()
    assert trainer.order.n_seen == 7 * epochs


@pytest.mark.parametrize("how", ["sampler", "data"])
def test_training_out_of_order_fails(llama: Path, tmp_path: Path, how: str) -> None:
    options = {"reorder": "shuffle"} if how == "sampler" else {}
    model = adapted_model(llama, dtype=torch.float32)
    trainer = trainer_of(model, rows(8), llama, output_dir=str(tmp_path), **options)
    if how == "data":
        trainer.train_dataset = trainer.train_dataset.select([1, 0, *range(2, 8)])
    with pytest.raises(IntegrityError, match="left the order"):
        trainer.train()


def test_prepared_rows_notice_another_dataset() -> None:
    prepared = rows(5)
    dataset = prepared.dataset()
    prepared.check_dataset(dataset)
    with pytest.raises(IntegrityError, match="prepared 5 rows, the trainer holds 4"):
        prepared.check_dataset(dataset.select(range(4)))
    for other in (dataset.select([1, 0, 2, 3, 4]), rows(5, seed=1).dataset()):
        with pytest.raises(IntegrityError, match="other rows"):
            prepared.check_dataset(other)


def test_equals_plain_trl_bit_for_bit(llama: Path, tmp_path: Path) -> None:
    """Same rows through TRL's own trainer, collator and labels, in order: the same weights."""
    from transformers import AutoTokenizer

    prepared, trained = rows(8), []
    ours = adapted_model(llama, dtype=torch.float32)
    trainer_of(ours, prepared, llama, output_dir=str(tmp_path), max_steps=2).train()
    theirs = adapted_model(llama, dtype=torch.float32)
    args = SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, learning_rate=1e-2, max_steps=2, seed=0, bf16=False,
        gradient_checkpointing=False, train_sampling_strategy="sequential", use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(llama)
    dataset = prepared.dataset().with_format(None).remove_columns("row")
    SFTTrainer(model=theirs, args=args, train_dataset=dataset, processing_class=tokenizer).train()
    trained = [lora_parameters(model) for model in (ours, theirs)]
    for name in trained[0]:
        assert torch.equal(trained[0][name], trained[1][name]), name


def test_loss_is_the_mean_over_the_steps_response_tokens(llama: Path, tmp_path: Path) -> None:
    prepared = rows(6)
    model = adapted_model(llama, dtype=torch.float32)
    nll_sum, n_tokens = 0.0, 0
    for ids, labels in zip(prepared.input_ids, prepared.labels, strict=True):
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor(ids[None].astype(np.int64))).logits[0].double().log_softmax(-1)
        for position in np.flatnonzero(labels != -100):
            nll_sum -= log_p[position - 1, labels[position]].item()
            n_tokens += 1
    trainer = trainer_of(
        model, prepared, llama, output_dir=str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=3,
        max_steps=1,
    )  # fmt: skip
    trainer.train()
    assert trainer.finish_step()["loss"] == pytest.approx(nll_sum / n_tokens, rel=1e-5)
    assert trainer.counts.n_response == n_tokens


def test_reference_state_restores_every_mode_and_the_adapter(llama: Path) -> None:
    model = adapted_model(llama, dropout=0.1)
    model.get_base_model().base_model.layers[0].eval()
    before = [module.training for module in model.modules()]
    ids = torch.tensor([[3, 4, 5]])
    model.eval()
    adapted = model(input_ids=ids).logits
    for module, mode in zip(model.modules(), before, strict=True):
        module.training = mode
    with reference_state(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        assert not torch.equal(model(input_ids=ids).logits, adapted)
    assert [module.training for module in model.modules()] == before
    assert not model.get_base_model().base_model.layers[0].training
    model.eval()
    assert torch.equal(model(input_ids=ids).logits, adapted)


def test_targets_are_found_by_name_or_the_error_lists_what_there_is(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from tests.models import tiny_model_folder

    plain = AutoModelForCausalLM.from_pretrained(llama)
    assert find_targets(plain, SEVEN_PROJECTIONS) == list(SEVEN_PROJECTIONS)
    assert find_targets(plain, (ALL_LINEAR,)) == sorted(SEVEN_PROJECTIONS)
    gpt2 = AutoModelForCausalLM.from_pretrained(tiny_model_folder(tmp_path / "gpt2", kind="gpt2"))
    with pytest.raises(BadInputError, match=r"no layers named q_proj, .*it has c_attn, c_fc, c_proj"):
        find_targets(gpt2, SEVEN_PROJECTIONS)
    assert find_targets(gpt2, (ALL_LINEAR,)) == ["c_attn", "c_fc", "c_proj"]


@pytest.mark.parametrize(
    "option",
    [{"packing": True}, {"shuffle_dataset": True}, {"train_sampling_strategy": "group_by_length"}, {"max_length": 8}],
)
def test_what_would_reorder_pack_or_cut_in_silence_is_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match=f"{next(iter(option))} would reorder, pack or cut"):
        sft_config(str(tmp_path), use_cpu=True, **option)


def test_another_order_by_name_sees_each_row_once_an_epoch(llama: Path, tmp_path: Path) -> None:
    trainer = trainer_of(
        adapted_model(llama, dtype=torch.float32), rows(8), llama, output_dir=str(tmp_path), reorder="shuffle",
        max_steps=-1, num_train_epochs=2,
    )  # fmt: skip
    trainer.order = OnceCheck(8)
    trainer.train()
    assert trainer.order.n_seen == 16
    for wrong in ([3, 3], [8]):
        with pytest.raises(IntegrityError, match="came twice in one epoch, or is none of the 8 rows"):
            OnceCheck(8).see(wrong)


def test_nothing_that_reorders_or_reports_is_on(tmp_path: Path) -> None:
    config: Any = sft_config(str(tmp_path), use_cpu=True)
    assert config.train_sampling_strategy == "sequential"
    off = ("packing", "shuffle_dataset", "bf16", "remove_unused_columns")
    assert {name: getattr(config, name) for name in off} == dict.fromkeys(off, False)
    assert config.dataset_kwargs == {"skip_prepare_dataset": True}
    assert config.report_to == []
