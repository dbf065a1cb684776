"""What `python -m tests.bench training` found, beside what it aims at: lines for people, and a page."""

from collections.abc import Iterator, Mapping
from typing import Any

from tests.bench.aims import aims_met
from tests.bench.training.prepare import CACHED, FIRST, TRL
from tests.bench.training.steps import PLAIN, REFERENCE
from trainer.runs.page import results_page

# Aims: at most so many times a plain TRL step; at most so much of a plain step over the reference forward.
STEP_AIMS = {"none": 1.05, "steering": 1.10, "treft": 1.25, "gating": 1.15}
EXTRA_AIM, PEAK_AIM = 0.3, 1.15
PREPARATION_AIMS = {FIRST: 5.0, CACHED: 20.0}


def lines_of(result: Mapping[str, Any]) -> list[str]:
    """One table of figures and aims, then the seconds behind them."""
    lines = ["| figure | value | aim | met |", "|---|---|---|---|"]
    for name, value, aim, met in _figures(result):
        lines.append(f"| {name} | {value:.3f} | {aim} | {'yes' if met else 'no'} |")
    lines.append("")
    if "step_s" in result:
        lines += ["| variant | s per step | against plain TRL |", "|---|---|---|"]
        plain = result["step_s"][PLAIN]
        lines += [f"| {name} | {value:.3f} | {value / plain:.3f}x |" for name, value in result["step_s"].items()]
        lines += [""]
    lines += [f"- peak memory, {name}: {value:,.0f} MiB" for name, value in result.get("peak_mib", {}).items()]
    if "preparation_s" in result:
        n_rows = result["parts"]["preparation"]["sizes"]["rows"]
        processor = result.get("preparation_cpu_s", {})
        for name, value in result["preparation_s"].items():
            spent = f", {processor[name]:.2f} of a processor" if name in processor else ""
            lines.append(f"- {n_rows:,} rows ready, {name}: {value:.2f} s{spent}")
    return lines


def page(result: Mapping[str, Any], command: str) -> str:
    """The lines as a Markdown page that ends with command, machine and date."""
    lines = [
        "Medians of interleaved repeats. Plain TRL is `SFTTrainer` with the same LoRA on every linear layer.",
        "",
        *lines_of(result),
        "",
    ]
    measured = [_measured(part, entry["sizes"], entry["machine"]) for part, entry in result["parts"].items()]
    return results_page("What training costs", finding(result), lines, [f"Written by `{command}`.", "", *measured])


def finding(result: Mapping[str, Any]) -> str:
    """Time and memory beside plain TRL, and which aims were met, in one sentence."""
    said, sizes = [], {part: entry["sizes"] for part, entry in result["parts"].items()}
    steps, peaks, seconds = (result.get(name, {}) for name in ("step_s", "peak_mib", "preparation_s"))
    if "none" in steps:
        size = sizes["steps"]
        n = f"{size['repeats']} runs of {size['steps']} steps of {size['batch_size']} rows"
        said.append(
            f"a step without a defence took {steps['none'] / steps[PLAIN]:.2f} times as long as plain TRL's ({n})"
        )
    if "kl" in peaks:
        said.append(f"one with KL took {peaks['kl'] / peaks[PLAIN]:.2f} times its memory")
    if FIRST in seconds:
        rows = f"{sizes['preparation']['rows']:,} rows"
        said.append(f"preparing {rows} took {seconds[FIRST] / seconds[TRL]:.2f} times as long as TRL takes")
    figures = list(_figures(result))
    missed = [f"{name} ({value:.3f}, aim {aim})" for name, value, aim, met in figures if not met]
    text = "; ".join([*said, aims_met(len(figures) - len(missed), missed)])
    return f"{text[0].upper()}{text[1:]}."


def _measured(part: str, sizes: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    what = {
        "steps": f"{sizes['repeats']} repeats of {sizes['steps']} steps of {sizes['batch_size']} rows",
        "memory": f"{sizes['steps'] + 1} steps of {sizes['batch_size']} rows, a process each",
        "preparation": f"{sizes['repeats']} repeats of {sizes['rows']:,} rows",
    }[part]
    clock = "processor seconds (others used the cores too)" if sizes["clock"] == "cpu" else "wall-clock seconds"
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items() if found)
    return (
        f"- {part}: {what}, about {sizes['words']} words a turn; {clock}; {machine['date']}, {machine['device']}, "
        f"{machine['cores']} cores, {sizes['threads']} used, {machine['cpu_capability']}, {machine['dtype']}, load "
        f"average {machine['load_average']}; {versions}"
    )


def _figures(result: Mapping[str, Any]) -> Iterator[tuple[str, float, str, bool]]:
    """Name, value, aim as text, and whether it is met."""
    steps = result.get("step_s", {})
    for name, aim in STEP_AIMS.items():
        if name in steps:
            ratio = steps[name] / steps[PLAIN]
            yield f"{name}: step, times plain TRL", ratio, f"<= {aim:g}", ratio <= aim
    for name, extra in extra_in_plain_steps(steps).items():
        text = f"{name}: extra over the reference forward, in plain steps"
        yield text, extra, f"<= {EXTRA_AIM:g}", extra <= EXTRA_AIM
    peaks = result.get("peak_mib", {})
    if "kl" in peaks:
        ratio = peaks["kl"] / peaks[PLAIN]
        yield "kl: peak memory, times plain TRL", ratio, f"<= {PEAK_AIM:g}", ratio <= PEAK_AIM
    preparation = result.get("preparation_s", {})
    for name, aim in PREPARATION_AIMS.items():
        if name in preparation:
            ratio = preparation[TRL] / preparation[name]
            yield f"data preparation, {name}: times faster than TRL", ratio, f">= {aim:g}", ratio >= aim


def extra_in_plain_steps(steps: Mapping[str, float]) -> dict[str, float]:
    """Time that a comparing defence adds to a plain step beyond the reference forward, in plain steps."""
    return {
        name: (steps[name] - steps[PLAIN] - steps[REFERENCE]) / steps[PLAIN]
        for name in ("kl", "ldifs", "kl+ldifs")
        if name in steps
    }
