from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curator.corpus.task_set import TaskSet
from curator.errors import IntegrityError, NotEnoughRowsError, RecipeError
from curator.messages import load_messages
from curator.mix.build import build_mix
from curator.mix.private import (
    Offer,
    accept,
    declare,
    offer,
    offer_json,
)
from curator.mix.verify import verify
from curator.recipe.policy import parse_policy
from curator.store.store import Store
from tests.gap_stores import conversation
from tests.mix_stores import (
    recipe,
    scored_store,
    task_records,
    task_set,
)


def records_with(answers: list[int], n_rows: int = 30) -> list[dict[str, Any]]:
    """Task rows of which some are the pool's own conversations."""
    held = [{"messages": load_messages(conversation(f"Answer number {i} is this.")[1])} for i in answers]
    return [*task_records(n_rows), *held]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return scored_store(tmp_path_factory.mktemp("service") / "store")


def over_the_wire(offered: Offer) -> Offer:
    return Offer.model_validate(orjson.loads(offer_json(offered)))


def both(service: Store, tasks: TaskSet, folder: Path, policy: Any = None, **fields: Any) -> tuple[Any, Any]:
    """The mix made at the service with the rows at hand, and the one made by a client that kept them."""
    asked = recipe(**fields)
    client = Store(folder / "client").open()
    private = accept(over_the_wire(offer(service, declare(tasks, asked), policy)), tasks, client)
    verify(client, "local", private.mix_id)
    return build_mix(service, tasks, asked, policy=policy), private


CASES = [
    {},
    {"rows": 7, "strategy": "random", "seed": 9},
    {"mix_share": 0.2, "order": "shuffle", "strategy": {"name": "weighted", "temperature": 0.5}},
    {"rows": 6, "epochs": 2, "epoch_order": "own", "inoculation": {"scope": "all", "share": 0.4}},
    {"pools": [{"corpus": "chats", "rows": 5}, {"corpus": "chats", "rows": 5, "strategy": "random"}]},
]


@pytest.mark.parametrize("case", CASES)
def test_the_client_arrives_at_the_same_mix(service: Store, tmp_path: Path, case: dict[str, Any]) -> None:
    # Answers 38 and 36 are among the best: the client has to leave them out by itself.
    tasks = task_set(tmp_path, records=records_with([38, 36, 3]))
    public, private = both(service, tasks, tmp_path, **case)
    assert private.mix_id == public.mix_id
    assert private.manifest.rows_sha256 == public.manifest.rows_sha256
    assert private.manifest.ratio.reached_rows == public.manifest.ratio.reached_rows
    assert "private_counts" in {item.code for item in private.manifest.warnings}


def test_a_policy_counts_for_both(service: Store, tmp_path: Path) -> None:
    tasks = task_set(tmp_path, records=records_with([38]))
    policy = parse_policy({"name": "p", "filters": [{"name": "length", "min_chars": 2}], "inoculation": {}})
    public, private = both(service, tasks, tmp_path, policy)
    assert (private.mix_id, private.manifest.rows_sha256) == (public.mix_id, public.manifest.rows_sha256)
    assert private.manifest.policy == public.manifest.policy
    with pytest.raises(RecipeError, match="forbid_user_evictions"):
        offer(service, declare(tasks, recipe()), parse_policy({"name": "p", "forbid_user_evictions": True}))


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(held=st.lists(st.integers(0, 39), unique=True, max_size=8), n_safe=st.integers(0, 10), seed=st.integers(0, 99))
def test_whatever_rows_the_client_holds(
    service: Store, tmp_path_factory: pytest.TempPathFactory, held: list[int], n_safe: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("held")
    tasks = task_set(folder, records=records_with(held, 10))
    public, private = both(service, tasks, folder, rows=n_safe, strategy="random", seed=seed)
    assert private.manifest.rows_sha256 == public.manifest.rows_sha256


def test_the_service_sees_no_row(service: Store, tmp_path: Path) -> None:
    tasks = task_set(tmp_path, 30)
    asked = declare(tasks, recipe(rows=3))
    assert set(asked.model_dump()) == {"recipe", "n_rows", "sha256", "sources_sha256", "spare"}
    offered = offer(service, asked)
    assert [row["origin"] for row in offered.pools[0].rows] == ["safe"] * 19
    client = Store(tmp_path / "client").open()
    result = accept(offered, tasks, client)
    path = client.local_path(f"mixes/local/{result.mix_id}/mix.parquet")
    assert path is not None
    origins = pq.ParquetFile(path).read()["origin"].to_pylist()
    assert tuple(i for i, origin in enumerate(origins) if origin == "safe") == offered.safe_at


REFUSED = [
    ({"filters": ["near_duplicates"]}, "filter near_duplicates"),
    ({"filters": [{"name": "exact_duplicates", "against": ["pool"]}]}, "filter exact_duplicates"),
    ({"filters": [{"name": "refusal", "max_share": 0.1}]}, "filter refusal with max_share"),
    ({"strategy": "domain_matched"}, "strategy domain_matched"),
    ({"strategy": "quantile_band"}, "strategy quantile_band"),
    ({"tokens": 100}, "an amount in tokens"),
    ({"when_short": "as_many"}, "when_short as_many"),
]


@pytest.mark.parametrize(("fields", "named"), REFUSED)
def test_rules_that_read_user_rows_are_refused_by_name(
    service: Store, tmp_path: Path, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(RecipeError, match=f"privacy mode: {named}"):
        offer(service, declare(task_set(tmp_path, 10), recipe(**fields)))


def test_too_many_own_rows_ask_for_more(service: Store, tmp_path: Path) -> None:
    tasks = task_set(tmp_path, records=records_with([38, 37]))
    client = Store(tmp_path / "client").open()
    with pytest.raises(NotEnoughRowsError, match="ask again with spare=6"):
        accept(offer(service, declare(tasks, recipe(rows=2), spare=1)), tasks, client)
    accept(offer(service, declare(tasks, recipe(rows=2), spare=6)), tasks, client)


def test_an_offer_for_others_or_a_false_one_is_refused(service: Store, tmp_path: Path) -> None:
    tasks, client = task_set(tmp_path, 30), Store(tmp_path / "client").open()
    offered = offer(service, declare(tasks, recipe(rows=3)))
    with pytest.raises(IntegrityError, match="not this task set"):
        accept(offered, task_set(tmp_path, 31), client)
    with pytest.raises(IntegrityError, match="does not follow from its recipe"):
        accept(offered.model_copy(update={"schedule_sha256": "0" * 64}), tasks, client)
    changed = offered.recipe.model_copy(update={"seed": 5})
    with pytest.raises(IntegrityError, match="does not follow from its recipe"):
        accept(offered.model_copy(update={"recipe": changed}), tasks, client)
