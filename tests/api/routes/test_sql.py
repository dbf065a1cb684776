"""SQL over HTTP: answers in four formats, named queries, and that no statement gets out or blocks others."""

import io
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from api.settings import MIB, Settings
from api.tenancy.keys import create_key
from tests.api.serving import (
    N_POOL,
    form,
    running,
    scored_store,
    task_rows,
)
from tests.sql_escapes import HEAVY, REFUSED

TIMEOUT_S = 1.5
SLACK_S = 25.0  # starting a process on a busy machine
COUNT = "select count(*) as n, max(gap_abs) as most from gap"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sql")
    scored_store(path)
    return path


def settings(root: Path, timeout_s: float) -> Settings:
    bounds = {"sql_memory_bytes": 320 * MIB, "sql_max_rows": 500, "sql_max_bytes": 100_000, "tenant_sql": 2}
    return Settings(store=str(root), sql_timeout_s=timeout_s, **bounds)


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with running(settings(root, 60.0)) as address:  # no statement of these tests needs it on an idle machine
        yield address


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def strict_url(root: Path) -> Iterator[str]:
    with running(settings(root, TIMEOUT_S)) as address:
        yield address


@pytest.fixture
def strict(strict_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=strict_url, timeout=120) as client:
        yield client


def test_the_calls_that_the_docs_show_are_answered(http: httpx.Client) -> None:
    docs = (Path(__file__).parents[3] / "docs" / "service.md").read_text()
    shown = re.findall(r"curl .*8765(/v1/(?:sql|queries)\S*) \\\n +-d '(.*)'", docs)
    assert [path.split("/")[2] for path, _ in shown] == ["sql", "queries"]
    for path, body in shown:
        answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200, answer.text
        assert int(answer.headers["x-ballast-rows"]) > 0


def ask(http: httpx.Client, statement: str, **options: Any) -> httpx.Response:
    return http.post("/v1/sql", json={"statement": statement, **options})


def test_one_statement_in_every_format(http: httpx.Client) -> None:
    answer = ask(http, COUNT)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "columns": [{"name": "n", "type": "BIGINT"}, {"name": "most", "type": "DOUBLE"}],
        "rows": [{"n": N_POOL, "most": pytest.approx(0.59)}],
        "n_rows": 1,
        "truncated": False,
    }
    text = ask(http, "select 1 as a, null as b, [1, 2] as c, 'x,y' as d", format="csv")
    assert text.text == 'a,b,c,d\n1,,"[1,2]","x,y"\n'
    assert text.headers["content-type"].startswith("text/csv")
    arrow = pa.ipc.open_stream(ask(http, COUNT, format="arrow").content).read_all()
    parquet = pq.read_table(io.BytesIO(ask(http, COUNT, format="parquet").content))
    assert arrow.to_pylist() == parquet.to_pylist() == [{"n": N_POOL, "most": pytest.approx(0.59)}]


def test_values_that_arrow_lacks_come_as_text_or_are_refused(http: httpx.Client) -> None:
    """Arrow would give the bits in DuckDB's own bytes, and the time without its zone."""
    statement = "select '101'::bit b, timetz '12:00:00+01' t, interval '2 days 3 seconds' i, {'a': 1}::variant v, 7 n"
    expected = {"b": "101", "t": "12:00:00+01", "i": "2 days 00:00:03", "v": "{'a': 1}", "n": 7}
    answer = ask(http, statement)
    assert answer.json()["rows"] == [expected], answer.text
    assert [column["type"] for column in answer.json()["columns"]][:2] == ["BIT", "TIME WITH TIME ZONE"]
    assert pq.read_table(io.BytesIO(ask(http, statement, format="parquet").content)).to_pylist() == [expected]
    assert ask(http, "select {'BIT': 1} as x").json()["rows"] == [{"x": {"BIT": 1}}]
    for part in ("['1'::bit]", "{'a': interval 1 day}", "map {1: timetz '12:00:00+01'}"):
        refused = ask(http, f"select {part} as x")
        assert refused.status_code == 422
        assert 'column "x" holds' in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("statement", "result_format"),
    [
        ("select date '99999-01-01' as x", "json"),
        ("select 'infinity'::timestamp as x", "csv"),
        ("select union_value(k := 1) as x", "parquet"),
    ],
)
def test_a_value_that_a_format_cannot_hold_is_no_overrun(
    http: httpx.Client, statement: str, result_format: str
) -> None:
    answer = ask(http, statement, format=result_format)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "bad_input"
    assert "cast its column to varchar" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("update extensions", "give exactly one SELECT statement"),  # a kind without a name in DuckDB's Python package
        ("select " + "(-" * 150 + "1" + ")" * 150, "Max expression depth limit of 200 exceeded."),
        ("select is_refusal('x', 'en')", "write is_refusal(answer, rule) with v1 or v2"),
    ],
)
def test_a_refused_statement_says_why_and_advises_what_can_be_done(
    http: httpx.Client, statement: str, expected: str
) -> None:
    message = ask(http, statement).json()["error"]["message"]
    assert expected in message
    assert "SET" not in message


def test_a_pivot_needs_no_values(http: httpx.Client) -> None:
    answer = ask(http, "pivot gap on complete using count(*) group by corpus")
    assert answer.status_code == 200, answer.text
    assert answer.json()["rows"] == [{"corpus": "chats", "true": N_POOL}]
    refused = ask(http, "pivot (from read_text('/etc/passwd')) on content using count(*)")
    assert refused.status_code == 422
    assert "read_text() is not called here" in refused.json()["error"]["message"]
    inside = ask(http, "select * from (pivot gap on corpus using count(*))")
    assert "needs its values" in inside.json()["error"]["message"]


def test_caps_of_rows_and_bytes_say_truncated(http: httpx.Client) -> None:
    by_rows = ask(http, "select * from range(10000000)")
    assert (by_rows.json()["n_rows"], by_rows.json()["truncated"]) == (500, True)
    assert by_rows.headers["x-ballast-truncated"] == "true"
    assert ask(http, "select * from range(9) order by range", max_rows=9).json()["truncated"] is False
    by_bytes = ask(http, "select repeat('x', 10000) as a from range(400)").json()
    assert by_bytes["truncated"]
    assert 0 < by_bytes["n_rows"] <= 10


def test_named_queries_take_typed_parameters(http: httpx.Client) -> None:
    listed = {item["name"]: item for item in http.get("/v1/queries").json()["queries"]}
    assert listed["top_by_gap"]["params"][0]["type"] == "integer"
    answer = http.post("/v1/queries/top_by_gap", json={"params": {"n": 3, "score": "gap_abs"}}).json()
    assert [row["score"] for row in answer["rows"]] == pytest.approx([0.59, 0.58, 0.57])
    for params, word in (({"n": "many"}, "integer"), ({"x": 1}, "no parameter"), ({"n": True}, "/body/params/n")):
        refused = http.post("/v1/queries/top_by_gap", json={"params": params})
        assert refused.status_code == 422
        assert word in refused.json()["error"]["message"]
    assert http.post("/v1/queries/nothing", json={}).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"statement": "select 1", "max_rows": True},
        {"statement": "select 1", "max_rows": "5"},
        {},
        {"statement": ""},
        {"statement": "select 1", "format": "xml"},
        {"statement": "x" * 50_001},
    ],
)
def test_bodies_that_do_not_fit(http: httpx.Client, body: dict[str, Any]) -> None:
    assert http.post("/v1/sql", json=body).status_code == 422


def test_a_lone_surrogate_is_refused_and_not_a_failure(http: httpx.Client) -> None:
    body = b'{"statement": "select \'\\ud800\'"}'
    assert http.post("/v1/sql", content=body, headers={"Content-Type": "application/json"}).status_code == 422


def test_users_data_is_out_of_reach(http: httpx.Client, root: Path) -> None:
    made = http.post("/v1/mixes", **form(task_rows(5, "private"))).json()
    path = root / "mixes" / "local" / made["mix_id"] / "mix.parquet"
    assert path.is_file()
    for statement in (f"from '{path}'", f"from read_parquet('{path}')", "from mixes"):
        assert ask(http, statement).status_code == 422
    assert "private" not in ask(http, "from examples").text


def test_a_message_names_no_path(http: httpx.Client, root: Path) -> None:
    for statement in ("select nothing from gap", f"from '{root}/store.json'", "select 1/0 + 'x'::int from examples"):
        answer = ask(http, statement)
        assert answer.status_code == 422
        assert str(root) not in answer.text.replace(f"{root}/store.json", "" if "store.json" in statement else "!")


def test_a_statement_that_overruns_is_stopped_and_blocks_nobody(strict: httpx.Client, strict_url: str) -> None:
    ended: list[tuple[int, str]] = []

    def wear_down() -> None:
        answer = httpx.post(f"{strict_url}/v1/sql", json={"statement": HEAVY[3]}, timeout=120)
        ended.append((answer.status_code, answer.json()["error"]["code"]))

    threads = [threading.Thread(target=wear_down) for _ in range(2)]
    for thread in threads:
        thread.start()
    n_answered = 0
    while any(thread.is_alive() for thread in threads):
        assert strict.get("/v1/mixes").status_code == 200
        n_answered += 1
        time.sleep(0.05)
    assert ended == [(422, "statement_stopped")] * 2
    assert n_answered > 3, "others were served while the statements ran"


def test_a_tenants_third_statement_is_told_to_come_back(strict_url: str) -> None:
    statuses: list[httpx.Response] = []
    threads = [
        threading.Thread(
            target=lambda: statuses.append(
                httpx.post(f"{strict_url}/v1/sql", json={"statement": HEAVY[0]}, timeout=120)
            )
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in statuses) == [422, 422, 429]
    late = next(answer for answer in statuses if answer.status_code == 429)
    assert int(late.headers["retry-after"]) > 0


def as_expected(answer: httpx.Response, *, heavy: bool) -> bool:
    """An escape is refused; what wears down is stopped, refused or cut, and is not a failure of the service's."""
    if answer.status_code == 422:
        return bool(answer.json()["error"]["code"])
    return heavy and answer.status_code == 200 and answer.json()["truncated"] is True


@pytest.mark.parametrize(
    ("status", "document", "refused", "heavy"),
    [
        (422, {"error": {"code": "bad_input"}}, True, True),
        (200, {"truncated": True}, False, True),
        (200, {"truncated": False}, False, False),
        (500, {"error": {"code": "internal"}}, False, False),
        (503, {"error": {"code": "busy"}}, False, False),
        (429, {"error": {"code": "too_many_at_once"}}, False, False),
    ],
)
def test_a_failure_of_the_service_passes_for_no_refusal(
    status: int, document: dict[str, Any], refused: bool, heavy: bool
) -> None:
    answer = httpx.Response(status, json=document)
    assert (as_expected(answer, heavy=False), as_expected(answer, heavy=True)) == (refused, heavy)


def test_one_statement_of_a_tenant_leaves_room_for_another_tenants(tmp_path: Path) -> None:
    """With the defaults: two statements run, one a tenant."""
    store = scored_store(tmp_path)
    anna, bert = ({"Authorization": f"Bearer {create_key(store, name, ['sql'])[1]}"} for name in ("anna", "bert"))
    with running(Settings(store=str(tmp_path), sql_timeout_s=3)) as url:
        statuses: list[int] = []

        def wear_down() -> None:
            answer = httpx.post(f"{url}/v1/sql", json={"statement": HEAVY[0]}, headers=anna, timeout=180)
            statuses.append(answer.status_code)

        threads = [threading.Thread(target=wear_down) for _ in range(3)]
        for thread in threads:
            thread.start()
        while len(statuses) < 2:
            time.sleep(0.05)
        answer = httpx.post(f"{url}/v1/sql", json={"statement": "select 1 as a"}, headers=bert, timeout=60)
        assert (statuses[:2], answer.status_code) == ([429, 429], 200)
        for thread in threads:
            thread.join()
        assert statuses[2:] == [422]


def test_named_queries_are_counted_with_the_statements(http: httpx.Client) -> None:
    def counted() -> float:
        found = re.findall(r"^ballast_sql_statements_total{.*} (\S+)$", http.get("/metrics").text, re.MULTILINE)
        return sum(map(float, found))

    before = counted()
    assert http.post("/v1/queries/top_by_gap", json={"params": {"n": 3}}).status_code == 200
    assert ask(http, "select 1 as a").status_code == 200
    assert counted() - before == 2


@pytest.mark.slow
@pytest.mark.timeout(1_500)  # a process a statement, and some twenty run into their limits
def test_no_escape_passes_and_none_wears_the_service_down(strict: httpx.Client, root: Path) -> None:
    part = str(next(root.rglob("corpora/chats/part-*.parquet")))
    process = psutil.Process()
    assert ask(strict, "select 1").status_code == 200  # makes the file of the usage log
    before, children = sorted(str(path) for path in root.rglob("*")), process.children()
    failed = []
    for statement in REFUSED + HEAVY:
        text = statement.replace("{file}", str(root / "store.json")).replace("{part}", part)
        started = time.monotonic()
        answer = ask(strict, text)
        took_s = time.monotonic() - started
        if not as_expected(answer, heavy=statement in HEAVY):
            failed.append((statement[:80], answer.status_code, answer.text[:200]))
        assert took_s < TIMEOUT_S + SLACK_S, statement[:80]
        assert not re.search(r"/(etc|root|home)/", answer.text)
    assert failed == []
    assert sorted(str(path) for path in root.rglob("*")) == before
    assert process.memory_info().rss < 1_500 * MIB
    assert len([child for child in process.children() if child.is_running()]) <= len(children)


def test_a_named_query_refuses_a_corpus_and_a_domain_that_are_not_there(http: httpx.Client) -> None:
    for params, said in (({"corpus": "nope"}, "no corpus 'nope'"), ({"hold_out": ["nope"]}, "hold_out 'nope'")):
        answer = http.post("/v1/queries/top_by_gap", json={"params": params})
        assert answer.status_code == 422
        assert said in answer.json()["error"]["message"]
