"""Settings of each defence, apart from its code so that options are checked before torch is imported."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

KlDirection = Literal["student_reference", "reference_student"]
TokenScope = Literal["all", "response"]


class KlSettings(BaseModel):
    """KL against the model without its adapter (method.md section 6).

    `student_reference` is KL(theta || theta_0), the paper's; `reference_student` is KL(theta_0 || theta). The
    term is in nats per token: the sum over the positions in scope divided by their number in the whole step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["kl"] = "kl"
    weight: float = Field(default=0.1, ge=0.0, le=1e4)
    direction: KlDirection = "student_reference"
    tokens: TokenScope = "all"


DefenceSettings = KlSettings  # a discriminated union on `name` once there are several
