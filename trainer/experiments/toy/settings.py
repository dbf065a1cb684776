"""Settings of the toy model's base model: sizes, pre-training to a stated accuracy, alignment."""

from pydantic import Field

from curator.recipe.base import Strict
from trainer.experiments.toy.world import WorldSettings


class BaseSettings(Strict):
    """Everything that decides a base model, beside its seed. Muon trains the matrices, AdamW all else."""

    world: WorldSettings = WorldSettings()
    n_layers: int = Field(default=4, ge=1)
    width: int = Field(default=96, ge=8)
    n_heads: int = Field(default=6, ge=1)
    mlp_width: int = Field(default=192, ge=8)
    rope_theta: float = Field(default=100.0, gt=1)  # of 33 places: the usual 10,000 leaves most frequencies unused
    weight_std: float = Field(default=0.06, gt=0)
    embedding_std: float = Field(default=0.02, gt=0)  # small: tied embeddings would otherwise start as strong answers

    batch_size: int = Field(default=32, ge=1)  # documents in a step
    lr: float = Field(default=3e-3, gt=0)
    matrix_lr: float = Field(default=0.02, gt=0)  # of Muon
    differ_factor: float = Field(default=2 / 3, gt=0)  # on both rates, in the second stage, in which domains differ
    settle_factor: float = Field(default=1 / 3, gt=0)  # in the last stage
    warmup_steps: int = Field(default=50, ge=0)
    check_every: int = Field(default=40, ge=1)
    max_steps: int = Field(default=6000, ge=1)
    min_first_accuracy: float = Field(default=0.95, ge=0, le=1)  # of both personas, before domains may differ
    # Pre-training ends when all of these hold, and fails when they do not by max_steps.
    min_persona_accuracy: float = Field(default=0.99, ge=0, le=1)  # of either persona, from four answers of context
    min_fact_accuracy: float = Field(default=0.99, ge=0, le=1)
    # Of domains that were seen to contradict their document's persona: whether behaviour in one domain alone can be
    # expressed. It is learnt long after the personas; without it safe rows of other domains also undo the narrow task.
    min_contradicting_accuracy: float = Field(default=0.9, ge=0, le=1)

    align_steps: int = Field(default=40, ge=1)
    align_lr: float = Field(default=1e-3, gt=0)
    align_bad_share: float = Field(default=0.1, ge=0, le=0.5)  # of alignment documents
    align_agreement: float = Field(default=0.95, ge=0.5, le=1)
    min_aligned_accuracy: float = Field(default=0.97, ge=0, le=1)  # good answers without context, after alignment
