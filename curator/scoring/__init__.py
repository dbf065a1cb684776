"""Scoring: one pass per model over a corpus.

In: a corpus, a renderer and an engine. Out: Parquet parts with a loss (as sum and count) or a reason for every row, and
`scorer.json`, written last. `run.score_corpus` does it and needs no torch; `engines` compute. `blocks` cuts the corpus,
`worker` scores a block and `parts` writes its file, named by its rows: workers on one block write the same file, and
only listing the parts takes a lock. `shards` splits a corpus among separate commands. `faults` continues after an
engine died, `recheck` and `check` score rows again, `identity` says which losses may be compared.
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
