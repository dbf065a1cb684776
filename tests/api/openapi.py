"""`python -m tests.api.openapi`: write the service's OpenAPI document to the golden file that a test pins."""

import tempfile
from pathlib import Path

import orjson

from api.app import create_app
from api.settings import Settings

GOLDEN = Path(__file__).parents[1] / "golden" / "openapi.json"
# Python's names of statuses, which stand in the document as descriptions, and what 3.13 made of them.
PHRASES = {
    "Request Entity Too Large": "Content Too Large",
    "Requested Range Not Satisfiable": "Range Not Satisfiable",
    "Unprocessable Entity": "Unprocessable Content",
}


def document() -> bytes:
    """The document of this version, keys sorted, the same on every Python; the version itself is left out, as every
    release changes it."""
    with tempfile.TemporaryDirectory() as store:
        found = create_app(Settings(store=store)).openapi()
    found["info"]["version"] = "0"
    text = orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
    for older, newer in PHRASES.items():
        text = text.replace(f'"description": "{newer}"'.encode(), f'"description": "{older}"'.encode())
    return text


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_bytes(document())
