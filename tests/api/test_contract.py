"""schemathesis over the OpenAPI document, stateful too: no answer outside it, and no 5xx."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis  # noqa: F401  # its absence is a failure of the set-up, reported at once

from api.settings import Settings
from api.tenancy.keys import SCOPES, create_key
from tests.api.serving import running, scored_store

COMMAND = Path(sys.executable).parent / "st"
# A statement's or recipe's text is a plain string to the document, so that a fitting body may still be refused.
EXCLUDED = "positive_data_acceptance"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    root = tmp_path_factory.mktemp("contract")
    _, token = create_key(scored_store(root), "anna", list(SCOPES))
    with running(Settings(store=str(root), sql_timeout_s=2, tenant_requests_per_minute=1_000_000)) as address:
        yield address, token


@pytest.mark.slow
@pytest.mark.parametrize("phases", ["examples,coverage,fuzzing", "stateful"])
def test_every_answer_is_as_the_document_says(service: tuple[str, str], tmp_path: Path, phases: str) -> None:
    url, token = service
    options = ["--phases", phases, "--checks", "all", "--exclude-checks", EXCLUDED, "--max-examples", "8"]
    options += ["--max-time", "90", "--request-timeout", "60", "--seed", "0", "--warnings", "off", "--no-color"]
    done = subprocess.run(
        [COMMAND, "run", f"{url}/openapi.json", "-H", f"Authorization: Bearer {token}", *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "✅" in done.stdout, "something was tested"
