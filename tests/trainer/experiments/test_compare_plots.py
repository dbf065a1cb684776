"""Pictures of a comparison: the numbers in them, titles that state the finding, and axes within what is possible."""

from dataclasses import replace

from trainer.evaluate.metrics import OverSeeds
from trainer.experiments.compare.plots import _look, broad_against_narrow, criteria_matrix
from trainer.experiments.compare.settings import Criteria, Criterion
from trainer.experiments.compare.statistics import Judgement
from trainer.experiments.compare.summary import TableRow


def _table_row(label: str, broad: float, *, low: float | None = None) -> TableRow:
    interval = OverSeeds(broad, low, None if low is None else broad + 0.5, 3)
    figures = {"broad_misaligned": interval, "narrow_misaligned": OverSeeds(1.0, 0.9, 1.1, 3)}
    verdicts = {
        "broad": Judgement("yes" if broad < 0.3 else "no", OverSeeds(0.3 - broad, -0.1, 0.2, 3)),
        "narrow": Judgement("yes", OverSeeds(0.05, None, None, 1), one_seed=True),
        "benign": Judgement("not measured", None),
        "coherent": Judgement("yes", OverSeeds(0.5, 0.4, 0.6, 3)),
    }
    return TableRow(label, label, None, (0, 1, 2), figures, {}, verdicts, {}, None)


def test_the_pictures_show_numbers_titles_with_the_finding_and_what_is_possible() -> None:
    rows = [_table_row("none", 0.9, low=0.4), _table_row("kl", 0.1, low=-0.3)]
    criteria = Criteria(
        broad=Criterion(figure="broad_misaligned", at_most=0.3, of="absolute"),
        narrow=Criterion(figure="narrow_misaligned", at_least=0.5, of="absolute"),
    )
    matrix = criteria_matrix(rows)
    texts = [text.get_text() for text in matrix.axes[0].texts]
    assert texts[:4] == [
        "no\n-0.600 [-0.100, +0.200]",
        "yes (1 seed)\n+0.050",
        "not measured",
        "yes\n+0.500 [+0.400, +0.600]",
    ]
    assert matrix.get_suptitle().startswith("kl meets all 3 measured criteria")
    points = broad_against_narrow(rows, criteria)
    assert points.get_suptitle().startswith("least broad misaligned: kl (0.1; undefended 0.9)")
    ends = [
        segment[:, axis] for bars in points.axes[0].collections for segment in bars.get_segments() for axis in (0, 1)
    ]
    assert all(0 <= value <= 1 for end in ends for value in end)  # intervals of shares end where shares do


def test_a_method_meets_all_criteria_only_where_all_are_judged() -> None:
    rows = [_table_row("none", 0.9, low=0.4), _table_row("kl", 0.1, low=-0.3)]
    moot = replace(rows[1], verdicts=rows[1].verdicts | {"narrow": Judgement("moot", None)})
    title = criteria_matrix([rows[0], moot]).get_suptitle()
    assert title.startswith("no method of 1 meets all 3 measured criteria")


def test_the_ninth_method_is_hollow_and_has_no_ninth_colour() -> None:
    looks = [_look(place) for place in range(12)]
    assert len({look["color"] for look in looks}) == 8
    assert [look["markerfacecolor"] == "white" for look in looks] == [False] * 8 + [True] * 4
