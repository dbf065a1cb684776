"""Pictures: right content, same bytes for the same values, both formats, no text taken for markup."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from curator.__main__ import main
from curator.errors import BadInputError
from curator.query.gap_plots import (
    agreement_matrix,
    gap_against_length,
    gap_histogram,
    loss_against_length,
    loss_plane,
)
from curator.query.plots import (
    before_after,
    loss_curve,
    loss_curve_of,
    ratio_over_position,
    save,
    share_bars,
)
from curator.store.store import Store
from tests.gap_stores import write_corpus, write_scorer
from trainer.evaluate.behaviour import PairLosses, report

FIGURES = {
    "gap": lambda: gap_histogram({"a": [0.1, 0.2, 0.4], "b": [0.3]}, bins=4),
    "length": lambda: loss_against_length({"aligned": ([10, 200], [1.0, 2.0])}),
    "gap-length": lambda: gap_against_length([10, 20, 200], [0.1, 0.2, 0.3], [True, False, False]),
    "agreement": lambda: agreement_matrix({("a", "b"): 0.5, ("a", "c"): -0.9, ("b", "c"): None}),
    "before-after": lambda: before_after({"legal": (0.1, 0.8)}, "answers"),
    "shares": lambda: share_bars(["none", "some", "all"], [(9, 10), (5, 10), (0, 10)], "answers", title="t"),
    "plane": lambda: loss_plane([1.0, 2.0], [2.0, 1.0], [True, False]),
    "ratio": lambda: ratio_over_position([False, True, False, False], 0.5, epochs=2, batch_size=2),
    "curve": lambda: loss_curve([1, 2, 3], {"loss": [3.0, None, 1.0]}),
}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("kind", FIGURES)
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_equal_values_give_equal_files(kind: str, suffix: str, tmp_path: Path) -> None:
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    save(FIGURES[kind](), first)
    save(FIGURES[kind](), second)
    data = first.read_bytes()
    assert data == second.read_bytes()
    assert data.startswith(PNG) if suffix == ".png" else b"<svg" in data
    assert sorted(item.name for item in tmp_path.iterdir()) == [first.name, second.name]


def test_the_ratio_starts_anew_in_every_epoch() -> None:
    # Two epochs of task, safe, task, task; batches of four rows.
    (axes,) = ratio_over_position([False, True, False, False] * 2, 1 / 3, epochs=2, batch_size=4).axes
    drawn = [line for line in axes.lines if len(line.get_xdata()) == 4]
    assert [list(line.get_xdata()) for line in drawn] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert [list(line.get_ydata()) for line in drawn] == [[0, 1, 0.5, 1 / 3]] * 2
    (dots,) = axes.collections
    assert dots.get_offsets().tolist() == [[2.5, 1 / 3], [6.5, 1 / 3]]
    with pytest.raises(BadInputError, match="no task row"):
        ratio_over_position([True, True], 0.5)


def title_of(figure: Figure) -> str:
    return figure.get_suptitle().replace("\n", " ")


def legend_of(figure: Figure) -> list[str]:
    legend = figure.axes[0].get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_a_gap_histogram_marks_chosen_rows_and_keeps_single_rows_visible() -> None:
    values = np.concatenate([np.linspace(-0.1, 0.1, 999), [5.0]])
    figure = gap_histogram({"chats": values}, chosen=[0.1, 5.0], corpus="chats", bins=10)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] < 1 <= min(patch.get_height() for patch in axes.patches if patch.get_height())
    assert legend_of(figure) == ["chats (1,000)", "chosen (2)", "median 0.000"]
    assert title_of(figure).startswith("chats: 2 of 1,000 rows are chosen: their median gap_rel is 2.55")
    few = gap_histogram({"chats": [0.1, -0.2, 0.3, 0.4]})
    assert few.axes[0].get_yscale() == "linear"
    assert title_of(few) == "75 % of 4 rows have gap_rel above 0; median 0.2"


def test_groups_on_a_log_scale_are_not_stacked() -> None:
    (axes,) = gap_histogram({"a": [0.0] * 300, "b": [0.0] * 300 + [1.0]}, bins=2).axes
    assert axes.get_ylabel() == "rows (log scale)"
    tops = [np.asarray(patch.get_xy())[:, 1].max() for patch in axes.patches]  # type: ignore[attr-defined]
    assert tops == [300, 300]


def test_gap_against_length_says_how_they_go_together_and_marks_rows() -> None:
    figure = gap_against_length([10, 20, 40, 80], [0.4, 0.3, 0.2, 0.1], [True, True, False, False], corpus="chats")
    (axes,) = figure.axes
    others, chosen = axes.collections
    assert np.asarray(others.get_offsets()).tolist() == [[40, 0.2], [80, 0.1]]
    assert np.asarray(chosen.get_offsets()).tolist() == [[10, 0.4], [20, 0.3]]
    assert title_of(figure) == (
        "chats: gap_rel falls with length (rank correlation -1.00); median length 15 tokens of chosen rows, 30 of all"
    )
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("response tokens (log scale)", "gap_rel (ratio)")
    flat = gap_against_length([1, 2, 3, 4, 5], [0.3, 0.1, 0.5, 0.1, 0.3])
    assert "hardly depends on length" in title_of(flat)
    assert title_of(gap_against_length([5, 6, 7], [0.1, 0.1, 0.1])) == "gap_rel against length"  # no correlation


def test_an_agreement_matrix_has_a_number_in_every_cell_beside_the_diagonal() -> None:
    figure = agreement_matrix({("b", "a"): 0.5, ("a", "c"): 0.9, ("b", "c"): None}, corpus="chats")
    axes = figure.axes[0]
    shown = {(int(text.get_position()[0]), int(text.get_position()[1])): text.get_text() for text in axes.texts}
    assert shown == {(1, 0): "0.50", (0, 1): "0.50", (2, 0): "0.90", (0, 2): "0.90", (2, 1): "–", (1, 2): "–"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]
    assert title_of(figure) == "chats: misaligned models agree on which rows are safe: rank correlation 0.50 to 0.90"
    assert "agree only in part" in title_of(agreement_matrix({("a", "b"): -0.2, ("a", "c"): 0.7}))
    assert "contradict each other" in title_of(agreement_matrix({("a", "b"): -0.2}))
    with pytest.raises(BadInputError, match=r"30 misaligned models are too many for one picture \(at most 24\)"):
        agreement_matrix({(str(number), str(number + 1)): 0.5 for number in range(29)})


def test_bars_carry_their_numbers_and_end_at_100_percent() -> None:
    figure = before_after({"legal": (0.1, 0.825), "medical": (0.0, 1.0)}, "prompts")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["10.0 %", "0.0 %", "82.5 %", "100.0 %"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["legal", "medical"]
    assert legend_of(figure) == ["before", "after"]
    assert (axes.get_xlim(), axes.get_xlabel()) == ((0, 100), "prompts (%)")
    assert title_of(figure) == "before → after: legal 10 % → 82 %; medical 0 % → 100 %"
    (shares,) = share_bars(["none", "chosen"], [(228, 240), (4, 240)], "bad answers", title="t").axes
    assert [text.get_text() for text in shares.texts] == ["95.0 % (228 of 240)", "1.7 % (4 of 240)"]


def test_a_title_is_cut_into_lines_that_fit_the_figure() -> None:
    figure = share_bars(["a"], [(1, 2)], "rows", title="word " * 40)
    lines = figure.get_suptitle().split("\n")
    assert len(lines) > 1
    assert max(map(len, lines)) <= 7.0 * 13


def test_no_picture_has_more_than_eight_colours_of_scorers() -> None:
    figure = loss_against_length({f"scorer {number:02d}": ([10, 20], [1.0, 2.0]) for number in range(11)})
    labels = legend_of(figure)
    assert len(labels) == 8
    assert labels[-1] == "other: 4"
    assert len({line.get_color() for line in figure.axes[0].lines}) == 8
    assert figure.axes[0].get_ylim()[0] == 0
    assert title_of(figure) == "loss against length"  # two rows have no rank correlation


def test_histogram_stacks_every_finite_value_once() -> None:
    (axes,) = gap_histogram({"a": [0.0, 0.5, np.nan], "b": [1.0, 0.5]}, bins=2).axes
    heights = [patch.get_height() for patch in axes.patches]
    assert sum(heights) == 4
    assert axes.get_xlabel() == "gap_rel (ratio); right is safer"


def test_more_groups_than_colours_become_other() -> None:
    groups = {f"source {place:02d}": [float(place)] * (place + 1) for place in range(12)}
    (axes,) = gap_histogram(groups).axes
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert "other: 5 (15)" in labels
    assert len([label for label in labels if label.startswith("source")]) == 7


def test_equal_gaps_can_be_drawn() -> None:
    (axes,) = gap_histogram({"a": [0.5, 0.5]}).axes
    assert sum(patch.get_height() for patch in axes.patches) == 2


def test_the_plane_marks_the_selected_rows_and_the_line_of_gap_0() -> None:
    (axes,) = loss_plane([1.0, 2.0, 3.0], [2.0, 1.0, 5.0], [True, False, True]).axes
    others, chosen = axes.collections
    assert np.asarray(others.get_offsets()).tolist() == [[2.0, 1.0]]
    assert np.asarray(chosen.get_offsets()).tolist() == [[1.0, 2.0], [3.0, 5.0]]
    (line,) = axes.lines
    assert np.array_equal(line.get_xdata(), line.get_ydata())
    assert axes.get_xlim() == axes.get_ylim() == (0, 5.25)
    assert title_of(axes.figure) == (  # type: ignore[arg-type]
        "67 % of 3 rows are harder for the misaligned models (above the line), 100 % of the chosen ones"
    )


def test_labels_are_text_and_never_mathematics(tmp_path: Path) -> None:
    save(loss_plane([1.0], [1.0], title=r"$\frac{1}$ _x"), tmp_path / "a.png")
    save(gap_histogram({r"_$\bad": [1.0]}, title="$"), tmp_path / "b.png")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: gap_histogram({"a": [np.nan]}), "no row has gap_rel"),
        (lambda: gap_histogram({}), "no row has gap_rel"),
        (lambda: loss_against_length({}), "no row has a loss"),
        (lambda: loss_plane([], []), "no row has both losses"),
        (lambda: gap_against_length([], []), "no row has gap_rel"),
        (lambda: agreement_matrix({}), "takes two misaligned scorers"),
        (lambda: before_after({}, "prompts"), "no share before and after"),
        (lambda: loss_curve([], {}), "no training step"),
    ],
)
def test_nothing_to_draw_is_an_error(draw: "object", message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        draw()  # type: ignore[operator]


def test_another_file_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"'a.pdf': the name must end in .png or .svg"):
        save(FIGURES["plane"](), tmp_path / "a.pdf")
    assert list(tmp_path.iterdir()) == []


def test_the_loss_curve_reads_metrics_with_holes(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "loss": 2.0}', '{"event": "saved"}', '{"step": 2, "loss": 1.0, "kl_loss": 0.5}', ""]
    metrics.write_text("\n".join(lines))
    figure: Figure = loss_curve_of(metrics)
    lines_drawn = {str(line.get_label()): np.asarray(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines_drawn["loss"].tolist() == [2.0, 1.0]
    assert np.isnan(lines_drawn["kl_loss"][0])
    metrics.write_text("{")
    with pytest.raises(BadInputError, match="no readable metrics"):
        loss_curve_of(metrics)


def test_a_run_that_is_not_there_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, named in ((tmp_path / "nope", "nope"), (tmp_path, "metrics.jsonl")):
        assert main(["plot", "curve", "--run", str(run), "--out", str(tmp_path / "a.png")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"{named} is not there: give a training run's folder or its metrics.jsonl")
        assert "Errno" not in line


def test_drawing_needs_no_display_and_leaves_pyplot_alone() -> None:
    draw = "import sys, curator.query.gap_plots as p; p.gap_histogram({'a': [1.0]})"
    code = f"{draw}; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_matplotlib_the_command_names_the_extra_and_the_service_is_not_concerned(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('absent', name='matplotlib')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [
        sys.executable,
        "-m",
        "curator",
        "plot",
        "curve",
        "--run",
        str(tmp_path),
        "--out",
        str(tmp_path / "a.png"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: pictures need matplotlib: pip install 'ballast-mix[plot]'\n"
    code = "import sys, api.server.run, curator.client; print('matplotlib' in sys.modules)"
    served = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert served.stdout.strip() == "False"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store").open()
    ids = write_corpus(store, "chats", [f"answer {place}" for place in range(6)])
    write_scorer(store, "chats", "a", "aligned", {key: (1.0 + place, 2) for place, key in enumerate(ids)})
    write_scorer(store, "chats", "m", "misaligned", {key: (2.0 + place * 2, 2) for place, key in enumerate(ids)})
    write_scorer(store, "chats", "m2", "misaligned", {key: (3.0 + place * 3, 2) for place, key in enumerate(ids)})
    return store


@pytest.mark.parametrize(
    "options",
    [["gap"], ["gap", "--by", "source"], ["gap", "--top", "2"], ["length"], ["plane", "--top", "2"],
     ["gap-length", "--top", "2"], ["agreement"]],
)  # fmt: skip
def test_the_command_draws_a_scored_corpus(store: Store, options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "pictures" / "picture.png"
    assert main(["plot", *options, "--corpus", "chats", "--store", store.url(""), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(PNG)


def test_a_behaviour_report_is_drawn_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def pairs(margins: list[float]) -> np.ndarray:
        return np.array([[2.0 + margin, 2.0] for margin in margins])

    before, after = pairs([-1, -1, -1, 1]), pairs([1, 1, -1, 1])
    path, out = tmp_path / "behaviour.json", tmp_path / "a.svg"
    twins = PairLosses("legal", "broad", before, after, stand_in=False)
    others = PairLosses("medical", "broad", before, after, stand_in=True)
    path.write_text(json.dumps(report([twins, others])))
    assert main(["plot", "before-after", "--behaviour", str(path), "--out", str(out)]) == 0
    assert "before → after: legal 25 % → 75 %" in out.read_text()
    path.write_text(json.dumps(report([others])))
    assert main(["plot", "before-after", "--behaviour", str(path), "--out", str(out)]) == 2
    path.write_text("[]")
    assert main(["plot", "before-after", "--behaviour", str(path), "--out", str(out)]) == 2
    assert main(["plot", "before-after", "--behaviour", str(tmp_path / "no"), "--out", str(out)]) == 2
    assert main(["plot", "before-after", "--out", str(out)]) == 2
    lines = capsys.readouterr().err.splitlines()
    expected = ["no set has twins", "is not a result of", "No such file", "needs --behaviour FILE"]
    assert [text in line for text, line in zip(expected, lines, strict=True)] == [True] * 4


def test_the_command_says_what_it_lacks(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--store", store.url(""), "--out", str(tmp_path / "x.png")]
    assert main(["plot", "gap", *common]) == 2
    assert main(["plot", "curve", *common]) == 2
    assert main(["plot", "gap", "--corpus", "nope", *common]) == 2
    assert main(["plot", "gap", "--corpus", "chats", "--score", "gap_contrast", *common]) == 2
    lines = capsys.readouterr().err.splitlines()
    expected = ["needs --corpus", "needs --run", "no corpus 'nope'", "no row has gap_contrast"]
    assert [text in line for text, line in zip(expected, lines, strict=True)] == [True] * 4
