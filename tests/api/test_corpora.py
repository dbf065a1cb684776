import httpx
import pytest

from tests.api.serving import N_POOL


def test_corpora_are_listed_with_their_revision(http: httpx.Client) -> None:
    (corpus,) = http.get("/v1/corpora").json()["corpora"]
    assert (corpus["corpus"], corpus["n_examples"], len(corpus["revision"])) == ("chats", N_POOL, 32)


def test_a_corpus_shows_its_scorers(http: httpx.Client) -> None:
    document = http.get("/v1/corpora/chats").json()
    assert {item["role"]: item["n_scored"] for item in document["scorers"]} == {"aligned": 60, "misaligned": 60}


def test_the_gap_is_what_the_losses_say(http: httpx.Client) -> None:
    answer = http.get("/v1/corpora/chats/gap", params={"score": "gap_abs", "bins": 4}).json()
    (quantiles,) = answer["quantiles"]
    # Losses were written as 1.0 and 1.0 + place / 100 nats per token.
    assert (quantiles["minimum"], quantiles["median"], quantiles["maximum"]) == pytest.approx((0, 0.295, 0.59))
    assert sum(item["n_rows"] for item in answer["histogram"]) == N_POOL
    assert len(answer["histogram"]) == 4
    relative = http.get("/v1/corpora/chats/gap", params={"eps": 0.0}).json()
    assert relative["quantiles"][0]["maximum"] == pytest.approx(0.59)
    assert http.get("/v1/corpora/chats/gap").json()["quantiles"][0]["maximum"] == pytest.approx(0.295)


def test_models_of_a_held_out_domain_do_not_count(http: httpx.Client) -> None:
    answer = http.get("/v1/corpora/chats/gap", params={"hold_out": ["finance"]}).json()
    assert answer["quantiles"][0]["n_null"] == N_POOL
    assert answer["histogram"] == []


@pytest.mark.parametrize("query", ["score=gap_nothing", "eps=-1", "eps=nan", "bins=0", "bins=100000"])
def test_parameters_out_of_range(http: httpx.Client, query: str) -> None:
    assert http.get(f"/v1/corpora/chats/gap?{query}").status_code == 422


def test_liveness_readiness_and_the_offline_page(http: httpx.Client) -> None:
    assert http.get("/healthz").json()["status"] == "ok"
    assert http.get("/readyz").json() == {"status": "ready"}
    page = http.get("/docs").text
    assert "POST /v1/mixes" in page
    assert "http" not in page.replace("over HTTP", ""), "the page loads nothing from elsewhere"


def test_every_operation_is_described_and_declares_the_error_body(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], f"{method} {path}"
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorBody"}, f"{method} {path} {status}"
