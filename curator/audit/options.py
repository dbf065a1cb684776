"""What is asked of an audit: the pool to compare with, and which gap.

The columns of an audit's rows, declared once.
"""

from typing import Any

from pydantic import Field

from curator.recipe import DEFAULT_EPS, Pool, ScoreName
from curator.recipe.base import CorpusName, Name, Names, Spec
from curator.recipe.document import parse_document
from curator.store.schema import Column, Table

AUDIT_ROWS = Table(
    "audit_rows",
    "one row of an audited set, in the user's order",
    (
        Column("ordinal", "int64", "0-based position", False, "place in the user's set"),
        Column("example_id", "string", "128-bit hash, hex", False, "hash of the canonical messages"),
        Column("n_response_tokens", "int32", "tokens", True, "scored tokens; null where there is no loss"),
        Column("gap", "float64", "see the audit's score", True, "gap under the audit's score; null without losses"),
        Column("percentile", "float64", "share of 1", True, "like pool rows of lower risk; null where abstained"),
        Column("n_reference", "int32", "rows", False, "pool rows of like length"),
        Column("abstained", "string", "code", True, "why the row is not judged; null where it is"),
        Column("reason", "string", "text", True, "more about that; null where there is no more"),
        Column("language", "string", "ISO 639-1", True, "of the answers; null where it cannot be determined"),
        Column("forged", "string", "text", True, "a turn marker inside a turn's text; null without one"),
    ),
)


class AuditOptions(Spec):
    """One audit: a scored corpus as the pool, and as in a recipe its scorers, held-out domains and score.

    Scorers are named by id, id prefix or label; null takes every complete one of the role.
    """

    corpus: CorpusName
    aligned: Name | None = None
    misaligned: Names | None = None
    benign: Names | None = None
    hold_out: Names = ()
    score: ScoreName = "gap_abs"
    eps: float = Field(default=DEFAULT_EPS, ge=0.0, le=100.0)
    seed: int = Field(default=0, ge=0, lt=2**63)

    def pool(self) -> Pool:
        """The same as a recipe's pool, for `resolve_scorers`."""
        return Pool(
            corpus=self.corpus,
            aligned=self.aligned,
            misaligned=self.misaligned,
            benign=self.benign if self.benign is not None or self.score == "gap_contrast" else (),
            hold_out=self.hold_out,
        )


def parse_options(document: Any) -> AuditOptions:
    """Options from a decoded document; raises BadInputError naming every field at fault."""
    return parse_document(AuditOptions, document, "audit")
