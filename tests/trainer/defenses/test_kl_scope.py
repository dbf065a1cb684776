"""Selective KL (safe rows only) and the sampled estimator."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from curator.errors import BadInputError
from tests.trainer.defenses.test_kl import numpy_kl
from tests.trainer.proofs import assert_gradient, attached
from tests.trainer.tiny import (
    adapted_model,
    batch_of,
    lora_parameters,
    rows,
    term_of,
)
from trainer.config import parse_config
from trainer.config.defences import KlSettings
from trainer.config.rules import check_safe_rows
from trainer.defenses.kl import kept_positions

SAFE = [1, 4]  # every third row of the tiny rows


@pytest.mark.parametrize("scope", ["all", "response"])
def test_selective_is_the_kl_of_the_safe_rows_alone(llama: Path, scope: str) -> None:
    model, prepared = adapted_model(llama), rows(6)
    defence = attached(model, KlSettings(rows="safe", tokens=scope))
    term = term_of(defence, model, batch_of(prepared, range(6))).item()
    assert term == pytest.approx(numpy_kl(model, batch_of(prepared, SAFE), "student_reference", scope), rel=1e-9)
    assert term != pytest.approx(numpy_kl(model, batch_of(prepared, range(6)), "student_reference", scope), rel=1e-2)


def test_a_batch_without_safe_rows_adds_nothing(llama: Path) -> None:
    model, batch = adapted_model(llama), batch_of(rows(6), [0, 2, 3])
    term = term_of(attached(model, KlSettings(rows="safe")), model, batch)
    assert term.item() == 0.0
    for grad in torch.autograd.grad(term, list(lora_parameters(model).values())):
        assert torch.count_nonzero(grad) == 0
    with pytest.raises(BadInputError, match="do not say which of them are safe"):
        term_of(attached(model, KlSettings(rows="safe")), model, replace(batch, safe=None))


def test_selective_needs_a_mix() -> None:
    document = {"model": "m", "out": "o", "defences": [{"name": "kl", "rows": "safe"}]}
    with pytest.raises(BadInputError, match="rows=safe needs a mix"):
        parse_config(document | {"data": "d.jsonl"})
    defences = parse_config(document | {"mix_id": "a" * 32, "store": "s"}).defences
    check_safe_rows(defences, n_safe=1)
    with pytest.raises(BadInputError, match="this mix holds no safe row"):
        check_safe_rows(defences, n_safe=0)
    assert parse_config(document | {"mix_id": "a" * 32, "store": "s"}).defences[0].rows == "safe"


@pytest.mark.parametrize("settings", [{"rows": "safe"}, {"estimator": "sampled", "sample_share": 0.5}])
def test_gradient_equals_finite_differences(llama: Path, settings: dict[str, object]) -> None:
    model, batch = adapted_model(llama), batch_of(rows(4), range(4))
    defence = attached(model, KlSettings(**settings))
    assert_gradient(lambda: term_of(defence, model, batch), lora_parameters(model))


@pytest.mark.slow
def test_the_sampled_estimate_is_unbiased_and_keeps_its_share(llama: Path) -> None:
    model, batch = adapted_model(llama), batch_of(rows(5), range(5))
    full = term_of(attached(model, KlSettings()), model, batch).item()
    sampled = attached(model, KlSettings(estimator="sampled", sample_share=0.25))
    with torch.no_grad():
        found = np.array([term_of(sampled, model, replace(batch, step=step)).item() for step in range(120)])
    assert len(set(found.tolist())) > 100  # every step draws anew
    standard_error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - full) < 4 * standard_error < 0.3 * full
    whole = attached(model, KlSettings(estimator="sampled", sample_share=1.0))
    assert term_of(whole, model, batch).item() == pytest.approx(full, rel=1e-12)


def test_kept_positions_follow_step_row_and_position_alone() -> None:
    prepared = rows(64)
    whole = batch_of(prepared, range(64))
    kept = kept_positions(whole, 0.25)
    assert float(kept.double().mean()) == pytest.approx(0.25, abs=0.04)
    some = batch_of(prepared, range(8, 12))
    n_tokens = some.input_ids.shape[1]
    assert torch.equal(kept_positions(some, 0.25), kept[8:12, :n_tokens])
    state = torch.random.get_rng_state()
    assert not torch.equal(kept_positions(replace(whole, step=1), 0.25), kept)
    assert torch.equal(torch.random.get_rng_state(), state)
