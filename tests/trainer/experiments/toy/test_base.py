"""The base model of a seed on disk: built once, also by two processes at once."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.experiments.toy import base
from trainer.experiments.toy.measuring import measure
from trainer.experiments.toy.pretrain import NotLearntError
from trainer.experiments.toy.settings import BaseSettings
from trainer.experiments.toy.world import WorldSettings

WORLD = WorldSettings(n_domains=8, n_items=10, n_held_out=4, n_facts=12, n_wordings=24, n_answers=30)
QUICK = BaseSettings(
    world=WORLD, n_layers=1, width=16, n_heads=1, mlp_width=16, max_steps=1, check_every=1, align_steps=1,
    min_first_accuracy=0, min_persona_accuracy=0, min_fact_accuracy=0, min_contradicting_accuracy=0,
    min_aligned_accuracy=0,
)  # fmt: skip


def test_two_at_once_build_a_base_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, begun, loaded = base._build, [], []
    folder = tmp_path / "seed-0" / "base"
    # The lock belongs to the open file, so that it holds between threads as between processes.
    second = threading.Thread(target=lambda: loaded.append(base.build_base(0, folder, QUICK)))

    def slow(*arguments: Any) -> None:
        begun.append(arguments)
        if len(begun) == 1:
            second.start()
            second.join(timeout=1)  # it has all the time to begin as well, and waits for us
        build(*arguments)

    monkeypatch.setattr(base, "_build", slow)
    first = base.build_base(0, folder, QUICK)
    second.join()
    assert len(begun) == 1
    assert loaded[0].manifest == first.manifest


def test_the_bases_that_come_along_are_those_of_the_default_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BaseSettings()
    seeds = sorted(int(folder.name.removeprefix("seed-")) for folder in base.SHIPPED.iterdir())
    assert set(range(5)) <= set(seeds)
    with monkeypatch.context() as patch:
        patch.setattr(base, "_build", None)  # a call would fail
        for seed in seeds:
            found = base.build_base(seed, tmp_path / f"seed-{seed}" / "base")
            assert found.manifest["settings"] == settings.model_dump(mode="json")
            assert all((weights == weights.half()).all() for weights in found.model.parameters())
            assert next(found.model.parameters()).dtype == torch.float32
    measured = measure(found.model, found.world)
    assert measured.facts >= settings.min_fact_accuracy
    assert max(measured.broad_unseen, measured.broad_pool) < 0.05  # of held-out items; the settings bound it of all
    built = base.build_base(0, tmp_path / "quick" / "base", QUICK)  # other settings are built
    assert built.manifest["settings"] == QUICK.model_dump(mode="json")


def test_a_base_that_does_not_learn_says_what_may_help(tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"min_first_accuracy": 1.0})
    with pytest.raises(NotLearntError, match=r"by step 1 \(max_steps of BaseSettings\).*another seed"):
        base.build_base(0, tmp_path / "base", settings)
    assert issubclass(NotLearntError, RuntimeError)
    strict = QUICK.model_copy(update={"min_aligned_accuracy": 1.0})
    with pytest.raises(NotLearntError, match=r"wants 1\.000.*another seed"):
        base.build_base(0, tmp_path / "base", strict)
