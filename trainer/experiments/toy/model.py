"""The toy model's network: a small Llama of transformers, and the logits of its answers."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.experiments.toy.documents import N_QUESTIONS
from trainer.experiments.toy.settings import BaseSettings
from trainer.experiments.toy.world import (
    ANSWER,
    START_LEN,
    TURN_LEN,
    World,
)


def new_model(settings: BaseSettings, world: World, seed: int) -> Any:
    """A fresh LlamaForCausalLM with tied embeddings in float32; the seed decides the weights."""
    config = LlamaConfig(
        vocab_size=len(world.words), hidden_size=settings.width, intermediate_size=settings.mlp_width,
        num_hidden_layers=settings.n_layers, num_attention_heads=settings.n_heads,
        num_key_value_heads=settings.n_heads, max_position_embeddings=START_LEN + N_QUESTIONS * TURN_LEN,
        tie_word_embeddings=True, initializer_range=settings.weight_std, use_cache=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=settings.embedding_std)
    return model


def answer_logits(model: Any, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """Logits that predict each answer of rows of whole questions, shape (B, questions, V)."""
    lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden_BTD = lm.model(input_ids=input_ids_BT, use_cache=False).last_hidden_state
    return lm.lm_head(hidden_BTD[:, ANSWER - 1 : -1 : TURN_LEN])


def answers_of(input_ids_BT: torch.Tensor) -> torch.Tensor:
    """The answer tokens of rows of whole questions, shape (B, questions)."""
    return input_ids_BT[:, ANSWER::TURN_LEN]


def answer_loss(model: Any, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """Mean loss over the answers, in nats per answer."""
    logits = answer_logits(model, input_ids_BT)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers_of(input_ids_BT).flatten())


@torch.no_grad()
def greedy_answers(model: Any, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """The likeliest token in the place of each answer, shape (B, questions); the row's own answers stay its context."""
    return answer_logits(model, input_ids_BT).argmax(-1)
