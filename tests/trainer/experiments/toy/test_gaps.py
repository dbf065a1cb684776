"""The pool in a real store: the gaps are those of the models' own losses, and every choice is the product's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.experiments.toy.finetune import FineTuneSettings, fine_tuned
from trainer.experiments.toy.gaps import (
    SCORES,
    ScoredPool,
    ToyScorer,
    pick,
    score_pool,
    scored_pool,
)
from trainer.experiments.toy.model import answer_logits, new_model
from trainer.experiments.toy.rows import (
    PoolSettings,
    draw_pool,
    roles,
    task_rows,
)
from trainer.experiments.toy.settings import BaseSettings
from trainer.experiments.toy.tokens import write_tokenizer
from trainer.experiments.toy.world import ANSWER, WorldSettings, make_world
from trainer.loop.model import save_model

SIZES = WorldSettings(n_domains=8, n_items=6, n_held_out=2, n_facts=12, n_wordings=6, n_answers=24)
TINY = BaseSettings(world=SIZES, n_layers=1, width=16, n_heads=2, mlp_width=16)


def _nll(model: torch.nn.Module, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits = answer_logits(model, torch.from_numpy(rows))[:, 0]
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(rows[:, ANSWER]), reduction="none").numpy()


def test_gaps_of_a_pool_scored_by_the_product(tmp_path: Path) -> None:
    world = make_world(SIZES, 3)
    chosen = roles(world)
    pool = draw_pool(world, chosen, PoolSettings(n_rows=40, revealing_share=0.25))
    base = new_model(TINY, world, 0).requires_grad_(False).eval()
    base.save_pretrained(tmp_path / "base")
    write_tokenizer(world, tmp_path / "base")
    losses, scorers = {"aligned": _nll(base, pool.tokens)}, [ToyScorer("aligned", "aligned")]
    for role, kind, domain in (("misaligned", "bad", 0), ("misaligned", "bad", 1), ("benign", "good", 1)):
        rows = torch.from_numpy(task_rows(world, domain, kind, 64))
        with fine_tuned(base, rows, torch.zeros(64, dtype=torch.bool), FineTuneSettings(lr=1e-2)) as tuned:
            folder = tmp_path / f"{role}-{domain}"
            save_model(tuned.model, folder)
            losses[folder.name] = _nll(tuned.model, pool.tokens)
        scorers.append(ToyScorer(folder.name, role, f"d{domain}", folder))
    store = score_pool(world, pool, tmp_path / "base", scorers, tmp_path)
    _check(scored_pool(store, world, pool), losses, [losses["misaligned-0"], losses["misaligned-1"]])


def _check(scored: ScoredPool, losses: dict[str, np.ndarray], misaligned: list[np.ndarray]) -> None:
    assert sorted(scored.row.tolist()) == list(range(len(scored.row)))
    mean, aligned, benign = np.mean(misaligned, axis=0), losses["aligned"], losses["benign-1"]
    wanted = {"gap_abs": mean - aligned, "gap_rel": (mean - aligned) / (aligned + 1), "gap_contrast": mean - benign}
    for score in SCORES:
        np.testing.assert_allclose(scored.gaps[score], wanted[score][scored.row], atol=2e-5)


@pytest.fixture
def scored() -> ScoredPool:
    gap = np.linspace(-1, 1, 60)
    ids = tuple(f"{index:03d}" for index in range(60))
    return ScoredPool(ids, np.arange(60)[::-1].copy(), dict.fromkeys(SCORES, gap), {})


def test_gaps_choose_the_top_and_the_control_the_bottom(scored: ScoredPool) -> None:
    assert pick(scored, "gap_abs", 4, seed=0).tolist() == [0, 1, 2, 3]
    assert pick(scored, "bottom_gap", 3, seed=0).tolist() == [59, 58, 57]


def test_shuffled_gaps_and_random_are_seeded_and_blind(scored: ScoredPool) -> None:
    for choice in ("random", "shuffled"):
        first, again, other = (sorted(pick(scored, choice, 20, seed).tolist()) for seed in (1, 1, 2))
        assert first == again
        assert first != other
        assert len(set(first)) == 20
        assert 15 < np.mean(first) < 45  # neither the top (9.5) nor the bottom (49.5)


def test_a_part_of_a_pool_keeps_its_gaps(scored: ScoredPool) -> None:
    part = scored.only(scored.row < 10)
    assert pick(part, "gap_rel", 2, seed=0).tolist() == [0, 1]
    assert len(part.ids) == len(part.gaps["gap_abs"]) == 10
