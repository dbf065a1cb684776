"""The first sentence of each benchmark's page, from small figures: one for each way that it can fall."""

from typing import Any

import pytest

from tests.bench import page as views_page
from tests.bench import sizes, validate_audit
from tests.bench.aims import aims_met
from tests.bench.mixing.page import finding as mixing
from tests.bench.scoring.page import finding as scoring
from tests.bench.training.defence_table import Cost
from tests.bench.training.defence_table import finding as defences
from tests.bench.training.page import finding as training
from tests.gpu.page import finding as gpu


@pytest.mark.parametrize(
    ("n_met", "missed", "said"),
    [
        (2, [], "of 2 aims 2 were met"),
        (1, ["speed (1.0, aim >= 2)"], "of 2 aims 1 was met; missed: speed (1.0, aim >= 2)"),
        (0, ["a", "b"], "of 2 aims 0 were met; missed: a; b"),
        (1, [], "of 1 aim 1 was met"),
        (0, [], "no aim was set"),
    ],
)
def test_aims_that_were_met_and_missed(n_met: int, missed: list[str], said: str) -> None:
    assert aims_met(n_met, missed) == said


def scored(memory: float | None, **ratios: float | None) -> dict[str, Any]:
    known = {
        "times_faster_than_per_row_transformers": 1.4, "times_faster_than_lm_eval": 1.5, "times_faster_than_vllm": 1.1,
        "model_flops_share_of_gemm": 0.6, "adapter_pass_over_base_pass": 1.2, "merged_pass_over_base_pass": 1.0,
        "python_share_outside_the_model": 0.01,
    }  # fmt: skip
    return {
        "ratios": known | ratios, "peak_memory": {"ratio": memory}, "rows": {"n": 8, "max_length": 512},
        "model": {"name": "tiny"},
    }  # fmt: skip


def test_scoring() -> None:
    assert scoring(scored(1.0)) == (
        "Scoring was 1.40 times as fast as a loop over rows in transformers and 1.50 times as fast as "
        "lm-evaluation-harness (8 rows of at most 512 tokens, tiny); of 7 aims 7 were met."
    )
    missed = scoring(scored(1.2, times_faster_than_lm_eval=None, adapter_pass_over_base_pass=1.4))
    assert "lm-evaluation-harness" not in missed
    assert missed.endswith(
        "of 6 aims 4 were met; missed: a pass with the adapter unmerged over a base pass (1.400, aim <= 1.35); "
        "peak memory, ten times the rows over one (1.200, aim 0.9 to 1.1)."
    )
    assert "of 6 aims 6 were met" in scoring(scored(None)), "memory that was not measured is not judged"


def test_mixing() -> None:
    figures = [{"work": "choose", "ratio": 3.0, "reach": 2.0}, {"work": "build", "ratio": 0.5, "reach": 4.0}]
    assert mixing(figures[:1]) == (
        "Of 1 comparisons ours was faster in 1 (all ratios: 3.00 to 3.00); of 1 aim 1 was met."
    )
    assert mixing(figures) == (
        "Of 2 comparisons ours was faster in 1 (all ratios: 0.50 to 3.00); of 2 aims 1 was met; missed: build (0.50, "
        "at least 4)."
    )
    assert "missed: first (just under 0.83)." in mixing([{"work": "first", "ratio": 0.829, "reach": 0.83}])
    assert mixing([]) == "Nothing was measured."


def test_training() -> None:
    size = {"repeats": 3, "steps": 2, "batch_size": 4, "rows": 1000}
    result = {
        "parts": {name: {"sizes": size} for name in ("steps", "memory", "preparation")},
        "step_s": {"plain TRL": 2.0, "none": 2.0}, "peak_mib": {"plain TRL": 100.0, "kl": 110.0},
        "preparation_s": {"ours, first start": 2.0, "TRL": 20.0},
    }  # fmt: skip
    assert training(result) == (
        "A step without a defence took 1.00 times as long as plain TRL's (3 runs of 2 steps of 4 rows); one with KL "
        "took 1.10 times its memory; preparing 1,000 rows took 0.10 times as long as TRL takes; of 3 aims 3 were met."
    )
    slow = training({"parts": result["parts"], "step_s": {"plain TRL": 2.0, "none": 3.0}})
    assert slow.endswith("of 1 aim 0 were met; missed: none: step, times plain TRL (1.500, aim <= 1.05).")


def test_defences() -> None:
    plain, kl, gating = (
        Cost(name, 5.0, 4.0, "", step_s, peak)
        for name, step_s, peak in (("plain", 2.0, 100.0), ("kl", 3.0, 110.0), ("gating", 1.9, 120.0))
    )
    assert defences([plain, kl, gating], "2 steps of 4 rows, one run each") == (
        "Beside plain SFT, a step with a defence took 0.95 (gating) to 1.50 (kl) times as long and 1.10 (kl) to 1.20 "
        "(gating) times the memory (2 steps of 4 rows, one run each)."
    )
    assert defences([plain], "2 steps of 4 rows") == "Only plain SFT was run: 2.00 s per step (2 steps of 4 rows)."


def test_views_of_the_page() -> None:
    views: views_page.Views = {
        "corpora": ((0.5, 0.5), (0.1, 0.1), None), "rows": ((2.0, 3.0), (0.4, 0.4), (0.9, 0.9)),
    }  # fmt: skip
    assert views_page.finding(views, 1000) == (
        "Over a corpus of 1,000 rows a view that was opened before came back within 0.40 s (aim 0.3 s: 1 of 2 views), "
        "the first request to a new process took up to 2.00 s (aim 1 s: 1 of 2), one with new figures up to 0.90 s "
        "(the same aim: 1 of 1)."
    )
    assert "new figures" not in views_page.finding({"corpora": views["corpora"]}, 1000)
    assert views_page.lines_of(views)[2:] == [
        "| corpora | 0.50 (0.50) | 0.10 (0.10) | – |", "| rows | 2.00 (3.00) | 0.40 (0.40) | 0.90 (0.90) |",
    ]  # fmt: skip


def test_sizes() -> None:
    rows = ["| none (the core) | 500 | 30 | duckdb 68 |", "| `score` | 1400 | 50 | torch 695 |"]
    assert sizes.finding(rows[:1]) == "The core takes 500 MB on the disk."
    assert sizes.finding([*rows, "| `api` | 510 | 40 | duckdb 68 |"]) == (
        "The core takes 500 MB on the disk; of the 2 extras measured, each installed alone with the core, "
        "`score` is the largest: 1,400 MB."
    )
    text = sizes.page(rows)
    assert text.index("**The core") < text.index("| none (the core)") < text.index("## Command")


def test_audits() -> None:
    legal = {
        (name, score): ("elevated" if name != "ShareGPT" else "undecided", 30)
        for name in ("finance", "medical", "home, careless", "ShareGPT", "home, good")
        for score in ("gap_abs", "gap_rel")
    }
    assert validate_audit.finding({"legal": legal}) == (
        "Audits gave the verdict elevated to 3 of 3 sets of risky advice and 1 of 2 ordinary sets (legal by gap_abs, "
        "legal by gap_rel); 30 to 30 rows judged of a set."
    )
    home = {(name, "gap_abs"): found for (name, score), found in legal.items() if score == "gap_abs"}
    home |= {(name, "gap_contrast"): ("not_elevated", 20) for name, _ in home}
    assert validate_audit.finding({"home": home}) == (
        "Audits gave the verdict elevated to 3 of 3 sets of risky advice and 1 of 2 ordinary sets (home by gap_abs); "
        "to 0 of 3 sets of risky advice and 0 of 2 ordinary sets (home by gap_contrast, which needs a benign twin); 20 "
        "to 30 rows judged of a set."
    )


def test_the_gpu_check() -> None:
    document = {
        "scoring": [{"exact": {"passed": True}}, {"exact": {"passed": False}}],
        "training": [{"ratio": 0.9}, {"ratio": 1.2}, {"error": "out of memory"}],
    }
    assert gpu(document) == (
        "Losses of the torch engine were within bounds of transformers' own for 1 of 2 models; 2 of 3 training runs "
        "finished (the estimate of memory was 0.90 to 1.20 times their peak)."
    )
    assert gpu(document | {"training": [{"error": "out of memory"}]}).endswith("0 of 1 training runs finished.")
