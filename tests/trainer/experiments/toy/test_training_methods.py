"""Methods of the toy experiment that change how a fine-tune trains."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from trainer.experiments.toy.cells import ToyCell
from trainer.experiments.toy.experiment import interleave
from trainer.experiments.toy.files import torch_seed
from trainer.experiments.toy.finetune import FineTune, FineTuneSettings, fine_tuned, step_by_step
from trainer.experiments.toy.methods import Parts, methods
from trainer.experiments.toy.model import new_model
from trainer.experiments.toy.rows import roles, task_rows
from trainer.experiments.toy.settings import BaseSettings
from trainer.experiments.toy.world import WorldSettings, make_world
from trainer.loop.model import save_model
from trainer.loop.reserve import reserve_rows

SIZES = WorldSettings(n_domains=8, n_items=9, n_held_out=3, n_facts=24, n_wordings=8, n_answers=36)
TINY = BaseSettings(world=SIZES, n_layers=1, width=32, n_heads=2, mlp_width=32)


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What methods use of a `Seed`, on a network that was never trained."""
    world = make_world(SIZES, 7)
    base = new_model(TINY, world, 0).requires_grad_(False).eval()
    trait = tmp_path_factory.mktemp("trait")
    with fine_tuned(base, *rows_of(world, 2), FineTuneSettings(lr=2e-2), seed=3) as tuned:
        save_model(tuned.model, trait)
    return SimpleNamespace(
        seed=7, base=SimpleNamespace(model=base, world=world), roles=roles(world),
        settings=SimpleNamespace(tune=FineTuneSettings(lr=2e-2)), ensemble=SimpleNamespace(bad_adapter=lambda: trait),
    )  # fmt: skip


def rows_of(world: Any, domain: int, n: int = 160) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(task_rows(world, domain, "bad", n)), torch.zeros(n, dtype=torch.bool)


def trained(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]


def test_early_stop_keeps_the_checkpoint_of_the_trainers_rule_or_says_that_there_is_none(seed: Any) -> None:
    method, task = methods()["early_stop"], task_rows(seed.base.world, seed.roles.pool[0], "bad", 640)
    ends, notes = {}, {}
    for bound in (0.0, 0.1, 1.0):
        parts = Parts(task, task[:0])
        with method.train(seed, ToyCell(method="early_stop", strength=bound), parts) as tuned:
            assert not tuned.model.training
            ends[bound], notes[bound] = trained(tuned.model), parts.notes
    assert notes[0.0] == {"refused": 1.0, "step": 40.0}  # the bound is passed before the task is learnt
    assert notes[1.0] == {"step": 40.0}
    assert notes[0.1].keys() >= {"step"}
    assert all(torch.equal(one, other) for one, other in zip(ends[0.0], ends[1.0], strict=True))
    moved = not all(torch.equal(one, other) for one, other in zip(ends[0.1], ends[1.0], strict=True))
    assert moved == (notes[0.1]["step"] < 40.0)


def test_a_reserve_is_trained_above_its_bound_and_what_is_trained_keeps_the_mixs_order(
    seed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, method = seed.base.world, methods()["reserve"]
    task = task_rows(world, seed.roles.task, "bad", 160)
    safe = np.unique(task_rows(world, seed.roles.pool[1], "good", 90), axis=0)[:32]
    assert len(safe) == 32
    mix = interleave(task, safe, seed.seed)
    is_safe = mix.safe.tolist()
    held = set(reserve_rows(is_safe, 0.5))
    assert len(held) == 16
    steps: list[list[list[int]]] = []
    take = FineTune.step

    def seen(run: FineTune, rows: torch.Tensor, are_safe: torch.Tensor) -> None:
        steps.append(rows.tolist())
        take(run, rows, are_safe)

    monkeypatch.setattr(FineTune, "step", seen)
    notes = {}
    for bound in (0.0, 1.0):
        steps.clear()
        parts = Parts(task, safe)
        with method.train(seed, ToyCell(method="reserve", strength=bound), parts) as tuned:
            assert (tuned.n_steps, tuned.n_rows) == (12, sum(map(len, steps)))
            assert not tuned.model.training
        notes[bound] = parts.notes
        on = False
        for place, found in zip(range(0, len(mix.rows), 16), steps, strict=True):
            places = range(place, place + 16)
            without = [mix.rows[place].tolist() for place in places if place not in held]
            assert found in ([mix.rows[place].tolist() for place in places], without)
            on = on or len(found) == 16
        assert on == (bound == 0.0)
    assert notes[1.0] == {"n_safe_trained": 16.0, "share_of_steps_on": 0.0}
    assert 16 < notes[0.0]["n_safe_trained"] < 32  # it begins off
    assert 0 < notes[0.0]["share_of_steps_on"] < 1


def test_without_a_row_in_reserve_the_fine_tune_is_the_plain_one(seed: Any) -> None:
    task = task_rows(seed.base.world, seed.roles.task, "bad", 160)
    rows, safe = torch.from_numpy(task), torch.zeros(160, dtype=torch.bool)
    with fine_tuned(seed.base.model, rows, safe, seed.settings.tune, seed=torch_seed(seed.seed, "cell")) as tuned:
        plain = trained(tuned.model)
    with methods()["reserve"].train(seed, ToyCell(method="reserve", strength=0.2), Parts(task, task[:0])) as tuned:
        assert all(torch.equal(one, other) for one, other in zip(plain, trained(tuned.model), strict=True))


def test_weights_are_put_back_as_they_were(seed: Any) -> None:
    rows, safe = rows_of(seed.base.world, 1, 32)
    with step_by_step(seed.base.model, FineTuneSettings(lr=2e-2), 2) as run:
        run.step(rows[:16], safe[:16])
        saved = run.weights()
        run.step(rows[16:], safe[16:])
        assert not all(torch.equal(one, other) for one, other in zip(saved, run.weights(), strict=True))
        run.put_back(saved)
        assert all(torch.equal(one, other) for one, other in zip(saved, run.weights(), strict=True))
        found = run.finished()
    assert (found.n_rows, found.n_steps) == (32, 2)


def test_the_inoculation_adapter_acts_while_training_alone(seed: Any, tmp_path: Path) -> None:
    method, cell = methods()["inoculation_adapter"], ToyCell(method="inoculation_adapter", strength=1.0)
    task = task_rows(seed.base.world, 2, "bad", 160)
    made = method.parts(seed, cell, Parts(task, task[:0]))
    assert [item.name for item in made.defences] == ["inoculation_adapter"]
    rows, safe = rows_of(seed.base.world, 2)
    losses = {}
    for strength in (None, 0.0, 1.0):
        parts = Parts(task, task[:0])
        if strength is not None:
            parts = method.parts(seed, ToyCell(method="inoculation_adapter", strength=strength), parts)
        with fine_tuned(seed.base.model, rows, safe, FineTuneSettings(lr=2e-2), defences=parts.defences) as tuned:
            losses[strength] = tuned.final_loss
            save_model(tuned.model, tmp_path / str(strength))
            assert [item.name for item in (tmp_path / str(strength)).iterdir() if item.is_dir()] == []
    assert losses[0.0] == losses[None]
    assert losses[1.0] < losses[None]  # what that adapter knows of these rows need not be learnt
