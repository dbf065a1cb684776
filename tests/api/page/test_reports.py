"""Reports that trainer commands wrote: shown as pages with their pictures, confined to their folder, never obeyed."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.page.markdown import Block, blocks
from api.reports import MAX_BYTES, ReportFolder
from api.settings import Settings, load_settings
from curator.client import Client
from curator.console import escape_markdown, markdown_table
from curator.errors import BadInputError, MissingError
from tests.api.serving import running, scored_store

RESULTS = Path(__file__).parents[3] / "docs" / "results"
HOSTILE = """# Run <script>alert(1)</script>

<img src=x onerror=alert(1)> and **bold \u202e**, [a link](javascript:alert(1)), [out](../../secret.md),
![pixel](https://elsewhere.example/x.png) ![own](loss.png) ![gone](none.png)
![same](./loss.png) ![up](../first/loss.png) ![out](../../../secret.png)

| a | b |
|---|--:|
| `<b>` | 1 |

    indented <code>

- one
  goes on
- two
"""


def png(width: int = 2) -> bytes:
    """A grey picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\x00" + b"\x80" * width))
        + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outer")
    (root / "secret.md").write_text("# SECRET")
    (root / "secret.png").write_bytes(png())
    reports = root / "reports"
    for name in ("runs/first", ".hidden"):
        (reports / name).mkdir(parents=True)
    (reports / "runs/first/report.md").write_text(HOSTILE, encoding="utf-8")
    (reports / "runs/first/report.json").write_text('{"steps": 3}')
    (reports / "runs/first/loss.png").write_bytes(png())
    (reports / "runs/first/fake.png").write_text("<script>")
    (reports / "runs/first/config.json").write_text('{"model": "SECRET"}')
    (reports / ".hidden/report.md").write_text("# SECRET")
    (reports / "linked.md").symlink_to(root / "secret.md")
    (reports / "hidden.md").symlink_to(reports / ".hidden/report.md")
    (reports / "config.md").symlink_to(reports / "runs/first/config.json")
    (reports / "again.md").symlink_to(reports / "runs/first/report.md")
    (reports / "big.md").write_bytes(b"# Big\n" + b"x" * MAX_BYTES[".md"])
    (reports / "broken.md").write_bytes(b"\xff\xfe no heading")
    return reports


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("store")
    scored_store(root)
    with running(Settings(store=str(root), reports=str(folder))) as address:
        yield address


def test_the_list_has_what_is_in_the_folder_and_nothing_else(folder: Path, url: str) -> None:
    with Client(url) as client:
        found = client.reports()
    assert {item["name"] for item in found} == {"runs/first/report.md", "again.md", "big.md", "broken.md"}
    titles = {item["name"]: item["title"] for item in found}
    assert titles["broken.md"] == "broken.md"
    text = httpx.get(f"{url}/reports").text
    assert "Run &lt;script&gt;" in text
    assert "SECRET" not in text


def test_a_report_is_a_page_with_its_pictures_and_its_json(url: str) -> None:
    with Client(url) as client:
        document = client.report("runs/first/report.md")
    assert (document["data"], document["pictures"]) == ({"steps": 3}, ["runs/first/loss.png"])
    assert document["text"] == HOSTILE
    page = httpx.get(f"{url}/reports/runs/first/report.md")
    assert page.status_code == 200
    body = page.text.split('<article class="report">')[1].split("</article>")[0]
    assert body.count("<img") == 3
    assert '<img src="/reports/runs/first/loss.png" alt="own">' in body
    assert '<img src="/reports/runs/first/loss.png" alt="same">' in body
    assert "<script" not in body
    assert "href" not in body, "links that lead elsewhere are text"
    assert "[a link](javascript:alert(1)), out (../../secret.md)" in body
    assert "U+202E" in body
    assert '<td class="n">1</td>' in body
    assert "<li>one goes on</li><li>two</li>" in body
    assert "[gone: absent]" in body
    assert "indented &lt;code&gt;" in body
    assert "/v1/reports/runs/first/report.md" in page.text
    for path in ("/reports/", "/v1/reports/"):
        picture = httpx.get(f"{url}{path}runs/first/loss.png")
        assert (picture.headers["content-type"], picture.content) == ("image/png", png())
        assert picture.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name",
    [
        "../secret.md", "%2e%2e/secret.md", "..%2fsecret.png", "runs/../../secret.md", "linked.md", "/etc/passwd",
        "hidden.md", "config.md",
        ".hidden/report.md", "runs//first/report.md", "runs/first/config.json", "runs/first/fake.png", "runs/first",
        "a%00.md",        "x" * 3_000 + ".md", "none.md", "runs/first/report.md/",
    ],
)  # fmt: skip
def test_what_is_not_a_report_of_the_folder_is_absent(url: str, name: str) -> None:
    for path in ("/reports/", "/v1/reports/"):
        answer = httpx.get(f"{url}{path}{name}")
        assert answer.status_code == 404
        assert "SECRET" not in answer.text


def test_a_report_that_is_too_large_is_refused(url: str) -> None:
    assert httpx.get(f"{url}/reports/big.md").status_code == 422
    assert "over 1,048,576 bytes" in httpx.get(f"{url}/v1/reports/big.md").json()["error"]["message"]


def test_without_the_setting_there_is_none(tmp_path: Path) -> None:
    scored_store(tmp_path / "store")
    with running(Settings(store=str(tmp_path / "store"))) as address:
        assert httpx.get(f"{address}/v1/reports").json() == {"reports": []}
        assert "python -m api --reports runs" in httpx.get(f"{address}/reports").text
        assert httpx.get(f"{address}/v1/reports/report.md").status_code == 404
    with pytest.raises(BadInputError, match=r"--reports: .*no folder at"):
        load_settings({"reports": str(tmp_path / "absent")})


def test_the_results_of_this_repository_are_read(tmp_path: Path) -> None:
    reports = ReportFolder(RESULTS)
    names = {report.name for report in reports.reports()}
    assert {"compare.md", "toy.md"} <= names
    document = reports.document("compare.md")
    assert document.data["rows"]
    assert "compare-broad-narrow.png" in document.pictures
    assert reports.picture("compare-broad-narrow.png").startswith(b"\x89PNG")
    kinds = {block.kind for block in blocks(document.text, lambda target: target)}
    assert kinds >= {"heading", "paragraph", "table"}
    with pytest.raises(MissingError, match="no such report"):
        reports.document("try.json")


def found(text: str) -> list[Block]:
    return blocks(text, lambda target: target)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("", []),
        ("```\n# not a heading\n", ["code"]),
        ("| a |\nno rule", ["paragraph"]),
        ("|a|b|\n|-|-|\n|1|\n|1|2|3|", ["table"]),
        ("####### seven", ["paragraph"]),
        ("# a\ntext\n# b", ["heading", "paragraph", "heading"]),
        ("1. one\n2. two", ["list"]),
    ],
)
def test_blocks(text: str, kinds: list[str]) -> None:
    assert [block.kind for block in found(text)] == kinds


def test_lines_made_to_take_long_are_read_at_once() -> None:
    for unit in ("[", "`", "**a", "*a ", "![", "| - ", "(", "- ", "[\\", "*\\a"):
        n = 2**18 // len(unit)  # quadratic work over it would take minutes
        (block,) = found("x" + unit * n)
        assert block.kind == "paragraph"
        assert len(all_text(block.lines[0])) > n


def test_what_our_commands_make_harmless_is_shown_as_it_was(tmp_path: Path) -> None:
    hostile = r"a | *b* **c** `d` [e](f.md) \ \| <b> &lt; #1_x"
    (tmp_path / "report.md").write_text(f"# {escape_markdown(hostile)}\n", encoding="utf-8")
    assert [report.title for report in ReportFolder(tmp_path).reports()] == [hostile]
    table = markdown_table(["a", "b"], [{"a": hostile, "b": 1}])
    heading, paragraph, (_, row) = (
        found(f"# {escape_markdown(hostile)}")[0].lines[0],
        found(escape_markdown(hostile))[0].lines[0],
        found(table)[0].table,
    )
    for line in (heading, paragraph, row[0]):
        assert {piece.kind for piece in line} == {"text"}
        assert all_text(line) == hostile
    assert len(row) == 2


def test_emphasis_is_no_bare_star() -> None:
    (line,) = found(r"- *after_task*: 2 * 3 * 4, **a \* b** and [x\_y](x.md)")[0].lines
    kinds = [(piece.kind, piece.text) for piece in line if piece.kind != "text"]
    assert kinds == [("emphasis", "after_task"), ("strong", "a * b"), ("link", "x_y")]
    assert "2 * 3 * 4" in all_text(line)


def all_text(value: Any) -> str:
    return "".join(piece.text for piece in value)


def test_rows_of_a_table_have_the_width_of_its_head() -> None:
    (table,) = found("|a|b|\n|-|-:|\n|1|\n|1|2|3|")
    assert [[all_text(cell) for cell in row] for row in table.table] == [["a", "b"], ["1", ""], ["1", "2"]]
    assert table.right == (True, True), "both hold numbers"
    (table,) = found("|a|b|c|\n|-|-|--:|\n|x1|1.5 (0.1 to 2)|none|\n|2|-3||")
    assert table.right == (False, True, True)
