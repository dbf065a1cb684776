"""The report on a corpus: deterministic, complete, and safe to show."""

from pathlib import Path

import pytest

from curator.__main__ import main
from curator.errors import BadInputError, MissingError
from curator.query.report import corpus_report
from curator.store.store import Store
from tests.gap_stores import write_corpus, write_scorer

ANSWERS = ["Sorry, I cannot", "Use | a <b>saw</b>\nnow", "Read `it`", "Too long to score"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store").open()
    ids = write_corpus(store, "chats", ANSWERS)
    gaps = dict(zip(ids[:3], (0.5, 3.0, -1.0), strict=True))
    write_scorer(store, "chats", "base", "aligned", dict.fromkeys(gaps, (20.0, 10)) | {ids[3]: "too_long"})
    write_scorer(
        store, "chats", "bad", "misaligned", {key: (20.0 + 10 * gap, 10) for key, gap in gaps.items()}, domain="tools"
    )
    return store


def test_the_report_states_coverage_quantiles_and_both_ends(store: Store) -> None:
    text = corpus_report(store, "chats")
    assert "4 distinct conversations" in text
    assert "| aligned | base | too\\_long | too\\_long | 1 |" in text
    assert "| misaligned | bad | not\\_scored | null | 1 |" in text
    assert "| gap\\_abs | 4 | 1 | -1 |" in text
    largest, smallest = (text.split(f"### {title} gap")[1].splitlines()[4] for title in ("Largest", "Smallest"))
    assert largest.startswith(r"| 1 | 1 | 3 | 2 | 5 | 10 | Use \| a &lt;b&gt;saw&lt;/b&gt; now |")
    assert smallest.startswith(r"| 1 | -0.333333 | -1 | 2 | 1 | 10 | Read \`it\` |")


def test_the_same_store_gives_the_same_text(store: Store) -> None:
    assert corpus_report(store, "chats") == corpus_report(store, "chats")


def test_options_reach_the_gap(store: Store) -> None:
    assert "eps 0.0" in corpus_report(store, "chats", eps=0.0)
    assert "| 1 | 1.5 | 3 |" in corpus_report(store, "chats", eps=0.0)
    assert "No gap yet" not in corpus_report(store, "chats")
    with pytest.raises(MissingError, match="hold_out 'sports' matches no"):
        corpus_report(store, "chats", hold_out=["sports"])
    with pytest.raises(BadInputError, match=r"hold_out \[tools\] leaves no misaligned scorer"):
        corpus_report(store, "chats", hold_out=["tools"])


def test_a_score_that_no_row_has_and_a_gap_without_signal_are_said(store: Store) -> None:
    text = corpus_report(store, "chats")
    assert "No row has gap_contrast: it takes a complete benign scorer" in text
    assert "signal" not in text
    ids = write_corpus(store, "flat", ANSWERS)
    losses = {key: (20.0 + place, 10) for place, key in enumerate(ids)}
    write_scorer(store, "flat", "base", "aligned", losses)
    write_scorer(store, "flat", "bad", "misaligned", losses)
    write_scorer(store, "flat", "twin", "benign", losses)
    text = corpus_report(store, "flat")
    assert "**The gap carries hardly any signal**: eight in ten rows have a gap_abs between 0 and 0 nats" in text
    assert "No row has" not in text


def test_an_aligned_scorer_without_any_loss_leaves_the_other_ones_gap(store: Store) -> None:
    ids = write_corpus(store, "half", ANSWERS)
    write_scorer(store, "half", "base", "aligned", dict.fromkeys(ids, (20.0, 10)))
    write_scorer(store, "half", "short", "aligned", dict.fromkeys(ids, "too_long"))
    write_scorer(store, "half", "bad", "misaligned", {key: (20.0 + n, 10) for n, key in enumerate(ids)})
    text = corpus_report(store, "half")
    assert "| gap\\_abs | 4 | 0 |" in text
    assert "| gap\\_abs | 4 | 4 |" in text
    assert "signal" not in text


def test_a_corpus_without_scores_has_a_report_too(store: Store) -> None:
    write_corpus(store, "bare", ["x"])
    text = corpus_report(store, "bare")
    assert "No scorer yet." in text
    assert "No gap yet" in text
    with pytest.raises(MissingError, match="no corpus 'nope'"):
        corpus_report(store, "nope")


def test_the_command_prints_or_writes(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["report", "--corpus", "chats", "--store", store.url("")]
    assert main(common) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "new" / "report.md"
    assert main([*common, "--out", str(out)]) == 0
    assert out.read_text() == printed
    assert [item.name for item in out.parent.iterdir()] == ["report.md"]
