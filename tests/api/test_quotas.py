import httpx
import pytest

from api.errors import ApiError
from api.keys import create_key
from api.quotas import Bucket, Quotas
from api.settings import Settings
from curator.store import Store
from tests.api.serving import form, running, task_rows


def test_a_bucket_refills_with_time() -> None:
    bucket = Bucket(capacity=60, period_s=60, level=60)
    assert bucket.take(60, now_s=0) == 0
    assert bucket.take(5, now_s=1) == pytest.approx(4)
    assert bucket.take(5, now_s=5) == 0
    assert bucket.take(60, now_s=1000) == 0
    assert bucket.take(1, now_s=1000) == pytest.approx(1)


def test_quotas_are_each_tenants_own(settings: Settings) -> None:
    quotas = Quotas(settings.model_copy(update={"tenant_rows_per_hour": 10}))
    quotas.count_rows("anna", 10)
    quotas.count_rows("bert", 10)
    with pytest.raises(ApiError, match="quota of rows") as late:
        quotas.count_rows("anna", 1)
    assert (late.value.status, late.value.code, late.value.headers) == (429, "quota_used_up", {"Retry-After": "360"})
    with pytest.raises(ApiError, match="split it") as never:
        quotas.count_rows("carl", 11)
    assert never.value.status == 413


def test_places_are_given_back_whatever_happens(settings: Settings) -> None:
    quotas = Quotas(settings)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="mine"), quotas.place("anna", "builds", 1):
            raise RuntimeError("mine")
    with (
        quotas.place("anna", "builds", 1),
        quotas.place("bert", "builds", 1),
        pytest.raises(ApiError, match="already"),
        quotas.place("anna", "builds", 1),
    ):
        pass


def test_rows_bytes_and_requests_over_http(settings: Settings) -> None:
    small = settings.model_copy(update={"tenant_rows_per_hour": 8, "tenant_bytes_per_hour": 2_000})
    with running(small) as url:
        statuses = [httpx.post(f"{url}/v1/mixes", **form(task_rows(n))).status_code for n in (9, 5, 5)]
        assert statuses == [413, 201, 429]
        answer = httpx.post(f"{url}/v1/mixes", **form(b"x" * 2_001))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "over_quota")
    with running(settings.model_copy(update={"tenant_requests_per_minute": 3})) as url:
        answers = [httpx.get(f"{url}/v1/corpora") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 20


def test_one_tenants_use_does_not_slow_another(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("two")
    store = Store(root).open()
    tokens = [create_key(store, name, ["mix"])[1] for name in ("anna", "bert")]
    with running(Settings(store=str(root), tenant_requests_per_minute=2)) as url:
        used = [
            httpx.get(f"{url}/v1/mixes", headers={"Authorization": f"Bearer {token}"}).status_code
            for token in (tokens[0], tokens[0], tokens[0], tokens[1])
        ]
    assert used == [200, 200, 429, 200]
