"""The page in a real browser: each flow from click to file, both themes, two widths, the keyboard, and axe-core.

axe-core comes from npm (`npm pack axe-core`); AXE_CORE names its axe.min.js, and without it that test is skipped.
The flow from a dropped file to a mix runs in `make test`, the others in `make test-all`.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.page.frame import HEADERS
from api.settings import Settings
from api.tenancy.keys import create_key
from curator.store.store import Store
from tests.api.page.browser import browsing, missing
from tests.api.page.conftest import hostile_store
from tests.api.page.demo_store import demo_store
from tests.api.page.images import task_file
from tests.api.page.test_token_losses import all_models, work
from tests.api.serving import RECIPE, form, running, task_rows
from tests.models import tiny_model_folder
from tests.token_store import scored_by_models

WHY = missing()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))
slow = pytest.mark.slow  # all but the main flow, which every run of the tests walks through
RESULTS = Path(__file__).parents[3] / "docs" / "results"
AXE = os.environ.get("AXE_CORE", "")
VIEWS = [
    "/",
    "/corpora/chats",
    "/corpora/chats/rows",
    "/corpora/chats/rows?order=shuffled&seed=3",
    "/mix",
    "/mixes",
    "/sql",
    "/sql?query=top_by_gap",
    "/jobs",
    "/reports",
    "/reports/toy.md",
    "/corpora/nothing",
]
WIDE, NARROW = {"width": 1600, "height": 1000}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("browser")
    demo_store(folder / "store", tiny_model_folder(tmp_path_factory.mktemp("model")), n_rows=400)
    with running(Settings(store=str(folder / "store"), reports=str(RESULTS))) as address:
        yield address


@pytest.fixture(scope="module")
def made(url: str) -> list[str]:
    """Views of what a visitor made: two mixes, both compared, and a job that waits."""
    answers = [httpx.post(f"{url}/v1/mixes", **form(task_rows(n_rows), RECIPE), timeout=60) for n_rows in (40, 60)]
    ids = [answer.json()["mix_id"] for answer in answers]
    waiting = {"Prefer": "respond-async"}
    job = httpx.post(f"{url}/v1/mixes", **form(task_rows(20), RECIPE), headers=waiting, timeout=60).json()["job_id"]
    return [*(f"/mixes/{mix_id}" for mix_id in ids), f"/mixes/compare?first={ids[0]}&second={ids[1]}", f"/jobs/{job}"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browsing() as found:
        yield found


class Watched:
    """A browser whose pages complain here: of what breaks the policy, of errors and of what the console says."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium
        self.complaints: list[str] = []

    def new_context(self, **options: Any) -> Any:
        """A context of Playwright; one that passes over the policy (for axe-core) is not watched."""
        context = self._chromium.new_context(**options)
        if not options.get("bypass_csp"):
            context.on("console", self._console)
            context.on("weberror", lambda error: self.complaints.append(str(error.error)))
            context.expose_binding("reportBreach", lambda _, breach: self.complaints.append(f"policy: {breach}"))
            context.add_init_script(
                "addEventListener('securitypolicyviolation', event => reportBreach("
                "`${event.effectiveDirective} stops ${event.blockedURI} at ${event.documentURI}`), true)"
            )
        return context

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and "status of 4" not in message.text:
            self.complaints.append(message.text)

    def check(self) -> None:
        """Fail the test where a page has complained."""
        assert not self.complaints, "\n".join(self.complaints)


@pytest.fixture
def browser(chromium: Any) -> Iterator[Watched]:
    watched = Watched(chromium)
    yield watched
    watched.check()


@pytest.fixture(params=["light", "dark"])
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@slow
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_no_view_overflows_or_breaks_the_policy(
    url: str, made: list[str], browser: Watched, theme: str, size: dict[str, int]
) -> None:
    context = browser.new_context(viewport=size, color_scheme=theme)
    page = context.new_page()
    row = ""
    for path in [*VIEWS, *made]:
        answer = page.goto(url + path)
        assert answer.status == (404 if path == "/corpora/nothing" else 200), path
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
        row = row or page.evaluate("document.querySelector('a.row')?.getAttribute('href') ?? ''")
    page.goto(f"{url}/reports/toy.md")
    assert page.get_by_role("heading", name="The toy model").count() == 1
    page.goto(f"{url}{row}&tokens=true")
    assert page.locator("mark").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    context.close()


@pytest.mark.parametrize(
    "breach", ["<script>1</script>", "<p style='color: red'>", "<img src='http://127.0.0.2/x.png'>"]
)
def test_a_page_that_breaks_the_policy_fails_its_test(browser: Watched, breach: str) -> None:
    context = browser.new_context()
    context.route("**/broken", lambda route: route.fulfill(body=breach, content_type="text/html", headers=HEADERS))
    page = context.new_page()
    page.goto("http://127.0.0.1/broken")
    deadline_s = time.monotonic() + 60
    while not any(item.startswith("policy: ") for item in browser.complaints):  # reports come after the page
        assert time.monotonic() < deadline_s
        page.wait_for_timeout(20)
    with pytest.raises(AssertionError, match=r"policy: (script-src-elem|style-src-attr|img-src) stops"):
        browser.check()
    browser.complaints.clear()
    context.close()


def test_a_dropped_file_becomes_a_mix_in_few_actions(url: str, browser: Watched, tmp_path: Path) -> None:
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    text = task_file(tmp_path, 100).read_text()
    page.goto(url)
    page.get_by_role("link", name="Build a mix").first.click()
    page.evaluate(
        """text => {
            const data = new DataTransfer();
            data.items.add(new File([text], "medical.jsonl"));
            const area = document.querySelector("[data-drop]");
            area.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
        }""",
        text,
    )
    page.get_by_role("button", name="Check and preview").click()
    page.get_by_text("5 safe rows among 100 of yours").wait_for()
    page.get_by_role("button", name="Build the mix").click()
    page.get_by_role("heading", name="5 safe rows among 100 task rows").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="messages alone").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert len(lines) == 105
    assert set(json.loads(lines[0])) == {"messages"}
    context.close()


@slow
def test_the_same_by_keyboard_alone(url: str, browser: Watched, tmp_path: Path) -> None:
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    page.goto(f"{url}/mix")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    _tab_to(page, "document.activeElement.type === 'file'")
    page.set_input_files("input[type=file]", task_file(tmp_path, 60))  # the system's own dialogue is not the page's
    _tab_to(page, "document.activeElement.textContent === 'Check and preview'")
    page.keyboard.press("Enter")
    page.get_by_text("3 safe rows among 60 of yours").wait_for()
    _tab_to(page, "document.activeElement.textContent === 'Build the mix'")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="3 safe rows among 60 task rows").wait_for()
    _tab_to(page, "document.activeElement.textContent.startsWith('Parquet')")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename.endswith(".parquet")
    context.close()


def _tab_to(page: Any, condition: str) -> None:
    for _ in range(60):
        if page.evaluate(condition):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the keyboard does not reach {condition}")


@slow
def test_dragging_over_the_histogram_chooses_rows(url: str, browser: Watched) -> None:
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    page.goto(f"{url}/corpora/chats/rows")
    box = page.locator("[data-brush] svg").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.3, steps=4)
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.3, steps=4)
    page.mouse.up()
    page.wait_for_url("**low=*")
    low, high = (float(page.locator(f"[name={name}]").input_value()) for name in ("low", "high"))
    assert low < high
    scores = [float(text.replace("\N{MINUS SIGN}", "-")) for text in page.locator(".nums b").all_text_contents()]
    assert scores
    assert all(low - 0.001 <= score <= high + 0.001 for score in scores)
    context.close()


@slow
def test_arrow_keys_choose_rows_of_the_histogram(url: str, browser: Watched) -> None:
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    page.goto(f"{url}/corpora/chats/rows")
    page.locator("[data-brush] svg").first.focus()
    for key in ("ArrowRight", "ArrowLeft", "ArrowRight", "Shift+ArrowRight", "Shift+ArrowRight"):
        page.keyboard.press(key)
    low, high = (page.locator(f"[name={name}]").input_value() for name in ("low", "high"))
    page.keyboard.press("Enter")
    page.wait_for_url(f"**low={low}&high={high}*")
    scores = [float(text.replace("\N{MINUS SIGN}", "-")) for text in page.locator(".nums b").all_text_contents()]
    assert scores
    assert all(float(low) - 0.001 <= score <= float(high) + 0.001 for score in scores)
    context.close()


def _plotted(page: Any, url: str) -> None:
    """Complete a name by the keyboard, run the statement, plot its answer."""
    page.goto(f"{url}/sql")
    area = page.get_by_label("Statement")
    area.fill("")
    area.press_sequentially("select label, n_rows from scor")
    page.locator(".completions li", has_text="scorers").first.wait_for()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert area.input_value() == "select label, n_rows from scorers"
    assert page.get_by_role("listbox").count() == 0
    area.press_sequentially(" order by lab")
    page.locator(".completions li", has_text="label").first.wait_for()
    page.keyboard.press("Escape")
    assert page.get_by_role("listbox").count() == 0
    area.press_sequentially("el")
    _tab_to(page, "document.activeElement.textContent === 'Run'")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="5 rows").wait_for()
    _tab_to(page, "document.activeElement.textContent === 'Plot'")
    page.keyboard.press("Enter")
    page.locator("#answer figure").wait_for()


@slow
def test_a_statement_is_completed_run_and_plotted_by_keyboard(url: str, browser: Watched, theme: str) -> None:
    for size in (WIDE, NARROW):
        context = browser.new_context(viewport=size, color_scheme=theme)
        page = context.new_page()
        _plotted(page, url)
        assert page.locator("#answer figure rect.s0").count() == 5
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        context.close()


@slow
def test_hostile_rows_run_nothing_and_two_tenants_stay_apart(tmp_path: Path, browser: Watched) -> None:
    store: Store = hostile_store(tmp_path / "store")
    keys = [create_key(store, tenant, ["mix", "sql"])[1] for tenant in ("acme", "other")]
    with running(Settings(store=str(tmp_path / "store"))) as url:
        contexts = [browser.new_context() for _ in keys]
        pages = [context.new_page() for context in contexts]
        for page, key in zip(pages, keys, strict=True):
            page.goto(f"{url}/mix")
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Sign in").click()
            page.get_by_role("heading", name="Build a mix").wait_for()
        first, second = pages
        first.on("dialog", lambda dialog: browser.complaints.append("a dialogue opened"))
        first.set_input_files("input[type=file]", task_file(tmp_path, 40))
        first.get_by_role("button", name="Build the mix").click()
        first.get_by_role("heading", name="2 safe rows among 40 task rows").wait_for()
        assert second.goto(first.url).status == 404
        for search in ("script", "right to left", "wwwww", "nul ", "im_start", "7 * 7"):
            first.goto(f"{url}/corpora/chats/rows?search={search}")
            first.locator("a.row").first.click()
            first.locator("article.turn").first.wait_for()
            assert first.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
            assert first.locator("main script, main img").count() == 0
        assert [item["name"] for item in contexts[0].cookies() if not item["httpOnly"]] == []
        assert first.evaluate("document.cookie") == ""
        for context in contexts:
            context.close()


@slow
@pytest.mark.skipif(not Path(AXE).is_file(), reason="AXE_CORE does not name axe.min.js (npm pack axe-core)")
def test_axe_finds_no_violation(url: str, made: list[str], browser: Watched, theme: str) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=theme, bypass_csp=True)
    page = context.new_page()
    found: dict[str, Any] = {}
    page.goto(f"{url}/corpora/chats")
    row = page.locator("a.row").first.get_attribute("href")
    for path in [*VIEWS, *made, f"{row}&tokens=true", "/sign-in"]:
        page.goto(url + path)
        page.add_script_tag(path=AXE)
        result = page.evaluate("axe.run()")
        found |= _violations(path, result)
    _plotted(page, url)
    page.add_script_tag(path=AXE)
    found |= _violations("a plot", page.evaluate("axe.run()"))
    page.get_by_label("Statement").press_sequentially(" desc, n_r")
    page.locator(".completions li", has_text="n_rows").first.wait_for()
    found |= _violations("a list of names", page.evaluate("axe.run()"))
    assert found == {}
    context.close()


def _violations(where: str, result: dict[str, Any]) -> dict[str, list[str]]:
    return {
        f"{where} {item['id']}": [node["html"][:160] for node in item["nodes"][:3]] for item in result["violations"]
    }


@slow
def test_losses_of_tokens_come_while_the_page_is_open(tmp_path: Path, browser: Watched) -> None:
    scored = scored_by_models(tmp_path)
    with running(Settings(store=scored.store.url(""), workers=0)) as url:
        context = browser.new_context(viewport=WIDE)
        page = context.new_page()
        page.goto(f"{url}/corpora/chats/rows?order=worst")
        page.locator("a.row").first.click()
        _tab_to(page, "document.activeElement.textContent === 'Show the loss of each token'")
        page.keyboard.press("Enter")
        page.get_by_text("No worker with the models of this corpus has begun").wait_for()
        work(scored.store, all_models(scored))
        page.get_by_role("heading", name="trained tokens are likelier under the misaligned models").wait_for()
        row = page.url
        _tab_to(page, "document.activeElement.textContent === 'reckless'")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="nats per token under reckless").wait_for()
        context.close()
        for size in (WIDE, NARROW):
            for theme in ("light", "dark"):
                context = browser.new_context(viewport=size, color_scheme=theme, bypass_csp=True)
                page = context.new_page()
                page.goto(row)
                page.locator("#losses summary").click()
                assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
                if Path(AXE).is_file():
                    page.add_script_tag(path=AXE)
                    assert _violations("losses", page.evaluate("axe.run()")) == {}
                context.close()
        without = browser.new_context(java_script_enabled=False)
        page = without.new_page()
        page.goto(row)
        page.get_by_role("link", name="reckless").click()
        page.get_by_role("heading", name="nats per token under reckless").wait_for()
        page.goto(row.partition("?")[0])
        page.get_by_role("button", name="Show the loss of each token").click()
        page.get_by_text("No worker with the models of this corpus has begun").wait_for()
        work(scored.store, all_models(scored))
        page.get_by_role("link", name="Look again").click()
        page.get_by_role("heading", name="trained tokens are likelier under the misaligned models").wait_for()
        without.close()
