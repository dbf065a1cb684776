"""What an installation takes on the disk, by extra: each in a fresh virtual environment, with the pinned versions."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from curator.console import say
from curator.store.filesystem import atomic_write

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "sizes.md"
EXTRAS = ("", "plot", "api", "api,sign", "api,s3")
INTRO = """\
# Installed sizes

`python -m tests.bench sizes --write` installed the product with each extra into a fresh virtual environment (pinned
versions, pip not counted) and summed the files of its `site-packages`, without what Python compiles on first use.

| extra | MB | packages | largest |
|---|---|---|---|
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the page or write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench sizes", description=__doc__)
    parser.add_argument(
        "--extra", action="append", help=f"extras to install, by comma (default: {' and '.join(EXTRAS)})"
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    args = parser.parse_args(argv)
    rows = [_row(extra) for extra in (EXTRAS if args.extra is None else args.extra)]
    page = INTRO + "\n".join(rows) + "\n"
    if args.write:
        with atomic_write(PAGE, durable=False) as temporary:
            temporary.write_text(page, encoding="utf-8")
    say(page)
    return 0


def _row(extra: str) -> str:
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ballast-size-") as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        wanted = str(ROOT) + (f"[{extra}]" if extra else "")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "--python", f"{folder}/bin/python"]
        constraints = str(ROOT / "constraints.txt")
        subprocess.run([*command, "install", "--no-compile", "-c", constraints, wanted], check=True)
        (site,) = Path(folder).glob("lib/python*/site-packages")
        sizes = {path.name: _size(path) for path in site.iterdir() if path.suffix != ".dist-info"}
        n_packages = sum(path.suffix == ".dist-info" for path in site.iterdir())
        total = _size(site)
    shown = ", ".join(
        f"{name.removesuffix('.libs')} {sizes[name] / 1e6:.0f}" for name in sorted(sizes, key=sizes.__getitem__)[:-6:-1]
    )
    sys.stderr.write(f"{extra or 'core'}: {total / 1e6:.0f} MB in {time.monotonic() - began_s:.0f} s\n")
    return f"| {f'`{extra}`' if extra else 'none (the core)'} | {total / 1e6:.0f} | {n_packages} | {shown} |"


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


if __name__ == "__main__":
    sys.exit(main())
