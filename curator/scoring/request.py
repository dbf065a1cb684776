"""What is asked of a scoring run and what it reports.

A seeded sample of a corpus by counter hash: a larger sample with the same seed contains the smaller one.

What a request comes to for the model at hand: its identity and its window.
"""

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from curator.errors import BadInputError
from curator.recipe.seeds import hash_keys
from curator.scoring.identity import (
    Identity,
    Measure,
    declared_identity,
    model_identity,
    model_window,
)
from curator.scoring.parts import MaskRule
from curator.scoring.shards import Shard

if TYPE_CHECKING:
    from curator.render import Renderer, RenderSettings


_SEED_NAME = "score-sample"


@dataclass(frozen=True)
class Sample:
    """`n` rows by seed. With `fit` only rows that can be scored count: rows are looked at in hash order, and
    those over the window, without a response token or not renderable are passed over."""

    n: int
    seed: int = 0
    fit: bool = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise BadInputError(f"a sample of {self.n} rows: ask for at least 1")

    def document(self) -> dict[str, Any]:
        """As recorded in scorer.json."""
        return {"n": self.n, "seed": self.seed, "fit": self.fit}


def covers(finished: dict[str, Any] | None, asked: Sample | None) -> bool:
    """Whether a run over `finished` (a recorded sample; None: the whole corpus) holds every row of `asked`."""
    if finished is None:
        return True
    if asked is None or finished["seed"] != asked.seed or finished["fit"] != asked.fit:
        return False
    return bool(finished["n"] >= asked.n)


def choose(ids: Collection[str], sample: Sample, fitting: Callable[[Collection[str]], Iterable[str]]) -> list[str]:
    """The sampled ids in hash order (ties by id); fewer than asked when the corpus has no more.

    `fitting` says which of the ids it is given can be scored; it is asked about ever larger prefixes of the
    hash order, and only when the sample wants that.
    """
    n_looked_at = sample.n * (2 if sample.fit else 1)
    fit: set[str] = set()
    known = 0
    while True:
        candidates = _first(ids, sample.seed, n_looked_at)
        if not sample.fit:
            return candidates
        fit.update(fitting(candidates[known:]))
        known = len(candidates)
        chosen = [item for item in candidates if item in fit][: sample.n]
        if len(chosen) == sample.n or known == len(ids):
            return chosen
        n_looked_at *= 2


def _first(ids: Collection[str], seed: int, n: int) -> list[str]:
    ordered = list(ids)
    keyed = zip(hash_keys(ordered, seed, _SEED_NAME), ordered, strict=True)
    return [item for _, item in heapq.nsmallest(n, keyed)]


Role = Literal["aligned", "misaligned", "benign"]

DEFAULT_MAX_LENGTH = 2_048  # method.md, "Training recipe"
BLOCK_TOKENS = {"cpu": 16_384, "cuda": 1_048_576}  # tens of seconds of work: what a kill can cost


@dataclass(frozen=True)
class Declared:
    """Hashes of weights that run elsewhere, as its operator declares them (SHA-256, hex)."""

    weights_sha256: str
    adapter_sha256: str | None = None


@dataclass(frozen=True)
class ScoreRequest:
    """One scorer over one corpus. `dtype` and `engine_version` are resolved values: they are hashed.

    `label` is a name for people and recipes; by default the adapter's folder name, else the model's. `check_rows`
    new rows are scored again when all have a loss (None: 1 %, at least 20; 0: none, which is recorded).
    With `declared` the folder need only hold the tokenizer and template. `price_per_hour` only shows a cost
    while the run goes on. `merge_adapter`: adapters are merged into the weights, which is another measure; the check
    then measures what that changes, so it cannot be left out. `rendering` is what the renderer was made with, for
    workers that make their own. `shard` scores one share of the rows and publishes only what all shards did. `parallel`
    is on how many devices and processes it runs, by option; it is kept with the check, for sums over devices round in
    another order.
    """

    corpus: str
    model_dir: Path
    role: Role
    domain: str | None = None
    adapter_dir: Path | None = None
    label: str | None = None
    engine: str = "torch"
    engine_version: str = ""
    dtype: str = "float32"
    mask_rule: MaskRule = "all"
    max_length: int = DEFAULT_MAX_LENGTH
    sample: Sample | None = None
    block_tokens: int = BLOCK_TOKENS["cpu"]
    check_rows: int | None = None
    price_per_hour: float | None = None
    declared: Declared | None = None
    merge_adapter: bool = False
    rendering: "RenderSettings | None" = None
    shard: Shard | None = None
    parallel: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.role != "aligned" and not self.domain:
            raise BadInputError(f"role {self.role} needs a domain: the narrow field the model was tuned on")
        if self.role == "aligned" and self.domain:
            raise BadInputError(f"role aligned takes no domain, {self.domain!r} was given")
        if self.check_rows is not None and self.check_rows < 0:
            raise BadInputError(f"{self.check_rows} rows to check: give 0 for none")
        if self.merge_adapter and self.adapter_dir is not None and self.check_rows == 0:
            raise BadInputError(
                "a merged adapter's error is measured on the rows scored again: leave --check-rows 0 out"
            )
        if self.max_length < 2:
            raise BadInputError(f"max length {self.max_length}: a row needs at least 2 tokens")


@dataclass
class ScoreReport:
    """What a run found and did; `n_rows_now` and the token counts leave out rows that were there already.

    `published` is False for a shard that found others at work: `n_missing` rows have no outcome yet, and
    `missing_shards` (of the same number of shards) have rows to score or to check.
    """

    scorer_id: str
    measure_id: str
    label: str
    role: str
    domain: str | None
    corpus: str
    revision: str
    dtype: str
    max_length: int
    n_rows: int = 0
    status_counts: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)  # rows whose part the template left out, accepted by name
    n_rows_now: int = 0
    n_tokens_now: int = 0
    seconds_now: float = 0.0
    skipped: bool = False
    check: dict[str, Any] | None = None
    shard: str | None = None
    published: bool = True
    n_missing: int = 0
    missing_shards: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As printed by `--json`."""
        return asdict(self)


def identity_of(request: ScoreRequest, renderer: "Renderer", window: int) -> Identity:
    """What the losses of a request depend on: measured from its folders, or declared."""
    measure = Measure(renderer, request.mask_rule, window, request.dtype, request.engine, request.engine_version)
    if request.declared is not None:
        return declared_identity(request.declared.weights_sha256, request.declared.adapter_sha256, measure)
    identity = model_identity(request.model_dir, request.adapter_dir, measure)
    # The aligned model's too, though it has no adapter: what may share a gap was scored with the same options.
    return {**identity, "adapter_mode": "merged"} if request.merge_adapter else identity


def effective_window(request: ScoreRequest) -> tuple[int, list[str]]:
    """The window in tokens that binds, and a note where the model's own is the smaller one."""
    if request.declared is not None:  # the caller asked the server
        return request.max_length, []
    own = model_window(request.model_dir)
    if own is None or own >= request.max_length:
        return request.max_length, []
    return own, [f"max length {request.max_length} lowered to {own}, the model's own window"]
