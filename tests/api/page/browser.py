"""Headless Chromium through Playwright, where both are there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def missing() -> str | None:
    """What a test in a browser lacks here; None where it can run."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "needs Playwright: pip install playwright"
    return None if CHROMIUM else "needs Chromium: apt-get install chromium"


@contextmanager
def browsing() -> Iterator[Any]:
    """A browser; `--no-sandbox` because tests may run as root in a container."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
