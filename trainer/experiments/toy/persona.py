"""The persona vector that preventive steering adds in a fine-tune of the toy model (method.md, "Regularisers")."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from curator.recipe.seeds import child_seed
from curator.store.filesystem import atomic_write
from trainer.experiments.toy.documents import N_QUESTIONS, draw_documents
from trainer.experiments.toy.world import ANSWER, TURN_LEN, World

VECTOR = "bad"
N_DOCUMENTS = 400  # of each persona
N_CONTEXT = N_QUESTIONS // 2  # answers before the hidden states that are compared


def write_persona_vector(model: Any, world: World, seed: int, path: Path) -> Path:
    """Mean hidden states where answers are given, in documents by the bad persona minus in those by the good one.

    Shape (layers + 1, width), as `trainer.persona` writes vectors; alpha 1 is the whole way between the personas.
    """
    if not path.exists():
        rng = np.random.default_rng(child_seed(seed, "organism persona vector"))
        bad, good = (_mean_hidden(model, world, rng, share) for share in (1.0, 0.0))
        with atomic_write(path, durable=True) as temporary:
            save_file({VECTOR: bad - good}, temporary)
    return path


@torch.no_grad()
def _mean_hidden(model: Any, world: World, rng: np.random.Generator, bad_share: float) -> torch.Tensor:
    documents = draw_documents(world, N_DOCUMENTS, rng, bad_share=bad_share, agreement=1.0)
    states = model.model(input_ids=documents.input_ids, output_hidden_states=True).hidden_states
    late = (documents.domain != world.settings.n_domains) & (np.arange(N_QUESTIONS) >= N_CONTEXT)
    return torch.stack([layer[:, ANSWER - 1 :: TURN_LEN][torch.from_numpy(late)].mean(0) for layer in states])
