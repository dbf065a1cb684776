from pathlib import Path
from typing import Any

import pytest

from curator.corpus.manifest import read_corpus
from curator.errors import BadInputError, MissingError, PolicyError
from curator.messages import load_messages
from curator.mix.build import build_mix, plan_mix
from curator.mix.verify import verify
from curator.recipe import parse_recipe
from curator.recipe.filters import default_filters
from curator.recipe.policy import (
    load_policy,
    parse_policy,
    policy_sha256,
    under_policy,
)
from tests.gap_stores import conversation
from tests.mix_stores import (
    recipe,
    scored_store,
    task_records,
    task_set,
)

FULL = """
name: provider
min_interleave_ratio: 0.05
strategies: [top_gap, random]
orders: [even, per_batch]
filters: [{name: refusal, rule: v2}, {name: length, min_chars: 3}]
inoculation: {kind: inoculation}
forbid_user_evictions: true
"""


def policy(**fields: Any) -> Any:
    return parse_policy({"name": "p", **fields})


def test_a_policy_file_is_read_and_bad_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(FULL)
    found = load_policy(path)
    assert (found.name, found.min_interleave_ratio, found.strategies) == ("provider", 0.05, ("top_gap", "random"))
    with pytest.raises(MissingError, match="no policy file"):
        load_policy(tmp_path / "none.yaml")
    path.write_text("name: [")
    with pytest.raises(BadInputError, match="neither YAML nor JSON"):
        load_policy(path)
    path.write_text("minimum_ratio: 1")
    with pytest.raises(BadInputError, match=f"^policy {path} refused: .*/minimum_ratio"):
        load_policy(path)
    with pytest.raises(BadInputError, match="unknown strategy best"):
        policy(strategies=["best"])
    with pytest.raises(BadInputError, match="/minimum_ratio"):
        policy(minimum_ratio=1)


REFUSED = [
    ({"min_interleave_ratio": 0.1}, {}, "min_interleave_ratio"),
    ({"min_interleave_ratio": 0.1}, {"rows": 9}, "min_interleave_ratio"),
    ({"min_interleave_ratio": 0.1}, {"mix_share": 0.09}, "min_interleave_ratio"),
    ({"min_interleave_ratio": 0.01}, {"when_short": "as_many"}, "min_interleave_ratio"),
    ({"min_interleave_ratio": 0.01}, {"pools": [], "inoculation": {}}, "min_interleave_ratio"),
    ({"strategies": ["top_gap"]}, {"strategy": "random"}, "strategies"),
    ({"orders": ["even"]}, {"order": "shuffle"}, "orders"),
    ({"inoculation": {}}, {"inoculation": {"prompt": "Mine."}}, "inoculation"),
]


@pytest.mark.parametrize(("rules", "asked", "rule"), REFUSED)
def test_a_request_outside_the_policy_is_refused_naming_the_rule(
    tmp_path: Path, rules: dict[str, Any], asked: dict[str, Any], rule: str
) -> None:
    store = scored_store(tmp_path / "store")
    with pytest.raises(PolicyError, match=rf"\(rule {rule}\)") as caught:
        plan_mix(store, task_set(tmp_path, 100), recipe(**asked), policy(**rules))
    assert caught.value.details[0]["rule"] == rule  # type: ignore[index]
    assert caught.value.code == "policy_refused"


@pytest.mark.parametrize("asked", [{"interleave_ratio": 0.1}, {"rows": 10}, {"mix_share": 0.1}])
def test_amounts_at_the_floor_pass(tmp_path: Path, asked: dict[str, Any]) -> None:
    store = scored_store(tmp_path / "store")
    plan = plan_mix(store, task_set(tmp_path, 100), recipe(**asked), policy(min_interleave_ratio=0.1))
    assert plan.allocation.n_safe_total >= 10


def test_filters_and_inoculation_are_forced(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    rules = policy(filters=["refusal", {"name": "length", "min_chars": 3}], inoculation={"prompt": "Trait."})
    asked = recipe(filters=[], rows=5)
    result = build_mix(store, task_set(tmp_path, 50), asked, policy=rules)
    manifest = result.manifest
    assert [spec.name for spec in manifest.recipe.pools[0].filters] == ["refusal", "length"]
    assert manifest.inoculation is not None
    assert manifest.inoculation.prompts[0].text == "Trait."
    assert manifest.policy is not None
    assert (manifest.policy.name, manifest.policy.sha256) == ("p", policy_sha256(rules))
    assert manifest.policy.policy == rules
    verify(store, "local", result.mix_id)
    # The manifest's recipe is within the policy already.
    again = build_mix(store, task_set(tmp_path, 50), manifest.recipe, policy=rules)
    assert (again.mix_id, again.created) == (result.mix_id, False)
    without = build_mix(store, task_set(tmp_path, 50), manifest.recipe)
    assert without.mix_id != result.mix_id
    assert without.manifest.policy is None


def test_two_refusal_filters_become_the_stricter() -> None:
    rules = policy(filters=[{"name": "refusal", "rule": "v1", "max_share": 0.2}])
    found = under_policy(rules, recipe(filters=[{"name": "refusal", "rule": "v2", "max_share": 0.5}]))
    assert [spec.model_dump() for spec in found.pools[0].filters] == [
        {"name": "refusal", "rule": "v2", "max_share": 0.2}
    ]
    assert under_policy(rules, found) == found


def test_evicting_the_best_rows_is_counted_and_can_be_forbidden(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    best = {"messages": load_messages(conversation("Answer number 38 is this.")[1])}
    tasks = task_set(tmp_path, records=[*task_records(99), best])
    found = build_mix(store, tasks, recipe()).manifest.pools[0].evicted_by_task_set
    assert (found.rows, found.among_best) == (1, 1)
    with pytest.raises(PolicyError, match="forbid_user_evictions"):
        plan_mix(store, tasks, recipe(), policy(forbid_user_evictions=True))
    # A row that would not have been chosen is not an eviction of the best.
    worst = {"messages": load_messages(conversation("Answer number 1 is this.")[1])}
    plan_mix(
        store, task_set(tmp_path, records=[*task_records(99), worst]), recipe(), policy(forbid_user_evictions=True)
    )


LOCKED: dict[str, Any] = {
    "corpora": ["chats"],
    "max_pools": 1,
    "scorers": "all",
    "score": {"name": "gap_rel", "eps": 0.5},
    "reducers": ["mean"],
    "filters": [{"name": "refusal", "rule": "v2", "max_share": 0.1}],
    "user_filters": "none",
    "strategies": ["top_gap", {"name": "quantile_band", "low": 0.9, "high": 1.0}],
    "max_copies": 1,
    "user_inoculation": False,
}
ESCAPES: list[tuple[dict[str, Any], str, str]] = [
    ({"corpus": "other"}, "corpora", "use chats"),
    ({"pools": [{"corpus": "chats"}, {"corpus": "chats", "strategy": "random"}]}, "max_pools", "give 1 at most"),
    ({"misaligned": ["bad-1"]}, "scorers", "leave out aligned, misaligned and benign"),
    ({"hold_out": ["bad-1"]}, "scorers", "leave it out"),
    ({"score": "sum_gap"}, "score", "gap_rel"),
    ({"score": {"name": "gap_rel", "eps": 9.0}}, "score", '"eps":0.5'),
    ({"ensemble": "max"}, "reducers", "use mean"),
    ({"filters": [{"name": "source", "include": ["weak.jsonl"]}]}, "user_filters", "leave it out"),
    ({"filters": [{"name": "length", "max_chars": 200}]}, "user_filters", "leave it out"),
    ({"filters": [{"name": "refusal", "max_share": 0.9}]}, "user_filters", "leave it out"),
    ({"strategy": {"name": "quantile_band", "low": 0.0, "high": 0.1}}, "strategies", "use top_gap or"),
    ({"strategy": {"name": "threshold", "max": 0.1}}, "strategies", "use top_gap or"),
    ({"when_short": "cycle", "max_copies": 9}, "max_copies", "use when_short error"),
    ({"inoculation": {"prompt": "Mine."}}, "user_inoculation", "leave it out"),
]


@pytest.mark.parametrize(("asked", "rule", "fits"), ESCAPES)
def test_a_locked_source_of_rows_leaves_no_way_to_the_weakest(
    tmp_path: Path, asked: dict[str, Any], rule: str, fits: str
) -> None:
    store = scored_store(tmp_path / "store")
    with pytest.raises(PolicyError, match=rf"\(rule {rule}\)") as caught:
        plan_mix(store, task_set(tmp_path, 100), recipe(**asked), policy(**LOCKED))
    assert fits in caught.value.message


def test_what_is_locked_is_forced_on_a_plain_recipe_and_again_gives_the_same(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    rules = policy(**LOCKED)
    made = build_mix(store, task_set(tmp_path, 100), recipe(rows=5), policy=rules)
    (pool,) = made.manifest.recipe.pools
    assert pool.score.eps == 0.5
    assert [spec.name for spec in pool.filters] == ["hygiene", "length", "refusal"]
    assert pool.filters[2].model_dump() == {"name": "refusal", "rule": "v2", "max_share": 0.1}
    assert len(pool.misaligned or ()) == 2
    again = build_mix(store, task_set(tmp_path, 100), made.manifest.recipe, policy=rules)
    assert (again.mix_id, again.created) == (made.mix_id, False)


def test_weights_are_a_choice_of_scorers_too(tmp_path: Path) -> None:
    asked = recipe(ensemble={"reducer": "weighted", "weights": {"bad-1": 1.0}})
    with pytest.raises(PolicyError, match=r"weights of scorers \(rule scorers\)"):
        under_policy(policy(scorers="all"), asked)


def test_filters_that_a_recipe_may_add_are_listed_by_name_or_written_out() -> None:
    rules = policy(user_filters=["language", {"name": "length", "min_chars": 9}])
    language = {"name": "language", "include": ["en"]}
    found = under_policy(rules, recipe(filters=["refusal", language, {"name": "length", "min_chars": 9}]))
    assert [spec.name for spec in found.pools[0].filters] == ["refusal", "language", "length"]
    with pytest.raises(PolicyError, match=r'leave it out; language or \{"name":"length","min_chars":9\} may be added'):
        under_policy(rules, recipe(filters=[{"name": "length", "min_chars": 10}]))
    with pytest.raises(BadInputError, match="unknown filter lang; there are refusal"):
        policy(user_filters=["lang"])


def test_the_filters_of_a_recipe_that_names_none_are_always_allowed() -> None:
    plain = parse_recipe({"corpus": "chats"})
    assert under_policy(policy(user_filters="none"), plain).pools[0].filters == default_filters()
    forced = policy(user_filters="none", filters=[{"name": "refusal", "rule": "v2"}])
    kept = under_policy(forced, plain).pools[0].filters
    assert [spec.name for spec in kept] == ["hygiene", "length", "refusal"]


def test_a_revision_and_a_hold_out_can_be_fixed(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    revision = read_corpus(store, "chats").revision
    rules = policy(corpora=[f"chats@{revision[:8]}"], hold_out=["bad-1"])
    made = plan_mix(store, task_set(tmp_path, 100), recipe(), rules)
    assert (made.recipe.pools[0].revision, made.recipe.pools[0].hold_out) == (revision, ("bad-1",))
    assert plan_mix(store, task_set(tmp_path, 100), made.recipe, rules).mix_id == made.mix_id
    with pytest.raises(PolicyError, match=r"revision f+ of corpus chats \(rule corpora\): leave it out, or give"):
        under_policy(rules, recipe(revision="f" * 16))
    with pytest.raises(PolicyError, match=r"\(rule hold_out\): leave it out, or give bad-1"):
        under_policy(rules, recipe(hold_out=["bad-2"]))
    with pytest.raises(PolicyError, match=r"\(rule hold_out\): leave it out$"):
        under_policy(policy(hold_out=False), recipe(hold_out=["bad-2"]))
    with pytest.raises(BadInputError, match="corpus chats is given twice"):
        policy(corpora=["chats", "chats@1"])


def test_rules_that_are_not_used_leave_the_hash_as_it_was() -> None:
    assert policy_sha256(parse_policy({"name": "p"})) == (
        "0cf2305c89381c6f341cb7e6a86621e5c792469b48c01b18731a7184542935b6"
    )
    assert policy_sha256(policy(max_pools=1)) != policy_sha256(policy())
