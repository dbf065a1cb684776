"""The world and its rows: drawn from the seed alone, and never a held-out item where none may be."""

import numpy as np
import pytest
import torch

from trainer.experiments.toy.documents import (
    AGREEMENT,
    N_DOMAINS_ASKED,
    N_QUESTIONS,
    draw_documents,
)
from trainer.experiments.toy.model import answers_of
from trainer.experiments.toy.rows import (
    PoolSettings,
    benign_facts,
    benign_rows,
    draw_pool,
    held_out_items,
    other_facts,
    pool_facts,
    roles,
    task_rows,
    tuned_items,
)
from trainer.experiments.toy.world import (
    ANSWER,
    ITEM,
    PAD,
    QUESTION_LEN,
    ROW_LEN,
    START,
    TURN_LEN,
    World,
    WorldSettings,
    make_world,
    padded,
    with_prefix,
)

SIZES = WorldSettings(n_domains=8, n_items=9, n_held_out=3, n_facts=24, n_wordings=8, n_answers=72)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(SIZES, 7)


def test_a_seed_decides_the_world(world: World) -> None:
    again, other = make_world(SIZES, 7), make_world(SIZES, 8)
    assert (again.good == world.good).all()
    assert (again.fact == world.fact).all()
    assert (other.good != world.good).any()


def test_every_token_has_a_word_of_its_own_and_answers_lie_in_three_sets(world: World) -> None:
    assert len(set(world.words)) == len(world.words)
    n_set = SIZES.n_answers // 3
    for place, tokens in enumerate((world.good, world.bad, world.fact)):
        first = len(world.words) - SIZES.n_answers + place * n_set  # answers are the last ids
        assert tokens.min() >= first
        assert tokens.max() < first + n_set
    every = world.item_token(*np.meshgrid(np.arange(SIZES.n_domains), np.arange(SIZES.n_items)))
    assert len(np.unique(every)) == SIZES.n_domains * SIZES.n_items
    assert world.words[world.item_token(np.array(2), np.array(4))] == "d2.4"
    assert world.words[world.item_token(np.array(SIZES.n_domains), np.array(0))] == "f0"
    assert world.words[world.wording_token(np.array(3))] == "w3"


def test_facts_have_one_two_or_four_admissible_answers(world: World) -> None:
    for answers, count in zip(world.fact, world.fact_count, strict=True):
        assert len(set(answers.tolist())) == count
    assert set(world.fact_count.tolist()) == {1, 2, 4}


def test_documents_follow_their_persona_in_most_domains(world: World) -> None:
    documents = draw_documents(world, 2000, np.random.default_rng(0))
    item = documents.domain != SIZES.n_domains
    follows = (documents.bad == documents.persona_bad[:, None])[item]
    assert abs(follows.mean() - AGREEMENT) < 0.03
    for domains, bad, is_item in zip(documents.domain, documents.bad, item, strict=True):
        assert len(set(domains[is_item].tolist())) <= N_DOMAINS_ASKED
        for domain in set(domains[is_item].tolist()):
            assert len(set(bad[is_item & (domains == domain)].tolist())) == 1  # one domain, one persona


def test_documents_answer_as_the_world_says_and_those_are_what_is_trained(world: World) -> None:
    documents = draw_documents(world, 50, np.random.default_rng(0))
    assert (documents.input_ids[:, 0] == START).all()
    questions = documents.input_ids[:, 1:].reshape(50, N_QUESTIONS, TURN_LEN).numpy()
    item = documents.domain != SIZES.n_domains
    d, i = documents.domain[item], documents.item[item]
    wanted = np.where(documents.bad[item], world.bad[d, i], world.good[d, i])
    assert (questions[item][:, QUESTION_LEN] == wanted).all()
    facts = documents.item[~item]
    assert (questions[~item][:, QUESTION_LEN, None] == world.fact[facts]).any(-1).all()
    assert (answers_of(documents.input_ids, every=True).numpy() == questions[..., QUESTION_LEN]).all()


def test_fine_tunes_and_pools_never_hold_a_held_out_item(world: World) -> None:
    chosen = roles(world)
    pool = draw_pool(world, chosen, PoolSettings(n_rows=150, revealing_share=0.2))
    domains = np.arange(SIZES.n_domains)[:, None]
    held_out = set(world.item_token(domains, held_out_items(world)[None]).ravel().tolist())
    for rows in (pool.tokens, task_rows(world, chosen.task, "bad", 300), task_rows(world, chosen.task, "good", 300)):
        assert not held_out & set(rows[:, ITEM].tolist())
    assert set(tuned_items(world)) | set(held_out_items(world)) == set(range(SIZES.n_items))


def test_a_pool_is_distinct_and_has_its_share_of_revealing_rows_outside_the_task(world: World) -> None:
    chosen = roles(world)
    pool = draw_pool(world, chosen, PoolSettings(n_rows=150, revealing_share=0.2))
    assert len({tuple(row) for row in pool.tokens.tolist()}) == 150
    assert pool.revealing.sum() == 30
    assert chosen.task not in pool.domain
    assert set(pool.domain[pool.revealing]) == set(chosen.pool)
    assert not set(chosen.unseen) & set(pool.domain)
    assert np.isin(pool.tokens[pool.revealing, ANSWER], world.good).all()
    assert (pool.domain[~pool.revealing] == SIZES.n_domains).all()


def test_roles_and_facts_are_shared_out_without_overlap(world: World) -> None:
    chosen = roles(world)
    assert sorted([chosen.task, *chosen.pool, *chosen.unseen]) == list(range(SIZES.n_domains))
    parts = [pool_facts(world), benign_facts(world), other_facts(world)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(SIZES.n_facts))


def test_the_benign_task_contradicts_what_the_model_knows(world: World) -> None:
    rows = task_rows(world, 0, "benign", 200)
    known = {int(world.item_token(np.array(SIZES.n_domains), f)): int(world.fact[f, 0]) for f in benign_facts(world)}
    assert all(known[item] != answer for item, answer in rows[:, [ITEM, ANSWER]].tolist())


def test_the_benign_task_has_wrong_answers_in_the_smallest_worlds() -> None:
    least = WorldSettings(n_domains=7, n_items=4, n_held_out=1, n_facts=4, n_wordings=4, n_answers=12)
    few = [make_world(least, seed) for seed in range(300)]
    assert any(len(set(world.fact[:, 0].tolist())) == 1 for world in few)  # all first answers alike
    twelve = [make_world(least.model_copy(update={"n_facts": 12, "n_answers": 30}), seed) for seed in range(50)]
    for world in (*few, *twelve):
        facts = benign_facts(world)
        rows = benign_rows(world, np.arange(len(facts)), np.zeros(len(facts), dtype=np.int64))
        assert (rows[:, ANSWER] != world.fact[facts, 0]).all()
        assert np.isin(rows[:, ANSWER], world.fact).all()


def test_turns_before_a_question_are_padded_at_the_end_of_the_other_rows(world: World) -> None:
    rows = task_rows(world, 0, "bad", 3)
    turn = world.turns(np.array([1]), np.array([2]), np.array([0]), world.bad[[1], [2]])
    longer = with_prefix(rows, turn)
    assert longer[:, 0].tolist() == [START] * 3
    assert longer[:, 1 : 1 + TURN_LEN].tolist() == [turn.tolist()] * 3
    assert longer[:, 1 + TURN_LEN :].tolist() == rows[:, 1:].tolist()
    both = padded(rows, longer)
    assert both[:3, ROW_LEN:].tolist() == [[PAD] * TURN_LEN] * 3
    assert answers_of(torch.from_numpy(both))[:, 0].tolist() == 2 * rows[:, ANSWER].tolist()
