"""`python -m tests.api.openapi`: write the service's OpenAPI document to the golden file that a test pins."""

import tempfile
from pathlib import Path

import orjson

from api.app import create_app
from api.settings import Settings

GOLDEN = Path(__file__).parents[1] / "golden" / "openapi.json"


def document() -> bytes:
    """The document of this version, keys sorted; the version itself is left out, as every release changes it."""
    with tempfile.TemporaryDirectory() as store:
        found = create_app(Settings(store=store)).openapi()
    found["info"]["version"] = "0"
    return orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_bytes(document())
