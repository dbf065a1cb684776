"""The documentation names what there is, and what it names works."""

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from api.app import create_app
from api.settings import Settings
from curator.__main__ import COMMANDS
from curator.cli.front import FIRST_PAGE, SECOND_PAGE
from tests.bench.service import load
from tests.bench.service.finding import finding
from trainer.evaluate.__main__ import KINDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS_PAGE = (ROOT / "docs" / "commands.md").read_text()
SERVICE_PAGE = (ROOT / "docs" / "service.md").read_text()
MAX_README_LINES = 120
MAX_OPTIONS = 25 + 2  # beside --help and --help-all
# Written by a command that the documentation names (its --out); the rest of what is named must be there.
TARGETS = frozenset({"docs/results/compare.md", "docs/results/gpu.md"})
NO_FINDING = frozenset({"README.md", "systems.md"})  # an index, and a page written by hand
ROOMS = ("api", "curator", "sql", "trainer")
RUNS = 'if __name__ == "__main__":'


def _module_commands() -> tuple[str, ...]:
    """Every module of api and trainer that runs by `python -m`; curator has one, with commands of its own."""
    found = [path for room in ("api", "trainer") for path in (ROOT / room).rglob("*.py") if RUNS in path.read_text()]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for path in found}
    return tuple(sorted(names))


MODULES = _module_commands()


def test_every_curator_command_stands_on_the_page_of_commands() -> None:
    missing = [name for name in COMMANDS if f"python -m curator {name}" not in COMMANDS_PAGE]
    assert not missing


def test_every_module_command_stands_on_the_page_of_commands() -> None:
    assert not [name for name in MODULES if f"python -m {name}" not in COMMANDS_PAGE]


@pytest.mark.parametrize("page", [README, COMMANDS_PAGE], ids=["README", "commands"])
def test_no_command_is_named_that_is_not_there(page: str) -> None:
    assert set(re.findall(r"python -m curator (\w+)", page)) <= set(COMMANDS)
    assert set(re.findall(r"python -m ((?:api|trainer)[\w.]*)", page)) <= set(MODULES)
    verbs = {*FIRST_PAGE, *SECOND_PAGE, *COMMANDS, "lab"}
    assert set(re.findall(r"^    ballast (\w+)", page, re.M)) <= verbs


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MAX_README_LINES


def test_the_two_commands_are_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "test-all", "lint", "types", "contracts"):
        assert re.search(rf"make [\w ]*\b{target}\b", README), target
        assert re.search(rf"^{target}: ", makefile, re.M)


def _absent(page: Path) -> list[str]:
    """Relative links of a page, and `docs/...` paths of a page or module, that lead nowhere."""
    text = page.read_text()
    named = {ROOT / name for name in re.findall(r"\bdocs/[\w./-]*\w", text)}
    if page.suffix == ".md":
        links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
        named |= {page.parent / link for link in links if not re.match(r"[a-z]+:", link)}
    places = {path.resolve() for path in named if not path.exists()}
    return sorted(name for path in places if (name := str(path.relative_to(ROOT))) not in TARGETS)


def test_every_link_and_every_page_that_is_named_is_there() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    modules = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    found = {str(page.relative_to(ROOT)): _absent(page) for page in (*pages, *modules)}
    assert not {name: absent for name, absent in found.items() if absent}


def test_a_link_that_leads_nowhere_is_found() -> None:
    page = ROOT / "docs" / "results" / "compare.md"

    class Page:
        suffix, parent = page.suffix, page.parent

        def read_text(self) -> str:
            return "[a](none.md#b) [c](https://e.org) [d](systems.md) `docs/gone.md` docs/results/compare.md"

    assert _absent(Page()) == ["docs/gone.md", "docs/results/none.md"]  # type: ignore[arg-type]


def test_every_target_is_an_output_that_a_page_or_module_names() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "".join(page.read_text() for page in pages)
    text += "".join(path.read_text() for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    assert not [name for name in TARGETS if not re.search(rf"--(out|page) {re.escape(name)}", text)]


@pytest.mark.parametrize("arguments", [("curator",), *[(name,) for name in MODULES]])
def test_help_teaches(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments, "--help"], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert len(done.stdout.splitlines()) > 5


@pytest.mark.parametrize("module", ["curator.__main__", "trainer.evaluate.__main__"])
def test_help_has_a_line_beside_every_name_and_names_all_kinds(
    module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit, match="0"):
        import_module(module).main(["--help"])
    shown = capsys.readouterr().out
    for name in COMMANDS if module.startswith("curator") else KINDS:
        assert re.search(rf"^ +{name} +\w.{{15}}", shown, re.M), f"{name}: no help beside its name"
    if not module.startswith("curator"):
        summary = shown.split("positional arguments:")[0]
        assert not [name for name in KINDS if not re.search(rf"\b{name}\b", summary)]


@pytest.mark.parametrize(
    "words", [("curator", name) for name in COMMANDS] + [(name,) for name in MODULES], ids=".".join
)
def test_no_help_has_more_than_25_options_and_help_all_has_every_one(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    is_package = (ROOT / words[0].replace(".", "/") / "__main__.py").exists()
    main = import_module(f"{words[0]}.__main__" if is_package else words[0]).main

    def options(flag: str) -> set[str]:
        with pytest.raises(SystemExit, match="0"):
            main([*words[1:], flag])
        return set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", capsys.readouterr().out, re.M))

    short = options("--help")
    assert len(short) <= MAX_OPTIONS
    if "--help-all" in short:
        assert short - {"--help-all"} < options("--help-all")


def test_sql_comments_cite_headings_that_are_there() -> None:
    cited = 0
    for path in (ROOT / "sql").rglob("*.sql"):
        text = path.read_text()
        assert not re.search(r"method[^)]*, section \d", text), f"{path.name} cites a section by number"
        for page, heading in re.findall(r'(docs/\w+\.md), "([^"]+)"', text):
            headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.M)
            assert heading in [item.replace("`", "") for item in headings], f"{path.name}: {page} has no {heading}"
            cited += 1
    assert cited >= 5


def test_every_route_stands_on_the_page_of_the_service(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"format_version": 1}')
    app = create_app(Settings(store=str(tmp_path)))
    paths = set(app.openapi()["paths"])
    flat = re.sub(r"\{\w+\}", "{}", SERVICE_PAGE)
    absent = [path for path in paths if re.sub(r"\{\w+\}", "{}", path) not in flat]
    assert not absent


def test_the_page_on_the_service_opens_with_what_its_figures_say() -> None:
    text = (ROOT / "docs" / "results" / "service.md").read_text()
    assert load.page(load.sections(text)) == text
    assert finding({}) == "No aim was set."


def test_the_figures_of_the_readmes_picture_are_those_of_the_command() -> None:
    found = json.loads((ROOT / "docs" / "results" / "try.json").read_text())  # as `ballast try` writes it
    shares = [100 * arm["n_unseen_bad"] / arm["n_unseen"] for arm in found["arms"]]
    (shown,) = re.findall(r"!\[[^\]]*: (\d+) %[^\]]*, (\d+) %[^\]]*, (\d+) %[^\]]*\]\(docs/images/try\.png\)", README)
    assert list(map(int, shown)) == [round(share) for share in shares]
    assert f"{found['n_task_rows']:,} bad answers" in README


def test_every_page_of_results_begins_with_its_finding_and_ends_with_its_command() -> None:
    pages = {page.name: page.read_text() for page in (ROOT / "docs" / "results").glob("*.md")}
    assert pages.keys() > NO_FINDING
    for name, text in pages.items():
        if name in NO_FINDING:
            continue
        _, first, *_ = text.split("\n\n")
        assert re.search(r"\d", first), f"{name} does not begin with a finding: {first[:80]}"
        assert not re.match(r"Written by|[`|#!-]", first), f"{name} does not begin with a finding: {first[:80]}"
        before, _, last = text.rpartition("\n## ")
        assert "`python -m " in last, f"{name} does not end with its command"
        assert "Written by `" not in before, f"{name} names its command before its end"
