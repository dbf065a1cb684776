"""Every view: its status, the policy that it is sent under, and texts that stay texts."""

import html
import re
from html.parser import HTMLParser

import httpx
import pytest

from api.page.frame import POLICY
from tests.api.page.conftest import form_token
from tests.api.serving import json_lines, task_rows

VIEWS = [
    "/",
    "/sign-in",
    "/corpora/chats",
    "/corpora/chats?score=gap_abs&hold_out=greedy",
    "/corpora/chats/rows",
    "/corpora/chats/rows?order=worst&low=0&high=1&search=kind",
    "/corpora/chats/rows?order=shuffled&seed=3&aligned_low=&high=\N{MINUS SIGN}0",
    "/mix",
    "/mixes",
    "/sql",
    "/sql?query=top_by_gap",
    "/jobs",
]
FAULTS = [
    ("/corpora/nothing", 404),
    ("/corpora/chats/rows/" + "0" * 32, 404),
    ("/corpora/chats/rows?low=much", 422),
    ("/corpora/chats/rows?low=nan", 422),
    ("/corpora/chats/rows?after=7", 422),
    ("/corpora/chats/rows?order=none", 422),
    ("/corpora/chats?score=best", 422),
    ("/mixes/" + "0" * 32, 404),
    ("/jobs/" + "0" * 32, 404),
    ("/sql?query=nothing", 404),
    ("/static/../app.py", 404),
    ("/static/nothing.js", 404),
]


class _Reader(HTMLParser):
    """Tags that a browser would see, and attributes that would run or style something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.faults: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name.startswith("on") or name == "style" or (value or "").strip().lower().startswith("javascript:"):
                self.faults.append(f"{tag} {name}={value}")
            if name in ("src", "href", "action", "formaction", "hx-get", "hx-post") and value:
                self.sources.append(value)


def read_page(answer: httpx.Response) -> _Reader:
    """A page, checked for what no page may have."""
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    reader = _Reader()
    reader.feed(answer.text)
    assert reader.faults == []
    assert "style" not in reader.tags
    assert len(re.findall(r"<script\b", answer.text)) == len(
        re.findall(r'<script src="[^"]+" defer></script>', answer.text)
    )
    assert all(source.startswith(("/", "#")) and not source.startswith("//") for source in reader.sources), (
        reader.sources
    )
    return reader


@pytest.mark.parametrize("path", VIEWS)
def test_a_view_is_a_page_under_the_policy(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 200, answer.text
    reader = read_page(answer)
    assert reader.tags.count("h1") == 1
    assert {"main", "header", "footer"} <= set(reader.tags)
    assert '<html lang="en">' in answer.text


@pytest.mark.parametrize(("path", "status"), FAULTS)
def test_an_error_is_a_page_with_the_status_of_the_api(http: httpx.Client, path: str, status: int) -> None:
    answer = http.get(path)
    assert answer.status_code == status
    if not path.startswith("/static/.."):  # httpx resolves it: the API's own unknown route
        read_page(answer)


def test_a_view_says_where_its_json_is(http: httpx.Client) -> None:
    for path, twin in (("/", "/v1/corpora"), ("/mixes", "/v1/mixes"), ("/jobs", "/v1/jobs")):
        assert f"<code>{twin}</code>" in http.get(path).text
        assert http.get(twin).status_code == 200
    for name in ("rows_by_gap", "gap_histogram_by_source", "loss_plane_cells"):
        assert http.post(f"/v1/queries/{name}", json={"params": {"corpus": "chats"}}).status_code == 200


def _ids(http: httpx.Client, search: str) -> list[str]:
    return _listed(http.get("/corpora/chats/rows", params={"search": search}).text)


@pytest.mark.parametrize(
    ("search", "shown"),
    [
        ("<script>", "&lt;script&gt;alert(&#39;row&#39;)&lt;/script&gt;"),
        ("right to left", '<span class="hidden-char">U+202E</span>'),
        ("wwwwww", "960,000 more characters"),
        ("nul ", '<span class="hidden-char">U+0000</span>'),
        ("im_start", "&lt;|im_start|&gt;system"),
        ("7 * 7", "{{ 7 * 7 }} {% raw %} &amp;lt;b&amp;gt;"),
    ],
)
def test_a_hostile_row_is_shown_and_never_obeyed(http: httpx.Client, search: str, shown: str) -> None:
    (key,) = _ids(http, search)
    listed = http.get("/corpora/chats/rows", params={"search": search})
    read_page(listed)
    answer = http.get(f"/corpora/chats/rows/{key}")
    read_page(answer)
    assert shown in answer.text
    for text in (listed.text, answer.text):
        assert "<script>alert" not in text
        assert not set(text) & set("\u202e\u2066\u200b\x00\x07")


def test_what_is_searched_for_is_not_obeyed(http: httpx.Client) -> None:
    answer = http.get("/corpora/chats/rows", params={"search": '"><script>alert(1)</script>', "source": "'<b>"})
    assert answer.status_code == 200
    assert read_page(answer).tags.count("script") == 2
    assert "No row fits" in answer.text


def test_rows_come_by_pages_each_once_and_in_order(http: httpx.Client) -> None:
    path, seen = "/corpora/chats/rows?order=worst", []
    for _ in range(5):
        text = http.get(path).text
        seen += _listed(text)
        following = re.search(r'rel="next" href="([^"]+)"', text)
        if following is None:
            break
        path = following[1].replace("&amp;", "&")
    assert len(seen) == len(set(seen)) == 36
    worst = http.post("/v1/queries/bottom_by_gap", json={"params": {"corpus": "chats", "n": 36}}).json()["rows"]
    assert seen == [row["example_id"] for row in worst]


def _listed(text: str) -> list[str]:
    return re.findall(r'href="/corpora/chats/rows/([0-9a-f]{32})', text)


def test_a_shuffle_is_the_same_for_whoever_has_its_link(http: httpx.Client) -> None:
    path, seen = "/corpora/chats/rows?order=shuffled&seed=4", []
    assert _listed(http.get(path).text) == _listed(http.get(path).text)
    while path:
        text = http.get(path).text
        seen += _listed(text)
        following = re.search(r'rel="next" href="([^"]+)"', text)
        path = following[1].replace("&amp;", "&") if following else ""
        assert not path or "seed=4" in path
    given = {"corpus": "chats", "order": "shuffled", "seed": 4, "n": 36}
    twin = http.post("/v1/queries/rows_by_gap", json={"params": given}).json()["rows"]
    assert seen == [row["example_id"] for row in twin]
    again = re.search(r'href="([^"]*seed=5[^"]*)">Shuffle again', text)
    assert again is not None
    assert _listed(http.get(again[1].replace("&amp;", "&")).text) != seen[:20]


def test_a_bar_leads_to_just_its_rows(http: httpx.Client) -> None:
    text = http.get("/corpora/chats").text
    bars = re.findall(r'href="([^"]*low=[^"]*)"[^>]*aria-label="[^"]*: (\d+) rows from', text)
    assert bars
    assert sum(int(n_rows) for _, n_rows in bars) == 36
    for path, n_rows in bars[::4]:
        listed = http.get(path.replace("&amp;", "&")).text
        found = re.search(r"<h1>(\d+) row", listed)
        assert found is not None
        assert int(found[1]) >= int(n_rows)  # a row on an edge belongs to both bars


def test_rows_of_a_cell_are_framed_in_the_plane(http: httpx.Client) -> None:
    assert 'class="frame"' not in http.get("/corpora/chats").text
    cell = re.search(r'href="([^"]*misaligned_low[^"]*)"', http.get("/corpora/chats").text)
    assert cell is not None
    text = http.get(html.unescape(cell[1])).text
    (frame,) = re.findall(r'<rect class="frame" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', text)
    assert all(0 < float(value) < 480 for value in frame)
    assert 'class="frame"' not in http.get("/corpora/chats/rows?low=0.1").text


def test_a_row_shows_its_losses_and_rank_as_the_api_does(http: httpx.Client) -> None:
    best = http.post("/v1/queries/top_by_gap", json={"params": {"corpus": "chats", "n": 3}}).json()["rows"][2]
    text = http.get(f"/corpora/chats/rows/{best['example_id']}").text
    assert "Rank 3:" in text
    assert f"{best['gap_rel']:.4f}" in text
    assert all(label in text for label in ("base", "reckless", "greedy"))
    found = http.get("/corpora/chats/find", params={"prefix": best["example_id"][:10]})
    assert found.headers["location"] == f"/corpora/chats/rows/{best['example_id']}"


def test_a_row_without_a_renderer_says_so(http: httpx.Client) -> None:
    (key,) = _ids(http, "kind answer 7")
    text = http.get(f"/corpora/chats/rows/{key}?tokens=true").text
    assert "cannot be rendered here" in text


def _send(http: httpx.Client, path: str, rows: bytes, **fields: str) -> httpx.Response:
    data = {"form_token": form_token(http.get("/mix").text), "corpus": "chats", "ratio": "10", **fields}
    return http.post(path, data=data, files={"file": ("my <b> rows.jsonl", rows)})


def test_a_file_becomes_a_mix_with_four_downloads(http: httpx.Client) -> None:
    rows = json_lines(task_rows(40))
    shown = _send(http, "/mix/preview", rows)
    assert shown.status_code == 200, shown.text
    read_page(shown)
    assert "4 safe rows among 40 of yours" in shown.text
    assert "my &lt;b&gt; rows.jsonl: 40 rows, no problem found" in shown.text
    assert "ballast mix" in shown.text
    built = _send(http, "/mix/build", rows)
    assert built.status_code == 303
    receipt = http.get(built.headers["location"])
    read_page(receipt)
    assert "4 safe rows among 40 task rows" in receipt.text
    mix_id = re.search(r"/mixes/([0-9a-f]{32})", built.headers["location"])
    assert mix_id is not None
    for name in ("jsonl", "parquet", "arrow", "openai"):
        mine = http.get(f"/mixes/{mix_id[1]}/data?format={name}")
        assert mine.status_code == 200
        assert mine.headers["content-disposition"].startswith("attachment")
        assert mine.content == http.get(f"/v1/mixes/{mix_id[1]}/data?format={name}").content
    assert mix_id[1] in http.get("/mixes").text
    again = http.get(f"/mixes/compare?first={mix_id[1]}&second={mix_id[1]}")
    assert "One and the same mix" in again.text
    token = form_token(receipt.text)
    assert http.post(f"/mixes/{mix_id[1]}/delete", data={"form_token": token}).status_code == 303
    assert http.get(f"/mixes/{mix_id[1]}").status_code == 404


def test_bad_rows_are_all_listed_and_can_be_left_out(http: httpx.Client) -> None:
    rows = json_lines(task_rows(20)) + b'{"messages": []}\n{"messages": "<script>"}\n{broken\n'
    shown = _send(http, "/mix/preview", rows)
    read_page(shown)
    assert "3 of 23 records" in shown.text
    assert "No mix yet" in shown.text
    assert shown.text.count("<td>invalid_json</td>") == 1
    kept = _send(http, "/mix/preview", rows, on_bad_rows="drop")
    assert "2 safe rows among 20 of yours" in kept.text
    assert "--on-bad-rows drop" in kept.text


@pytest.mark.parametrize(
    ("rows", "fields", "words"),
    [
        (b"", {}, "choose a file"),
        (b"no chat at all", {}, "cannot"),
        (json_lines(task_rows(5)), {"ratio": "much"}, "ratio must be a number"),
        (json_lines(task_rows(5)), {"seed": "-1"}, "seed must be a whole number"),
        (json_lines(task_rows(5)), {"corpus": "nothing"}, "no corpus"),
        (json_lines(task_rows(5)), {"strategy": "best"}, "recipe refused"),
        (json_lines(task_rows(5)), {"hold_out": "unheard"}, "unheard"),
    ],
)
def test_what_cannot_be_mixed_is_said(http: httpx.Client, rows: bytes, fields: dict[str, str], words: str) -> None:
    shown = _send(http, "/mix/preview", rows, **fields)
    read_page(shown)
    assert words in shown.text


def test_a_named_query_and_a_statement_run_and_fail_plainly(http: httpx.Client) -> None:
    token = form_token(http.get("/sql").text)
    run = http.post("/sql", data={"form_token": token, "query": "top_by_gap", "p.n": "2", "p.corpus": "chats"})
    read_page(run)
    assert "<h2>2 rows</h2>" in run.text
    free = http.post("/sql", data={"form_token": token, "statement": "select '<script>' as a, null as b, 1 as c;"})
    read_page(free)
    assert "&lt;script&gt;" in free.text
    assert '<span class="muted">null</span>' in free.text
    wrong = http.post("/sql", data={"form_token": token, "query": "top_by_gap", "p.n": "many"})
    assert wrong.status_code == 422
    assert "parameter n takes integer" in wrong.text
    refused = http.post("/sql", data={"form_token": token, "statement": "drop table corpora"})
    assert refused.status_code == 422
    assert "SELECT" in refused.text
    file = http.post("/sql", data={"form_token": token, "statement": "select 1 as one", "format": "csv"})
    assert file.text.split() == ["one", "1"]
    assert file.headers["content-disposition"] == 'attachment; filename="answer.csv"'


def _plotted(http: httpx.Client, **fields: str) -> str:
    token = form_token(http.get("/sql").text)
    answer = http.post("/sql", data={"form_token": token, "format": "plot", **fields})
    read_page(answer)
    return answer.text


def test_an_answer_is_plotted_by_one_click(http: httpx.Client) -> None:
    dots = _plotted(http, query="gap_histogram_by_source")
    twin = http.post("/v1/queries/gap_histogram_by_source", json={}).json()["rows"]
    assert len(re.findall(r"<title>\w+ [^<]*, n_rows \d+</title>", dots)) == len(twin)
    bars = _plotted(http, statement="select '<b>' as kind, -2 as n union all select null, 3 union all select 'c', null")
    assert "<title>&lt;b&gt;: n \N{MINUS SIGN}2</title>" in bars
    assert "<title>null: n 3</title>" in bars
    assert "1 of the rows have no number there" in bars
    chosen = _plotted(http, statement="select 1 as a, 2 as b, 'x' as c", across="b", up="a")
    assert "<title>b 2, a 1</title>" in chosen
    for values in ("(1e308), (-1e308)", "(5e-323), (0)"):  # a span beyond what a number can be, and next to none
        for columns in ("n, n as m", "'x' as c, n"):
            far = _plotted(http, statement=f"select {columns} from (values {values}) as v(n)")
            assert "too far apart, or too close together" in far
    assert "No row has a number to draw" in _plotted(http, statement="select 'x' as c, null::double as b")


def test_names_of_views_and_columns_are_there_to_complete(http: httpx.Client) -> None:
    text = http.get("/sql").text
    assert '<option value="scorers" label="view">' in text
    for view, column in (("gap", "mean_nll_aligned"), ("examples", "messages"), ("corpora", "n_examples")):
        assert f'<option value="{column}" label="{view}">' in text


def test_an_audit_starts_from_the_page(http: httpx.Client) -> None:
    page = http.get("/jobs")
    data = {"form_token": form_token(page.text), "corpus": "chats"}
    begun = http.post("/jobs/audit", data=data, files={"file": ("rows.jsonl", json_lines(task_rows(6)))})
    assert begun.status_code == 303, begun.text
    job_id = begun.headers["location"].removeprefix("/jobs/")
    shown = http.get(f"/jobs/{job_id}")
    read_page(shown)
    assert "An audit" in shown.text
    twin = http.get(f"/v1/jobs/{job_id}").json()
    assert (twin["kind"], twin["state"]) == ("audit", "queued")
    assert http.post(f"/jobs/{job_id}/delete", data=data).status_code == 303
    for rows, fields, status in (
        (b"", data, 422),
        (json_lines(task_rows(6)), {**data, "corpus": "nothing"}, 422),
        (b"{broken", data, 422),
        (json_lines(task_rows(6)), {**data, "form_token": "0" * 64}, 403),
    ):
        refused = http.post("/jobs/audit", data=fields, files={"file": ("rows.jsonl", rows)})
        assert refused.status_code == status
        read_page(refused)


def test_a_long_build_becomes_a_job_that_can_be_cancelled(root: object, http: httpx.Client) -> None:
    answer = http.post(
        "/v1/mixes",
        json={"rows": task_rows(5), "recipe": {"corpus": "chats", "interleave_ratio": 0.2}},
        headers={"Prefer": "respond-async"},
    )
    assert answer.status_code == 202
    job_id = answer.json()["job_id"]
    shown = http.get(f"/jobs/{job_id}")
    read_page(shown)
    assert "waiting for a worker" in shown.text
    assert 'hx-trigger="every 5s"' in shown.text
    assert job_id[:16] in http.get("/jobs").text
    token = form_token(shown.text)
    assert http.post(f"/jobs/{job_id}/delete", data={"form_token": token}).status_code == 303
    assert "cancelled" in http.get(f"/jobs/{job_id}").text
