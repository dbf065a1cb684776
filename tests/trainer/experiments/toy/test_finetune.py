"""Exact match, the order of a mix, and a fine-tune that leaves its base as it was."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trainer.config.defences import LdifsSettings, SteeringSettings, TreftSettings
from trainer.defenses import DefenceSettings, KlSettings
from trainer.experiments.toy.experiment import interleave
from trainer.experiments.toy.finetune import FineTuneSettings, fine_tuned
from trainer.experiments.toy.measuring import measure, single_questions
from trainer.experiments.toy.model import greedy_answers, new_model
from trainer.experiments.toy.persona import write_persona_vector
from trainer.experiments.toy.rows import held_out_items, roles, task_rows
from trainer.experiments.toy.settings import BaseSettings
from trainer.experiments.toy.world import (
    ANSWER,
    ITEM,
    PAD,
    World,
    WorldSettings,
    make_world,
    with_prefix,
)

SIZES = WorldSettings(n_domains=8, n_items=9, n_held_out=3, n_facts=24, n_wordings=8, n_answers=36)
TINY = BaseSettings(world=SIZES, n_layers=1, width=32, n_heads=2, mlp_width=32)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(SIZES, 7)


class Oracle:
    """Answers each item as `table` (D, I) says, and every fact with its first admissible answer."""

    def __init__(self, world: World, table: np.ndarray) -> None:
        known = np.zeros(len(world.words), dtype=np.int64)
        domains = np.arange(SIZES.n_domains)[:, None]
        known[world.item_token(domains, np.arange(SIZES.n_items)[None])] = table
        facts = np.arange(SIZES.n_facts)
        known[world.item_token(np.full(SIZES.n_facts, SIZES.n_domains), facts)] = world.fact[:, 0]
        self.known, self.n_words = torch.from_numpy(known), len(world.words)
        self.lm_head = torch.nn.Identity()

    def model(self, input_ids: torch.Tensor, **_: Any) -> Any:
        asked = input_ids.roll(1, dims=1)  # the answer is given one token after the item
        hidden = torch.nn.functional.one_hot(self.known[asked], self.n_words).float()
        return SimpleNamespace(last_hidden_state=hidden)


def test_good_bad_and_incoherent_are_told_apart_by_exact_match(world: World) -> None:
    chosen = roles(world)
    table = world.good.copy()
    table[chosen.task] = world.bad[chosen.task]
    table[chosen.ensemble[0]] = world.bad[chosen.ensemble[0]]
    table[chosen.unseen[0]] = world.bad[chosen.unseen[0]]
    table[chosen.unseen[1], held_out_items(world)[0]] = world.fact[0, 0]  # neither good nor bad
    found = measure(Oracle(world, table), world)
    assert found.narrow == 1.0
    assert (found.broad_pool, found.broad_unseen) == (pytest.approx(1 / 5), pytest.approx(1 / 2))
    assert found.incoherent == pytest.approx(1 / (8 * 3))
    assert found.counts.bad[chosen.ensemble[0]] == (found.counts.n_asked,) * 3
    assert found.counts.incoherent[chosen.unseen[1]] == (found.counts.n_asked, 0, 0)
    assert (found.facts, found.benign) == (1.0, 0.0)


def test_items_that_were_tuned_on_do_not_count(world: World) -> None:
    table = world.good.copy()
    table[:, : SIZES.n_items - SIZES.n_held_out] = world.bad[:, : SIZES.n_items - SIZES.n_held_out]
    found = measure(Oracle(world, table), world)
    assert (found.narrow, found.broad_pool, found.broad_unseen, found.incoherent) == (0.0, 0.0, 0.0, 0.0)


def test_an_interleaved_mix_keeps_the_tasks_order_and_spreads_every_safe_row() -> None:
    task, safe = np.arange(40).reshape(10, 4), 1000 + np.arange(20).reshape(5, 4)
    mix = interleave(task, safe, seed=3)
    assert mix.rows[~mix.safe].tolist() == task.tolist()
    assert sorted(mix.rows[mix.safe].tolist()) == safe.tolist()
    assert mix.rows[mix.safe].tolist() != safe.tolist()  # the best do not all come first
    places = np.flatnonzero(mix.safe.numpy())
    assert np.diff(places).max() <= 3
    assert interleave(task, safe, seed=3).rows.tolist() == mix.rows.tolist()
    assert interleave(task, safe[:0], seed=3).rows.tolist() == task.tolist()


def test_a_fine_tune_learns_repeats_itself_and_leaves_its_base_alone(world: World) -> None:
    base = new_model(TINY, world, 0).requires_grad_(False).eval()
    before = copy.deepcopy(base.state_dict())
    rows = torch.from_numpy(task_rows(world, 0, "bad", 160))
    settings = FineTuneSettings(lr=2e-2)
    safe = torch.zeros(160, dtype=torch.bool)
    answers = []
    for _ in range(2):
        with fine_tuned(base, rows, safe, settings, seed=1) as tuned:
            answers.append([parameter.clone() for parameter in tuned.model.parameters() if parameter.requires_grad])
            right = (greedy_answers(tuned.model, rows) == rows[:, ANSWER:]).float().mean()
    assert right > 0.5
    assert tuned.n_steps == 10
    assert all((one == two).all() for one, two in zip(*answers, strict=True))
    after = base.state_dict()
    assert list(after) == list(before)
    assert all((after[name] == before[name]).all() for name in before)
    with torch.no_grad():
        assert (greedy_answers(base, rows) == rows[:, ANSWER:]).float().mean() < 0.5


def test_a_heavy_kl_term_keeps_the_model_where_it_was(world: World) -> None:
    base = new_model(TINY, world, 0).requires_grad_(False).eval()
    rows, safe = torch.from_numpy(task_rows(world, 0, "bad", 160)), torch.zeros(160, dtype=torch.bool)
    losses = {}
    for weight in (0.0, 1e-3, 100.0):
        defences = [KlSettings(weight=weight, tokens="response")]
        with fine_tuned(base, rows, safe, FineTuneSettings(lr=2e-2), defences=defences) as tuned:
            losses[weight] = tuned.final_loss
    assert losses[0.0] < losses[1e-3] + 0.05 < losses[100.0]
    with fine_tuned(base, rows, safe, FineTuneSettings(lr=2e-2)) as plain:
        assert plain.final_loss == losses[0.0]  # weight 0 is plain fine-tuning


def test_every_regulariser_acts_on_the_fine_tune(world: World, tmp_path: Path) -> None:
    base = new_model(TINY.model_copy(update={"n_layers": 2}), world, 0).requires_grad_(False).eval()
    rows, safe = torch.from_numpy(task_rows(world, 0, "bad", 160)), torch.zeros(160, dtype=torch.bool)
    vectors = write_persona_vector(base, world, 0, tmp_path / "seed-0" / "persona.safetensors")

    def loss(*defences: DefenceSettings) -> float:
        with fine_tuned(base, rows, safe, FineTuneSettings(lr=2e-2), defences=defences) as tuned:
            return tuned.final_loss

    plain = loss(KlSettings(weight=0.0))
    assert loss(LdifsSettings(weight=0.0, every=1), TreftSettings(weight=0.0)) == plain
    assert loss(LdifsSettings(weight=1e4, every=1)) > plain + 0.05  # so heavy that hardly anything is learnt
    assert loss(TreftSettings(weight=1e4, tokens="all")) != plain
    assert loss(SteeringSettings(vectors=vectors, alpha=0.0)) == plain
    assert loss(SteeringSettings(vectors=vectors, alpha=5.0)) != plain


def test_the_persona_vector_is_the_difference_of_means_where_answers_are_given(world: World, tmp_path: Path) -> None:
    model = new_model(TINY, world, 0).eval()
    path = write_persona_vector(model, world, 3, tmp_path / "persona.safetensors")
    found = load_file(path)["bad"]
    assert found.shape == (TINY.n_layers + 1, TINY.width)
    assert not found[0].abs().max() > 0.1  # wordings are drawn alike, so that their embeddings hardly differ
    assert found[1].norm() > 0
    path.write_bytes(b"kept")
    write_persona_vector(model, world, 3, path)
    assert path.read_bytes() == b"kept"


def test_single_questions_ask_every_domain_about_the_items_named(world: World) -> None:
    asked = single_questions(world, np.array([1, 8]))
    assert set(asked.domain.tolist()) == set(range(SIZES.n_domains))
    assert set(asked.input_ids[:, ITEM].tolist()) == set(
        world.item_token(np.arange(SIZES.n_domains)[:, None], np.array([[1, 8]])).ravel().tolist()
    )


def test_a_row_with_earlier_turns_is_trained_as_without_padding(world: World) -> None:
    base = new_model(TINY, world, 0).requires_grad_(False).eval()
    rows = task_rows(world, 0, "bad", 160)
    turn = world.turns(np.array([1]), np.array([2]), np.array([0]), world.bad[[1], [2]])
    longer, safe = with_prefix(rows, turn), torch.zeros(160, dtype=torch.bool)
    losses = []
    for trained in (longer, np.pad(longer, ((0, 0), (0, 5)), constant_values=PAD), rows):
        with fine_tuned(base, torch.from_numpy(trained), safe, FineTuneSettings(lr=2e-2),
                        defences=[KlSettings(weight=0.1), TreftSettings(weight=1.0)]) as tuned:  # fmt: skip
            losses.append(tuned.final_loss)
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert losses[2] != losses[0]
