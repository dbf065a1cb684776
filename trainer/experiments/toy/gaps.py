"""The safe pool in a real store, scored by the product: ingest, one pass per model, the gap by sql/, selection."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from curator.corpus.ingest import IngestOptions, ingest
from curator.messages import canonical_messages, dump_messages, example_id
from curator.query.queries import gap_table, resolve_scorers
from curator.recipe import Pool as PoolRecipe
from curator.recipe.seeds import child_seed, permutation
from curator.recipe.strategies import (
    BottomGap,
    Coverage,
    Random,
    StrategySpec,
    TopGap,
)
from curator.render import Renderer
from curator.scoring import ScoreRequest, score_corpus
from curator.scoring.engines.torch_engine import TorchEngine
from curator.scoring.engines.torch_model import engine_version
from curator.select.candidates import Candidates, ColumnScores, ListedIds, Rows
from curator.select.select import SelectionRequest, select
from curator.store.store import Store
from trainer.experiments.toy.cells import SCORES, ScoreName
from trainer.experiments.toy.rows import ToyPool
from trainer.experiments.toy.tokens import conversation
from trainer.experiments.toy.world import Ints, World

CORPUS = "pool"
Texts = Callable[[Rows], list[str]]  # canonical JSON of some rows of a scored pool
Role = Literal["aligned", "misaligned", "benign"]


@dataclass(frozen=True)
class ToyScorer:
    """One model of the pool's gap: an adapter of the base, or the base itself as the aligned one."""

    label: str
    role: Role
    domain: str | None = None
    adapter: Path | None = None


@dataclass(frozen=True)
class ScoredPool:
    """The pool's rows in the order of their ids with each gap; all arrays have shape (N,)."""

    ids: tuple[str, ...]
    row: Ints  # place of the row in the pool as drawn
    gaps: dict[ScoreName, np.ndarray]
    mean_nll: dict[str, np.ndarray]  # by role: aligned, misaligned, benign

    def only(self, keep: np.ndarray) -> "ScoredPool":
        """The same pool with these rows alone."""
        return ScoredPool(
            tuple(np.array(self.ids)[keep].tolist()), self.row[keep], {n: g[keep] for n, g in self.gaps.items()},
            {role: loss[keep] for role, loss in self.mean_nll.items()},
        )  # fmt: skip


def score_pool(world: World, pool: ToyPool, base: Path, scorers: Sequence[ToyScorer], folder: Path) -> Store:
    """Ingest the pool and score it under every model; what is there already is skipped."""
    store = Store(folder / "store").open()
    source = folder / "pool.jsonl"
    lines = [json.dumps({"messages": conversation(world, row)}) + "\n" for row in pool.tokens]
    source.write_text("".join(lines), encoding="utf-8")
    ingest(store, [source], CORPUS, IngestOptions(strict=True))
    renderer = Renderer.from_folder(base)
    for scorer in scorers:
        request = ScoreRequest(
            CORPUS, base, scorer.role, domain=scorer.domain, adapter_dir=scorer.adapter, label=scorer.label,
            engine_version=engine_version(), max_length=64,
        )  # fmt: skip
        score_corpus(store, request, renderer, lambda: TorchEngine(base, device="cpu", dtype="float32"))
    return store


def scored_pool(store: Store, world: World, pool: ToyPool) -> ScoredPool:
    """The gaps of every row, as `sql/` defines them."""
    table = gap_table(store, resolve_scorers(store, PoolRecipe(corpus=CORPUS, rows=1)))
    place = {example_id(row_text(world, row)): index for index, row in enumerate(pool.tokens)}
    ids = table["example_id"].to_pylist()
    column = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names if "_" in name}
    return ScoredPool(
        tuple(ids), np.array([place[key] for key in ids]), {name: column[name] for name in SCORES},
        {role: column[f"mean_nll_{role}"] for role in ("aligned", "misaligned", "benign")},
    )  # fmt: skip


def pick(scored: ScoredPool, by: Literal["random", "bottom_gap", "shuffled"] | ScoreName, n: int, seed: int) -> Ints:
    """Rows of the pool, best first, by the product's own selection; `bottom_gap` turns gap_abs round, and `shuffled`
    deals its values out to other rows."""
    strategies: dict[str, StrategySpec] = {"random": Random(), "bottom_gap": BottomGap()}
    strategy = strategies.get(by, TopGap())
    score = scored.gaps[by if by in SCORES else "gap_abs"]
    if by == "shuffled":
        score = score[permutation(len(score), child_seed(seed, "organism shuffled gaps"))]
    return _selected(scored, score, SelectionRequest(n, strategy=strategy, seed=child_seed(seed, "organism selection")))


def pick_covering(scored: ScoredPool, by: ScoreName, n: int, strategy: Coverage, texts: Texts) -> Ints:
    """The same with a discount for prompts that are like those of rows already chosen (`coverage` of the product)."""
    return _selected(scored, scored.gaps[by], SelectionRequest(n, strategy=strategy), texts)


def row_texts(world: World, pool: ToyPool, scored: ScoredPool) -> Texts:
    """The canonical JSON of rows of a scored pool, by their places in it."""
    return lambda rows: [row_text(world, pool.tokens[place]) for place in scored.row[rows]]


def _selected(scored: ScoredPool, score: np.ndarray, request: SelectionRequest, texts: Texts | None = None) -> Ints:
    # The rows stand in the order of their ids; no filter asks for columns.
    scores = ColumnScores(pl.Series(score).fill_nan(None))
    candidates = Candidates(len(scored.ids), pl.DataFrame().select, ListedIds(scored.ids), scores, texts)
    return scored.row[select(candidates, request).chosen]


def row_text(world: World, row: Ints) -> str:
    """One row's canonical JSON, of which its id is made."""
    return dump_messages(canonical_messages(conversation(world, row)))
