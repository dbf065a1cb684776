"""What the page on the service says first: which of its aims were met, read from its own figures."""

import re
from collections.abc import Mapping

from tests.bench.aims import aims_met

# By section: what is measured and its unit, and a pattern of the figure and the aim beside it.
_AT_LEAST = (
    ("Under load", "mixes a second", "", r"Mixes a second: ([\d.]+) \(at least ([\d.]+)"),
    (
        "Under load, from a pool of a million rows",
        "mixes a second from a pool of a million rows",
        "",
        r"Mixes a second: ([\d.]+) \(at least ([\d.]+)",
    ),
)
_AT_MOST = (
    (
        "Single requests",
        "one small SQL statement",
        " ms",
        r"small SQL statement.*?p50 ([\d.]+) ms.*?at most ([\d.]+) ms",
    ),
    (
        "Single requests",
        "a mix of 1,000 rows beside 8 readers, p95",
        " s",
        r"beside 8 readers: .*?p95 ([\d.]+) s \(at most ([\d.]+) s",
    ),
    ("Single requests", "a mix of 100,000 rows", " s", r"mix done ([\d.]+) s .*?at most ([\d.]+) s"),
    ("Bombs", "the slowest bomb", " s", r"answered after ([\d.]+) s \(at most ([\d.]+) s"),
    ("Bombs", "the largest bomb", " MiB", r"took ([\d.]+) MiB above idle \(at most ([\d.]+) MiB"),
    (
        "One mix of 200,050 rows",
        "the first download of JSON Lines, times a static server's",
        "",
        r"\| jsonl, [^|]*\| service, first time \|.*?\| ([\d.]+)x(?:.|\n)*?at most ([\d.]+)x",
    ),
)
_SINGLE = re.compile(
    r"^\| ([\d,]+) \| [\d,]+ \| ([\d,]+) \| [\d,]+ \| ([\d.]+)x \| ([\d,]+) ms and ([\d.]+)x \|$", re.M
)
_LOAD = re.compile(r"([\d,]+) clients for [\d.]+ s, data sets of ([\d,]+) rows(?:.|\n)*?Mixes a second: ([\d.]+)")


def finding(every: Mapping[str, str]) -> str:
    """How many of the aims of these sections were met, and by how much the others were missed."""
    met, missed = 0, list[str]()

    def judge(good: bool, words: str) -> None:
        nonlocal met
        met += good
        if not good:
            missed.append(words)

    for sense, aims in (("least", _AT_LEAST), ("most", _AT_MOST)):
        for title, what, unit, pattern in aims:
            if seen := re.search(pattern, every.get(title, "")):
                value, aim = map(float, seen.groups())
                good = value >= aim if sense == "least" else value <= aim
                judge(good, f"{what} ({seen[1]}{unit}, at {sense} {seen[2]}{unit})")
    for rows, taken, ratio, most, times in _SINGLE.findall(every.get("Single requests", "")):
        good = float(taken.replace(",", "")) <= float(most.replace(",", "")) and float(ratio) <= float(times)
        row = "row" if rows == "1" else "rows"
        bound = f"({taken} ms and {ratio}x, at most {most} ms and {times}x)"
        judge(good, f"processor time of a mix of {rows} {row} {bound}")
    load = _LOAD.search(every.get("Under load", ""))
    made = f"{load[1]} clients got {load[3]} mixes of {load[2]} rows a second. " if load else ""
    aims = aims_met(met, missed)
    return f"{made}{aims[:1].upper()}{aims[1:]}."
