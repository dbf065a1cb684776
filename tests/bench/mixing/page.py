"""A benchmark run as one Markdown page: every number in it comes from the run."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.aims import aims_met
from trainer.runs.page import results_page

# Its figures are those of this page as it stood at commit 950b297.
_BEFORE = (
    "What stood here before Polars: a column store of our own (2,300 lines), whose rows lay in the order of the "
    "default gap with bounds for each block. It looked at few rows, and so chose the best 1,000 of 10M in 51 ms "
    "where bare Polars took 105, and in 303 ms from a cold file. It went because only that one gap could be "
    "pruned, because a pool of 1M rows took 29 s to make while the first mix waited, and because frames and "
    "expressions can be read and changed by anyone who knows Polars."
)


def page(document: Mapping[str, Any], command: str) -> str:
    """The page; `command` is what ran."""
    machine = document["machine"]
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items() if found)
    wrote = [
        f"Written by `{command}` on {machine['date']}.",
        "",
        f"- machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; load average "
        f"{machine['load_average_before']} before and {machine['load_average']} at the end",
        f"- versions: Python {machine['python']}, {versions}",
    ]
    lines = [
        "Ours and its peer take turns in one run; a ratio is the median over the turns of the peer's time over ours:",
        "above 1 ours is faster. Milliseconds are medians, reported and not judged.",
        "",
        "| work | beside | ratio | aim | ms: ours | ms: peers |",
        "|---|---|---|---|---|---|",
        *map(_line, document["figures"]),
        "",
        *_notes(document["figures"]),
    ]
    if any(figure["piece"] == "top" for figure in document["figures"]):
        lines += ["", _BEFORE]
    missing = sorted(set(document["request"]["work"]) - {figure["piece"] for figure in document["figures"]})
    if missing:
        lines += ["", f"The run was stopped before: {', '.join(missing)}."]
    return results_page("Mixing speed", finding(document["figures"]), [*lines, ""], wrote)


def finding(figures: Sequence[Mapping[str, Any]]) -> str:
    """In how many comparisons ours was the faster, and which aims were met, in one sentence."""
    if not figures:
        return "Nothing was measured."
    ratios = [figure["ratio"] for figure in figures]
    missed = [
        f"{figure['work']} ({_short_of(figure['ratio'], figure['reach'])})"
        for figure in figures
        if figure["ratio"] < figure["reach"]
    ]
    n_faster = sum(ratio > 1 for ratio in ratios)
    return (
        f"Of {len(figures)} comparisons ours was faster in {n_faster} (all ratios: {min(ratios):,.2f} to "
        f"{max(ratios):,.2f}); {aims_met(len(figures) - len(missed), missed)}."
    )


def _short_of(ratio: float, reach: float) -> str:
    return f"just under {reach:g}" if round(ratio, 2) >= reach else f"{ratio:,.2f}, at least {reach:g}"


def _line(figure: Mapping[str, Any]) -> str:
    ms = {name: f"{1000 * found['median']:,.1f}" for name, found in figure["seconds"].items()}
    ours = [name for name in ms if name.startswith("ours")]
    first = ", ".join(ms[name] + name.removeprefix("ours").replace(",", "").replace("_", " ") for name in ours)
    others = ", ".join(f"{name} {value}" for name, value in ms.items() if name not in ours)
    met = "" if figure["ratio"] >= figure["reach"] else " (not reached)"
    return (
        f"| {figure['work']} | {figure['peer']} | {figure['ratio']:,.2f} | >= {figure['reach']:g}{met} "
        f"| {first} | {others} |"
    )


def _notes(figures: list[Mapping[str, Any]]) -> list[str]:
    notes: list[str] = []
    for figure in figures:
        text = _note(figure)
        if text and text not in notes:
            notes += [text, ""]
    return notes[:-1]


def _note(figure: Mapping[str, Any]) -> str | None:
    if "ratio_streamed" in figure:
        return (
            "The format check as published decodes all rows first. Its streamed form, one row in memory as ours, takes "
            f"{figure['ratio_streamed']:.2f} of our time. Ours names the row and field of every problem, and gives "
            "canonical JSON."
        )
    if "ratio_from_file" in figure:
        return (
            "The mix starts from the user's rows as read, and from the pool file that the end of a scoring run "
            f"makes ({figure['pool_built_s']:,.0f} s here). With the user's file read and checked anew "
            f"the ratio is {figure['ratio_from_file']:.2f}, while datasets keeps its rows loaded. Tokens are not "
            "counted: the pool has no renderer."
        )
    if "ratio_new_process" in figure:
        return (
            "The first mix is that of a process which has mixed from other pools before, as a service has; its files "
            "are in the memory of the system, as right after they were written. In a new process, which also opens "
            f"DuckDB, the ratio is {figure['ratio_new_process']:.2f}."
        )
    if "planted" in figure:
        found = ", ".join(f"{name} {count:,}" for name, count in figure["found"].items())
        return (
            f"{figure['planted']:,} user rows are near copies of pool rows; pool rows found: {found} (ours by exact "
            f"Jaccard similarity, datasketch by its estimate). Prepared once: {_prepared(figure)}. Ours reads "
            f"{figure['signatures_mib']:,} MiB of signatures from disk; the process, which also holds the peer's "
            f"index, peaked at {figure['peak_memory_mib']:,} MiB."
        )
    if "choices" in figure:
        return (
            f"Choices are made from a pool of {figure['n_rows']:,} rows. Ours also counts the rows of each reason; all "
            "ways are checked to choose the same rows. Ours maps its pool file, an uncompressed Arrow file; the peers "
            "scan a Parquet file of the same frame, which Polars scans faster than an Arrow file. Ours was made once: "
            f"{_prepared(figure)}."
        )
    return None


def _prepared(figure: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in figure["prepared_s"].items())
