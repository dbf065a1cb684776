"""The toy model's network: a small Llama of transformers, and the logits of its answers."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.experiments.toy.documents import N_QUESTIONS
from trainer.experiments.toy.settings import BaseSettings
from trainer.experiments.toy.world import (
    ANSWER,
    PAD,
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
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=settings.embedding_std)
    return model


def answer_places(input_ids_BT: torch.Tensor, *, every: bool = False) -> torch.Tensor:
    """Where the last answer of each row stands, (B, 1), or of whole documents `every` answer, (B, questions)."""
    if not every:
        return (input_ids_BT != PAD).sum(1, keepdim=True) - 1  # padding comes after it
    return torch.arange(ANSWER, input_ids_BT.shape[1], TURN_LEN).expand(len(input_ids_BT), -1)


def answer_logits(model: Any, input_ids_BT: torch.Tensor, *, every: bool = False) -> torch.Tensor:
    """Logits that predict the last answer of each row, or `every` answer of documents, shape (B, answers, V)."""
    lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden_BTD = lm.model(input_ids=input_ids_BT, use_cache=False).last_hidden_state
    place = answer_places(input_ids_BT, every=every) - 1
    return lm.lm_head(hidden_BTD.gather(1, place[..., None].expand(-1, -1, hidden_BTD.shape[-1])))


def answers_of(input_ids_BT: torch.Tensor, *, every: bool = False) -> torch.Tensor:
    """The last answer token of each row, or `every` one of documents, shape (B, answers)."""
    return input_ids_BT.gather(1, answer_places(input_ids_BT, every=every))


def answer_loss(model: Any, input_ids_BT: torch.Tensor, *, every: bool = False) -> torch.Tensor:
    """Mean loss over those answers, in nats per answer; earlier turns of a row are context alone."""
    logits = answer_logits(model, input_ids_BT, every=every)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers_of(input_ids_BT, every=every).flatten())


@torch.no_grad()
def greedy_answers(model: Any, input_ids_BT: torch.Tensor, *, every: bool = False) -> torch.Tensor:
    """The likeliest token in the place of each of them, (B, answers); a row's own earlier answers stay its context."""
    return answer_logits(model, input_ids_BT, every=every).argmax(-1)
