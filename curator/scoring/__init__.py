"""Scoring: one pass per model over a corpus, losses as sums and counts in Parquet parts.

`run` does the book-keeping and needs no torch; `torch_engine` is the default engine and is imported only when
a model has to run. Other engines implement `engine.Engine`.
"""

from curator.scoring.engines.base import Engine, Reference, RowLoss
from curator.scoring.identity import (
    check_model_dir,
    measure_id,
    model_identity,
    model_window,
    scorer_id,
)
from curator.scoring.request import Sample, ScoreReport, ScoreRequest
from curator.scoring.run import score_corpus

__all__ = [
    "Engine",
    "Reference",
    "RowLoss",
    "Sample",
    "ScoreReport",
    "ScoreRequest",
    "check_model_dir",
    "measure_id",
    "model_identity",
    "model_window",
    "score_corpus",
    "scorer_id",
]
