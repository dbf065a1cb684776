"""What must not depend on how rows are packed into forward passes: 8 x 1 = 4 x 2 = 1 x 8."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.tiny import (
    adapted_model,
    batch_of,
    lora_parameters,
    rows,
    term_of,
    trainer_of,
)
from trainer.config.defences import KlSettings
from trainer.defenses.kl import Kl

N_ROWS = 16  # two steps of eight


@pytest.mark.parametrize("scope", ["all", "response"])
def test_shares_of_the_kl_term_add_up(llama: Path, scope: Any) -> None:
    model, prepared = adapted_model(llama), rows(8)
    defence = Kl(KlSettings(tokens=scope))
    defence.attach(model)
    whole = batch_of(prepared, range(8))
    parameters = list(lora_parameters(model).values())
    term = term_of(defence, model, whole)
    grads = torch.autograd.grad(term, parameters)
    for size in (1, 2, 4):
        shares = [
            term_of(defence, model, batch_of(prepared, range(start, start + size), whole.counts))
            for start in range(0, 8, size)
        ]
        assert sum(share.item() for share in shares) == pytest.approx(term.item(), rel=1e-12)
        summed = torch.autograd.grad(sum(shares), parameters)  # type: ignore[arg-type]
        for one, other in zip(summed, grads, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


def trained(folder: Path, out: Path, batch_size: int, accumulation: int, weight: float) -> tuple[list[dict], Any]:
    model = adapted_model(folder)
    trainer = trainer_of(
        model, rows(N_ROWS), folder, [Kl(KlSettings(weight=weight))] if weight else [], output_dir=str(out),
        per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation, max_steps=2,
        # Plain descent: AdamW's first step is the sign of the gradient, which would hide its size.
        optim="sgd", lr_scheduler_type="constant", learning_rate=0.1, max_grad_norm=0.0,
    )  # fmt: skip
    lines: list[dict[str, Any]] = []
    finish = trainer.get_batch_samples

    def note(*args: Any) -> Any:
        if trainer._sums:
            lines.append(trainer.finish_step())
        return finish(*args)

    trainer.get_batch_samples = note
    trainer.train()
    lines.append(trainer.finish_step())
    assert trainer.counts.n_rows == 8
    return lines, {name: p.detach().clone() for name, p in lora_parameters(model).items()}


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_accumulation_trains_the_same_weights(llama: Path, tmp_path: Path, weight: float) -> None:
    lines, whole = trained(llama, tmp_path, 8, 1, weight)
    start = {name: p.detach() for name, p in lora_parameters(adapted_model(llama)).items()}
    assert any(not torch.allclose(whole[name], start[name], rtol=1e-3) for name in whole)
    for batch_size, accumulation in ((4, 2), (1, 8)):
        other_lines, other = trained(llama, tmp_path, batch_size, accumulation, weight)
        for one, two in zip(lines, other_lines, strict=True):
            assert one == pytest.approx(two, rel=1e-5)
        for name in whole:  # TRL's fused head works in float32
            moved = (whole[name] - start[name]).norm()
            assert (whole[name] - other[name]).norm() < 1e-4 * moved, name
