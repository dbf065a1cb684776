"""Persona-model collapse from a table of ratings (method.md, "Evaluation"; arXiv 2605.12850).

With mu_pq and sigma_pq the mean and standard deviation over repeats of persona p's rating of question q:
susceptibility S = mean_q sqrt(mean_p (mu_pq - mubar_q)^2)   how far personas differ (population SD over personas)
robustness     R = 1 / mean_pq sigma_pq                      how steady one persona is (sample SD over repeats)
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator.console import say, say_json
from curator.errors import BadInputError
from trainer.evaluate.gate import (
    add_gate_option,
    check_figures,
    exit_code,
    parse_gates,
)
from trainer.evaluate.metrics import (
    N_RESAMPLES,
    Floats,
    Interval,
    bootstrap,
)

COLUMNS = ("persona_id", "question_id", "run_index", "rating")
NO_RATING = -1  # how the published tables mark an answer without a number


@dataclass(frozen=True)
class Ratings:
    """Means and standard deviations over repeats, (P, Q); nan where a cell has too few ratings."""

    mean_PQ: Floats
    sd_PQ: Floats
    n_ratings: int
    n_missing: int


@dataclass(frozen=True)
class Collapse:
    """S and R with intervals over personas, and what the table lacked."""

    susceptibility: Interval
    robustness: Interval
    n_personas: int
    n_questions: int
    n_ratings: int
    n_missing: int


def read_ratings(path: Path) -> Ratings:
    """Cells of a Parquet table with one row per rating; -1 and null are missing.

    Raises BadInputError for an unreadable file, absent columns, or a table without two ratings in any cell.
    """
    try:
        table = pq.read_table(path, columns=list(COLUMNS))
    except (OSError, pa.ArrowInvalid) as error:
        raise BadInputError(f"{path}: no ratings table with columns {', '.join(COLUMNS)}: {error}") from error
    persona, n_personas = _codes(table["persona_id"])
    question, n_questions = _codes(table["question_id"])
    rating = table["rating"].cast(pa.float64()).to_numpy(zero_copy_only=False)
    given = ~np.isnan(rating) & (rating != NO_RATING)
    cell = (persona * n_questions + question)[given]
    mean, sd = _moments(cell, rating[given], n_personas * n_questions)
    if np.isnan(sd).all():
        raise BadInputError(f"{path}: no persona and question has two ratings, so that nothing tells their spread")
    shape = (n_personas, n_questions)
    return Ratings(mean.reshape(shape), sd.reshape(shape), int(given.sum()), int((~given).sum()))


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray[Any, np.dtype[np.int64]], int]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), len(encoded.dictionary)


def _moments(cell: np.ndarray[Any, Any], rating: Floats, n_cells: int) -> tuple[Floats, Floats]:
    """Mean and sample standard deviation of each cell; nan below one and two ratings."""
    count = np.bincount(cell, minlength=n_cells).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(cell, rating, n_cells) / count
        squares = np.bincount(cell, (rating - mean[cell]) ** 2, n_cells)
        return mean, np.sqrt(np.where(count > 1, squares / (count - 1), np.nan))


def susceptibility(mean_PQ: Floats) -> float:
    """S of the personas in the rows; a question that none of them rated is left out, nan when that is every one."""
    rated_PQ = mean_PQ[:, ~np.isnan(mean_PQ).all(axis=0)]
    return float(np.nanmean(np.nanstd(rated_PQ, axis=0))) if rated_PQ.size else float("nan")


def robustness(sd_PQ: Floats) -> float:
    """R of the personas in the rows; infinite when no rating ever varies, nan when none of them has two ratings."""
    if np.isnan(sd_PQ).all():
        return float("nan")
    spread = float(np.nanmean(sd_PQ))
    return float("inf") if spread == 0 else 1 / spread


def collapse(ratings: Ratings, *, seed: int = 0, n_resamples: int = N_RESAMPLES) -> Collapse:
    """Both figures with intervals by bootstrap over personas."""
    n_personas, n_questions = ratings.mean_PQ.shape
    common = {"n_units": n_personas, "what": "personas", "seed": seed, "n_resamples": n_resamples}
    return Collapse(
        bootstrap(lambda rows: susceptibility(ratings.mean_PQ[rows]), **common),
        bootstrap(lambda rows: robustness(ratings.sd_PQ[rows]), **common),
        n_personas, n_questions, ratings.n_ratings, ratings.n_missing,
    )  # fmt: skip


def add_parser(subparsers: Any) -> None:
    """`python -m trainer.evaluate moral`."""
    parser = subparsers.add_parser(
        "moral", help="persona-model collapse (S and R) from a table of ratings",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python -m trainer.evaluate moral ratings.parquet --json",
    )  # fmt: skip
    parser.add_argument("table", type=Path, metavar="TABLE.parquet", help=f"columns {', '.join(COLUMNS)}")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON document for scripts")
    add_gate_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print S and R with their intervals; gates may name susceptibility and robustness."""
    gates = parse_gates(args.fail_if)
    check_figures(gates, ("susceptibility", "robustness"))
    found = collapse(read_ratings(args.table), seed=args.seed)
    figures = {"susceptibility": found.susceptibility.value, "robustness": found.robustness.value}
    code = exit_code(gates, figures)
    if args.json:
        say_json({
            "susceptibility": found.susceptibility.as_dict(), "robustness": found.robustness.as_dict(),
            "n_personas": found.n_personas, "n_questions": found.n_questions,
            "n_ratings": found.n_ratings, "n_missing": found.n_missing,
        })  # fmt: skip
        return code
    for label, figure in (("susceptibility S", found.susceptibility), ("robustness R", found.robustness)):
        say(f"{label:<18}{figure.value:8.3f}   95 % interval {figure.low:.3f} to {figure.high:.3f}")
    say(f"{found.n_personas} personas x {found.n_questions} questions, {found.n_ratings:,} ratings,"
        f" {found.n_missing:,} without a number")  # fmt: skip
    return code
