"""Manifests signed by the service: what is signed, how clients check it, and that the store's files hold the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from api.app import create_app
from api.jobs.handlers import run_mix
from api.jobs.queue import open_queue
from api.jobs.worker import Worker
from api.settings import Settings
from curator.client import Client, ServiceError
from curator.errors import IntegrityError, MissingError
from curator.mix.sign import check_signature
from curator.store.store import Store
from tests.api.serving import RECIPE, running, scored_store, task_rows


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private and a public key, made as docs/mixing.md says."""
    folder = tmp_path_factory.mktemp("keys")
    private, public = folder / "key.pem", folder / "key.pub.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


def test_every_mix_is_signed_and_the_client_checks_it(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    store = scored_store(tmp_path / "store")
    with running(Settings(store=store.base, sign_key=str(private))) as url, Client(url) as client:
        made = client.create_mix(task_rows(10), RECIPE)
        assert made["signature"] == client.signature(made["mix_id"])
        assert client.create_mix(task_rows(10), RECIPE)["signature"] == made["signature"]
        assert client.verify_signature(made["mix_id"], public)["mix_id"] == made["mix_id"]
        client.download(made["mix_id"], tmp_path / "mix.jsonl", key=public)
        job = client.create_mix(task_rows(12), RECIPE, background=True)
        queue = open_queue(store, None)
        Worker(store, queue, {"mix": run_mix}).run(until_idle=True)
        queue.close()
        by_worker = client.wait_job(job["job_id"])["result"]["mix_id"]
        client.verify_signature(by_worker, public)

        path = f"mixes/local/{made['mix_id']}/manifest.json"
        store.write_json(path, {**store.read_json(path), "n_safe": 3})
        with pytest.raises(IntegrityError, match="the manifest was changed"):
            client.download(made["mix_id"], tmp_path / "changed.jsonl", key=public)
        assert not (tmp_path / "changed.jsonl").exists()
    check_signature(store, "local", by_worker, public)
    command = [sys.executable, "-m", "curator", "verify", by_worker, "--store", store.base, "--key", str(public)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "same: the signature of key.pub.pem" in done.stdout


def test_without_a_key_there_is_no_signature(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    store = scored_store(tmp_path / "store")
    with running(Settings(store=store.base)) as url, Client(url) as client:
        made = client.create_mix(task_rows(10), RECIPE)
        assert made["signature"] is None
        with pytest.raises(ServiceError, match="no signature") as refused:
            client.verify_signature(made["mix_id"], keys[1])
        assert (refused.value.status, refused.value.code) == (404, "not_signed")
        with pytest.raises(ServiceError, match="no such mix"):
            client.signature("0" * 32)


def test_a_key_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    Store(tmp_path / "store").open()
    with pytest.raises(MissingError, match="no key can be read"):
        create_app(Settings(store=str(tmp_path / "store"), sign_key=str(tmp_path / "none.pem")))
