"""docs/results/compare.md: every printed figure follows from the values by seed and prompt in the JSON beside it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.evaluate.metrics import over_seeds, stratified, two_level

PAGE = Path(__file__).parents[3] / "docs/results/compare.md"
FIGURES = {
    "broad, share": "broad_shift", "broad, margin": "broad_margin_shift", "narrow, share": "narrow_shift",
    "narrow, margin": "narrow_margin_shift", "perplexity ratio": "perplexity_ratio",
}  # fmt: skip
Values = dict[int, list[list[float]]]  # by seed: by domain, by prompt


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    """Rows of the JSON that have cells, by label."""
    document = json.loads(PAGE.with_suffix(".json").read_bytes())
    return {row["label"]: row for row in document["rows"] if row["cells"]}


def _values(row: dict[str, Any], figure: str) -> Values:
    """What a figure is a mean of; perplexity has one value a seed."""
    return {
        cell["seed"]: cell["prompts"].get(figure, [[cell["figures"][figure]]])
        for cell in row["cells"]
        if cell["figures"].get(figure) is not None
    }


def _minus(one: Values, other: Values) -> Values:
    return {
        seed: [(np.array(a) - np.array(b)).tolist() for a, b in zip(groups, other[seed], strict=True)]
        for seed, groups in one.items()
        if seed in other
    }


def _printed(values: Values, figure: str, *, sign: bool = False) -> str:
    """Mean and interval as the page prints them; a single seed has no interval over seeds."""
    form = "+.3f" if sign else ".3f"
    groups = [[np.array(group) for group in found] for found in values.values()]
    if len(groups) == 1:
        return format(np.mean([group.mean() for group in groups[0]]), form)
    if figure == "perplexity_ratio":
        item: Any = over_seeds([float(found[0][0]) for found in groups])
    else:
        item = two_level(groups)
    mean = np.mean([np.mean([group.mean() for group in found]) for found in groups])
    return f"{mean:{form}} ({item.low:{form}} to {item.high:{form}})"


def _tables(heading: str) -> dict[str, dict[str, str]]:
    """The first table under a heading: by first column, then by column."""
    text = PAGE.read_text(encoding="utf-8").partition(f"{heading}\n")[2]
    lines = [line for line in re.split(r"\n#", text)[0].splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {line[0]: dict(zip(head, line, strict=True)) for line in body}


def test_the_figures(rows: dict[str, dict[str, Any]]) -> None:
    printed = _tables("## Figures")
    assert set(printed) == set(rows)
    for label, row in rows.items():
        for head, figure in FIGURES.items():
            values = _values(row, figure)
            expected = _printed(values, figure)
            if len(values) == 1:
                low, high = row["over_prompts"][figure]
                expected += f" [{low:.3f} to {high:.3f}]"
            assert printed[label][head] == expected, (label, head)


def test_the_interval_over_the_prompts_of_a_single_seed(rows: dict[str, dict[str, Any]]) -> None:
    """Perplexity is left out: the JSON has one value of it a seed."""
    for label, row in rows.items():
        for figure in set(row["over_prompts"]) - {"perplexity_ratio"}:
            (groups,) = _values(row, figure).values()
            item = stratified([np.array(group) for group in groups])
            assert row["over_prompts"][figure] == pytest.approx([item.low, item.high], abs=1e-9), (label, figure)
        assert bool(row["over_prompts"]) == (len(row["seeds"]) == 1), label


@pytest.mark.parametrize(
    ("heading", "other"),
    [("### Minus the benign run, paired by seed", "benign"), ("### Minus the undefended run, paired by seed", "none")],
)
def test_the_differences(heading: str, other: str, rows: dict[str, dict[str, Any]]) -> None:
    printed = _tables(heading)
    assert set(printed) == set(rows) - {other}
    for label, line in printed.items():
        for head, figure in FIGURES.items():
            values = _minus(_values(rows[label], figure), _values(rows[other], figure))
            assert line[head] == _printed(values, figure, sign=True), (label, head)


def test_the_finding_and_what_was_not_run(rows: dict[str, dict[str, Any]]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    figure = "broad_margin_shift"
    beyond = _minus(_values(rows["none"], figure), _values(rows["benign"], figure))
    item = two_level([[np.array(group) for group in found] for found in beyond.values()])
    sentence = text.splitlines()[2]
    assert f"{item.value:+.3f} nats per token of margin (95 % interval {item.low:+.3f} to {item.high:+.3f})" in sentence
    assert sentence.startswith("There is misalignment") == (item.low > 0)
    figures = {label: row["difference_from_random"].get(figure) for label, row in rows.items()}
    told = {label: item for label, item in figures.items() if item}
    assert set(told) == {label for label in rows if label.startswith("interleaving++")}
    for label, chosen in told.items():
        low, high = chosen["low"], chosen["high"]
        amount = f"{label} {chosen['mean']:+.3f} nats per token of margin (95 % interval {low:+.3f} to {high:+.3f})"
        assert amount in sentence
        assert (f"{amount}, no clear difference" in sentence) == (low <= 0 <= high)
    assert ("The plan stops where there is nothing to prevent" in text) == (item.low <= 0)
