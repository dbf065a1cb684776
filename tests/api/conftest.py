from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.settings import Settings
from tests.api.serving import running, scored_store


@pytest.fixture(scope="session")
def empty_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("empty"))


@pytest.fixture(autouse=True)
def _no_certificates(empty_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every new client of httpx would read the certificates of all authorities (25 ms), for services on loopback."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", empty_folder)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("service")
    scored_store(root / "store")
    (root / "uploads").mkdir()
    return Settings(
        store=str(root / "store"),
        temp_dir=str(root / "uploads"),
        max_upload_bytes=300_000,
        max_json_bytes=100_000,
        max_task_rows=1_000,
        max_bad_rows=5,
        max_page_rows=20,
    )


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:
    with running(settings) as address:
        yield address


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture
def store_path(settings: Settings) -> Path:
    return Path(settings.store)
