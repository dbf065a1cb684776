"""Files of the page: what came from elsewhere is what its makers published, and our own script stays small."""

import hashlib
import re
from importlib import resources

import httpx

from api.page.frame import POLICY
from api.page.static import FILES, VENDORED

ROOM = resources.files("api.page")


def test_vendored_files_have_the_stated_hashes_and_a_licence() -> None:
    for name, (_, version, digest) in VENDORED.items():
        data = ROOM.joinpath("static", name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert "Zero-Clause BSD" in ROOM.joinpath("static", "htmx.LICENSE.txt").read_text(encoding="utf-8")
    assert re.search(r'version[:=]"4\.0\.1"', ROOM.joinpath("static", "htmx.min.js").read_text(encoding="utf-8"))


def test_our_script_is_short_and_neither_evaluates_nor_writes_markup() -> None:
    script = ROOM.joinpath("static", "page.js").read_text(encoding="utf-8")
    assert script.count("\n") < 300
    assert not re.search(
        r"\beval\b|innerHTML|insertAdjacentHTML|document\.write|new Function|https?://(?!www\.w3\.org)", script
    )


def test_templates_mark_nothing_of_a_user_as_safe() -> None:
    for template in ROOM.joinpath("templates").iterdir():
        text = template.read_text(encoding="utf-8")
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|autoescape", text), template.name
        marked = re.findall(r"\{\{([^}]*\|\s*safe[^}]*)\}\}", text)
        assert all(re.match(r"\s*'[^']*'\|safe if ", item) for item in marked), (template.name, marked)


def test_files_are_sent_with_their_type_and_may_be_kept(http: httpx.Client) -> None:
    kinds = {
        "page.css": "text/css",
        "page.js": "text/javascript",
        "icon.svg": "image/svg+xml",
        "htmx.min.js": "text/javascript",
    }
    for name, kind in kinds.items():
        answer = http.get(f"/static/{name}")
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["content-security-policy"] == POLICY
        assert "immutable" in answer.headers["cache-control"]
        assert answer.content == FILES[name].data
        assert http.get(f"/static/{name}", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
        assert f"/static/{name}?v={FILES[name].sha256[:12]}" in http.get("/").text
