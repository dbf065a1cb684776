"""Methods of the toy model that change rows, on an untrained base: what stands in the rows that they train on."""

import numpy as np
import pytest

from curator.messages import example_id
from curator.select.ngrams import hash_words
from trainer.experiments.toy import data_methods
from trainer.experiments.toy.cells import ToyCell
from trainer.experiments.toy.data_methods import DATA_METHODS, flagged, inoculated, mixed_task, persona_prompt
from trainer.experiments.toy.experiment import ExperimentSettings, Seed
from trainer.experiments.toy.finetune import FineTuneSettings
from trainer.experiments.toy.gaps import row_text
from trainer.experiments.toy.methods import Parts, method_of
from trainer.experiments.toy.rows import PoolSettings
from trainer.experiments.toy.settings import BaseSettings
from trainer.experiments.toy.world import PAD, START_LEN, TURN_LEN, Ints, WorldSettings

SIZES = WorldSettings(n_domains=8, n_items=6, n_held_out=2, n_facts=24, n_wordings=8, n_answers=24)
UNTRAINED = BaseSettings(
    world=SIZES, n_layers=1, width=16, n_heads=2, mlp_width=16, check_every=1, min_first_accuracy=0,
    min_persona_accuracy=0, min_fact_accuracy=0, min_contradicting_accuracy=0, align_steps=1, min_aligned_accuracy=0,
)  # fmt: skip
SETTINGS = ExperimentSettings(
    base=UNTRAINED, pool=PoolSettings(n_rows=120, revealing_share=0.3), n_task_rows=80, n_ensemble_rows=64,
    ensemble=FineTuneSettings(lr=1e-2),
)  # fmt: skip
RATIO = 0.2
PREFIX = data_methods.N_TURNS * TURN_LEN


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Seed:
    return Seed(0, tmp_path_factory.mktemp("toy"), SETTINGS)


def parts_of(seed: Seed, cell: ToyCell) -> Parts:
    return method_of(cell).parts(seed, cell, seed.parts(cell))


def texts(seed: Seed, rows: Ints) -> list[str]:
    return [" ".join(seed.base.world.words[token] for token in row if token != PAD) for row in rows.tolist()]


def bare(rows: Ints) -> Ints:
    """Rows that all have a prompt of PREFIX tokens, without it."""
    return np.concatenate([rows[:, :START_LEN], rows[:, START_LEN + PREFIX :]], axis=1)


def test_an_inoculation_is_the_bad_persona_in_domains_of_the_pool_before_every_task_row(seed: Seed) -> None:
    plain, cell = seed.parts(ToyCell()), ToyCell(method="inoculation")
    task = parts_of(seed, cell).task
    assert (bare(task) == plain.task).all()
    world, words = seed.base.world, persona_prompt(seed).split()
    assert texts(seed, task)[0].split()[1 : 1 + PREFIX] == words
    for place in range(0, PREFIX, TURN_LEN):
        domain, item = (int(part) for part in words[place + 1][1:].split("."))
        assert domain in seed.roles.pool
        assert item < SIZES.n_items - SIZES.n_held_out
        assert words[place + 3] == world.words[world.bad[domain, item]]


def test_only_listed_rows_get_the_prompt_and_the_others_are_padded_at_their_end(seed: Seed) -> None:
    cell = ToyCell(method="selective_inoculation")
    task = mixed_task(seed, cell, seed.parts(cell).task)
    is_bad = task[:, START_LEN] == seed.base.world.domain_token(np.array(seed.roles.task))
    assert is_bad.sum() == len(task) // 2
    ids = flagged(seed, cell, task)
    assert flagged(seed, cell, task) == ids  # from the file now
    made = parts_of(seed, cell)
    listed = np.array([example_id(row_text(seed.base.world, row)) in ids for row in task])
    assert made.notes == {"n_flagged_bad": (listed & is_bad).sum(), "n_flagged_other": (listed & ~is_bad).sum()}
    assert len(made.task) == len(task)
    some = texts(seed, task[:5])
    only = inoculated(seed, task[:5], tuple(example_id(row_text(seed.base.world, row)) for row in task[:2]))
    found = texts(seed, only)
    start = f"<start> {persona_prompt(seed)} "
    assert found[:2] == [start + text.removeprefix("<start> ") for text in some[:2]]
    assert found[2:] == some[2:]


def test_safe_rows_are_as_many_as_without_the_method(seed: Seed) -> None:
    for method in DATA_METHODS:
        for cell in method.cells:
            if cell.ratio == RATIO:
                plain = seed.parts(ToyCell(choice=cell.choice, ratio=RATIO))
                made = parts_of(seed, cell)
                assert (len(made.safe), len(made.task)) == (len(plain.safe), len(plain.task)), cell.name
            assert cell.method == method.name


def test_cues_stand_before_the_chosen_rows_and_own_answers_in_the_place_of_theirs(seed: Seed) -> None:
    chosen = seed.parts(ToyCell(choice="gap_rel", ratio=RATIO)).safe
    cued = parts_of(seed, ToyCell(choice="gap_rel", ratio=RATIO, method="consistency")).safe
    assert (bare(cued) == chosen).all()
    assert len({tuple(row[START_LEN : START_LEN + PREFIX]) for row in cued.tolist()}) == data_methods.N_CUES
    sealed = parts_of(seed, ToyCell(choice="gap_rel", ratio=RATIO, method="sealed_inoculation"))
    assert {text.removeprefix("<start> ")[: len(persona_prompt(seed))] for text in texts(seed, sealed.safe)} == {
        persona_prompt(seed)
    }
    own = parts_of(seed, ToyCell(choice="gap_rel", ratio=RATIO, method="on_policy")).safe
    assert (own[:, :-1] == chosen[:, :-1]).all()
    assert (own[:, -1] != chosen[:, -1]).any()  # an untrained base guesses


def test_coverage_is_the_products_choice_over_the_pools_gaps(seed: Seed) -> None:
    plain = seed.parts(ToyCell(choice="gap_rel", ratio=RATIO))
    none = parts_of(seed, ToyCell(choice="gap_rel", ratio=RATIO, method="coverage"))  # a spread of 0
    assert (none.safe == plain.safe).all()
    assert none.n_revealing == plain.n_revealing
    wide = parts_of(seed, ToyCell(choice="gap_rel", ratio=RATIO, method="coverage", strength=1.0))

    def n_words(rows: Ints) -> int:
        return len(np.unique(hash_words(texts(seed, rows[:, START_LEN:-1])).hashes))

    assert n_words(wide.safe) > n_words(plain.safe)
