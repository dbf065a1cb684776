"""What is asked of a scoring run and what it reports."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from curator.errors import BadInputError
from curator.scoring.outcome import MaskRule
from curator.scoring.sample import Sample

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
    then measures what that changes, so it cannot be left out.
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
    """What a run found and did; `n_scored_now` and the token counts leave out rows that were there already."""

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
    n_rows_now: int = 0
    n_tokens_now: int = 0
    seconds_now: float = 0.0
    skipped: bool = False
    check: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As printed by `--json`."""
        return asdict(self)
