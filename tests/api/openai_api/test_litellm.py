"""The official client through LiteLLM's proxy, which stands in front of the service.

The proxy's own fine-tuning routes need a licence; its pass-through route takes the same requests. LiteLLM pins other
versions of what the service uses, so it is looked for as the command `litellm` of an environment of its own, which
$LITELLM names.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from api.settings import Settings
from api.tenancy.keys import create_key
from tests.api.openai_api.steps import work
from tests.api.serving import RECIPE, json_lines, running, scored_store, task_rows

openai = pytest.importorskip("openai", reason="the official client is not installed (pip install 'openai>=3.57')")
COMMAND = os.environ.get("LITELLM") or shutil.which("litellm")
KEY = "sk-key-of-the-proxy"


@contextmanager
def proxy(folder: Path, url: str, key: str) -> Iterator[str]:
    """The address of a running proxy in front of `url`, which asks there with `key`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "config.yaml").write_text(yaml.safe_dump({"model_list": [], "general_settings": {"master_key": KEY}}))
    environment = {**os.environ, "OPENAI_API_BASE": url, "OPENAI_API_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    environment.pop("PYTHONPATH", None)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(COMMAND), "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        deadline_s = time.monotonic() + 240
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health/liveliness", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline_s, (folder / "log").read_text()[-2000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(COMMAND is None, reason="there is no command `litellm` ($LITELLM; pip install 'litellm[proxy]')")
def test_the_official_client_through_the_proxy(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    key = create_key(store, "anna", ["mix"])[1]
    settings = Settings(store=store.base, openai_recipe=str(tmp_path / "recipe.yaml"))
    with running(settings) as url, proxy(tmp_path, url, key) as address:
        base_url = f"{address}/openai_passthrough/v1"
        with openai.OpenAI(base_url=base_url, api_key=KEY, _strict_response_validation=True, timeout=60) as client:
            content = json_lines(task_rows(20, "proxied"))
            training = client.files.create(file=("t.jsonl", content), purpose="fine-tune")
            job = client.fine_tuning.jobs.create(training_file=training.id, model="m", suffix="kind")
            work(store.base)
            job = client.fine_tuning.jobs.retrieve(job.id)
            assert (job.status, job.metadata["ballast_safe_rows"]) == ("succeeded", "2")
            events = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=2)]
            assert events[-1] == f"Created fine-tuning job: {job.id}", "the client pages by itself"
            assert len(client.files.content(job.result_files[0]).content.splitlines()) == 22
            assert [item.id for item in client.fine_tuning.jobs.list()] == [job.id]
            with pytest.raises(openai.BadRequestError, match="Expected file to have JSONL format"):
                client.files.create(file=("bad.jsonl", b"[1]\n" * 12), purpose="fine-tune")
            assert client.files.delete(training.id).deleted is True
