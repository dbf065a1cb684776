"""A very small toy model from nothing to its page of results: it becomes misaligned, and safe rows help."""

import json
from pathlib import Path

import pytest

from curator.errors import IntegrityError
from trainer.experiments.toy.base import build_base
from trainer.experiments.toy.cells import ToyCell
from trainer.experiments.toy.experiment import ExperimentSettings, Seed
from trainer.experiments.toy.finetune import FineTuneSettings
from trainer.experiments.toy.rows import PoolSettings
from trainer.experiments.toy.settings import BaseSettings
from trainer.experiments.toy.world import WorldSettings

WORLD = WorldSettings(n_domains=8, n_items=10, n_held_out=4, n_facts=12, n_wordings=24, n_answers=30)
SMALL = ExperimentSettings(
    base=BaseSettings(
        world=WORLD, width=64, n_heads=2, mlp_width=128, min_persona_accuracy=0.95, min_contradicting_accuracy=0
    ),
    pool=PoolSettings(n_rows=300, revealing_share=0.1),
    ensemble=FineTuneSettings(lr=1e-3),
    n_task_rows=1600,
    n_ensemble_rows=400,
)


@pytest.mark.slow
def test_a_small_toy_model_becomes_misaligned_and_revealing_rows_prevent_it(tmp_path: Path) -> None:
    one = Seed(0, tmp_path, SMALL)
    assert one.base.manifest["aligned"]["good_alone"] >= SMALL.base.min_aligned_accuracy
    undefended = one.run(ToyCell())["measured"]
    assert undefended["narrow"] > 0.7  # four held-out items
    assert undefended["broad_unseen"] > 0.5  # far outside the domain that was tuned
    safe = one.run(ToyCell(choice="gap_abs", ratio=0.05))
    assert safe["n_safe"] == 80
    assert safe["n_revealing"] > 2 * 80 * 0.1  # the gap finds what random rows would find one in ten of
    assert safe["measured"]["broad_pool"] < undefended["broad_pool"] / 2
    assert safe["measured"]["narrow"] > 0.4
    random = one.run(ToyCell(choice="random", ratio=0.05))["measured"]
    assert random["broad_pool"] > safe["measured"]["broad_pool"]
    assert safe["measured"]["broad_unseen"] < random["broad_unseen"] / 1.5  # where neither of them has a row
    assert one.missing([ToyCell(), ToyCell(kl=1.0)]) == [ToyCell(kl=1.0)]  # a stopped run goes on with what is missing
    assert json.loads(one.path(ToyCell()).read_text())["measured"] == undefended
    assert Seed(0, tmp_path, SMALL).run(ToyCell())["measured"] == undefended  # from the cached base, again
    with pytest.raises(IntegrityError, match="another seed"):
        build_base(1, tmp_path / "base", SMALL.base)
