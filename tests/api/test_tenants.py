"""Policies and quotas of single tenants: what the file may say, and that each tenant gets its own and no other's."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from api.settings import Settings
from api.tenancy.keys import create_key
from api.tenancy.tenants import load_tenants
from curator.client import Client, ServiceError
from curator.errors import BadInputError, MissingError
from tests.api.serving import form, running, scored_store, task_rows

LOCKED = {"name": "acme", "corpora": ["chats"], "user_filters": "none", "strategies": ["top_gap"], "score": "gap_abs"}


def tenants_file(folder: Path, document: Any) -> str:
    path = folder / "tenants.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([1], "must map names of tenants"),
        ({"Acme!": {}}, "Acme!"),
        ({"acme": {"tenant_build": 1}}, "acme: /tenant_build"),
        ({"acme": {"tenant_builds": 0}}, "acme: /tenant_builds"),
        ({"acme": {"webhook": "https://acme.example"}}, "give url and secret_file"),
        ({"acme": {"webhook": {"url": "file:///etc/passwd", "secret_file": "s"}}}, "acme: /webhook/url"),
        ({f"t{n}": {"tier": f"tier-{n}"} for n in range(20)}, "21 tiers, 16 at most"),
    ],
)
def test_an_entry_that_cannot_be_is_named(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        load_tenants(Settings(tenants=tenants_file(tmp_path, document)))


def test_an_absent_file_or_policy_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be read"):
        load_tenants(Settings(tenants=str(tmp_path / "none.yaml")))
    (tmp_path / "bad.yaml").write_text("minimum_ratio: 1")
    for kind in ("policy", "recipe"):
        with pytest.raises(BadInputError, match=f"^{kind} {tmp_path / 'bad.yaml'} refused: "):
            load_tenants(Settings(tenants=tenants_file(tmp_path, {"acme": {kind: "bad.yaml"}})))
    with pytest.raises(MissingError, match="no policy file"):
        load_tenants(Settings(tenants=tenants_file(tmp_path, {"acme": {"policy": "none.yaml"}})))


def test_each_tenant_has_its_own_policy_and_quotas_and_the_others_the_services(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    acme, other = (create_key(store, name, ["mix"])[1] for name in ("acme", "other"))
    (tmp_path / "acme.yaml").write_text(yaml.safe_dump(LOCKED))
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"name": "all", "orders": ["even"]}))
    document = {"acme": {"policy": "acme.yaml", "tenant_requests_per_minute": None, "tenant_rows_per_hour": 25}}
    settings = Settings(
        store=store.base, policy=str(tmp_path / "all.yaml"), tenants=tenants_file(tmp_path, document), tenant_builds=3
    )
    with running(settings) as url, Client(url, acme) as client, Client(url, other) as neighbour:
        shown = client.policy()
        assert (shown["tenant"], shown["policy"]["name"], shown["policy"]["user_filters"]) == ("acme", "acme", "none")
        assert shown["quotas"]["tenant_requests_per_minute"] is None
        assert (shown["quotas"]["tenant_rows_per_hour"], shown["quotas"]["tenant_builds"]) == (25, 3)
        made = client.create_mix(task_rows(10), {"corpus": "chats"})["manifest"]
        assert (made["policy"]["name"], made["policy"]["sha256"]) == ("acme", shown["policy_sha256"])
        assert made["recipe"]["pools"][0]["score"]["name"] == "gap_abs"
        weak = {"corpus": "chats", "filters": [{"name": "length", "max_chars": 9}]}
        with pytest.raises(ServiceError, match="rule user_filters") as refused:
            client.preview_mix(task_rows(10), weak)
        assert (refused.value.status, refused.value.code) == (422, "policy_refused")

        theirs = neighbour.policy()
        assert (theirs["tenant"], theirs["policy"]["name"]) == ("other", "all")
        assert theirs["quotas"]["tenant_rows_per_hour"] is None
        neighbour.preview_mix(task_rows(30), {"corpus": "chats", "strategy": "random"})
        answers = [
            httpx.post(f"{url}/v1/mixes", headers={"Authorization": f"Bearer {token}"}, **form(task_rows(30)))
            for token in (acme, other)
        ]
        assert [answer.status_code for answer in answers] == [413, 201]


def test_without_a_file_the_policy_is_the_services_or_none(url: str) -> None:
    with Client(url) as client:
        shown = client.policy()
    assert (shown["tenant"], shown["policy"], shown["policy_sha256"]) == ("local", None, None)


def test_a_job_is_built_under_its_tenants_policy(tmp_path: Path) -> None:
    from api.jobs.handlers import run_mix
    from api.jobs.queue import open_queue
    from api.jobs.worker import Worker

    store = scored_store(tmp_path / "store")
    _, token = create_key(store, "acme", ["mix"])
    (tmp_path / "acme.yaml").write_text(yaml.safe_dump(LOCKED))
    settings = Settings(store=store.base, tenants=tenants_file(tmp_path, {"acme": {"policy": "acme.yaml"}}))
    with running(settings) as url, Client(url, token) as client:
        job = client.create_mix(task_rows(10), {"corpus": "chats"}, background=True)
        queue = open_queue(store, None)
        Worker(store, queue, {"mix": run_mix}).run(until_idle=True)
        queue.close()
        mix_id = client.wait_job(job["job_id"])["result"]["mix_id"]
        assert client.manifest(mix_id)["policy"]["name"] == "acme"
