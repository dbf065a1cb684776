"""Pictures: right content, same bytes for the same values, both formats, no text taken for markup."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from curator.__main__ import main
from curator.errors import BadInputError
from curator.query.plots import (
    gap_histogram,
    loss_against_length,
    loss_curve,
    loss_curve_of,
    loss_plane,
    ratio_over_position,
    save,
)
from curator.store.store import Store
from tests.gap_stores import write_corpus, write_scorer

FIGURES = {
    "gap": lambda: gap_histogram({"a": [0.1, 0.2, 0.4], "b": [0.3]}, bins=4),
    "length": lambda: loss_against_length({"aligned": ([10, 200], [1.0, 2.0])}),
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


def test_histogram_stacks_every_finite_value_once() -> None:
    (axes,) = gap_histogram({"a": [0.0, 0.5, np.nan], "b": [1.0, 0.5]}, bins=2).axes
    heights = [patch.get_height() for patch in axes.patches]
    assert sum(heights) == 4
    assert axes.get_xlabel() == "gap_rel (ratio)"


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
    code = (
        "import sys, curator.query.plots as p; p.gap_histogram({'a': [1.0]}); print('matplotlib.pyplot' in sys.modules)"
    )
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
    code = "import sys, api.server, curator.client; print('matplotlib' in sys.modules)"
    served = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert served.stdout.strip() == "False"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store").open()
    ids = write_corpus(store, "chats", [f"answer {place}" for place in range(6)])
    write_scorer(store, "chats", "a", "aligned", {key: (1.0 + place, 2) for place, key in enumerate(ids)})
    write_scorer(store, "chats", "m", "misaligned", {key: (2.0 + place * 2, 2) for place, key in enumerate(ids)})
    return store


@pytest.mark.parametrize("options", [["gap"], ["gap", "--by", "source"], ["length"], ["plane", "--top", "2"]])
def test_the_command_draws_a_scored_corpus(store: Store, options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "pictures" / "picture.png"
    assert main(["plot", *options, "--corpus", "chats", "--store", store.url(""), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(PNG)


def test_the_command_says_what_it_lacks(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--store", store.url(""), "--out", str(tmp_path / "x.png")]
    assert main(["plot", "gap", *common]) == 2
    assert main(["plot", "curve", *common]) == 2
    assert main(["plot", "gap", "--corpus", "nope", *common]) == 2
    assert main(["plot", "gap", "--corpus", "chats", "--score", "gap_contrast", *common]) == 2
    lines = capsys.readouterr().err.splitlines()
    expected = ["needs --corpus", "needs --run", "no corpus 'nope'", "no row has gap_contrast"]
    assert [text in line for text, line in zip(expected, lines, strict=True)] == [True] * 4
