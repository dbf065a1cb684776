"""The base model of a seed: pre-trained until it knows the world, then aligned (loss on answers alone)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from curator.console import Progress
from curator.errors import BallastError
from curator.recipe.seeds import child_seed
from trainer.experiments.toy.documents import (
    AGREEMENT,
    N_DOMAINS_ASKED,
    N_QUESTIONS,
    Documents,
    draw_documents,
)
from trainer.experiments.toy.measuring import single_questions
from trainer.experiments.toy.model import answer_loss, answers_of, greedy_answers
from trainer.experiments.toy.settings import BaseSettings
from trainer.experiments.toy.world import World

N_CONTEXT = N_QUESTIONS // 2  # answers that a model has seen before it is judged
N_CHECK_DOCUMENTS = 150
N_MIXED_DOCUMENTS = 1200  # hold some 270 questions of domains that contradict: their share is known to 2 points


class NotLearntError(BallastError, RuntimeError):
    """A base model did not reach the stated accuracy in the steps it was given."""

    code = "not_learnt"


@dataclass(frozen=True)
class Knowledge:
    """What a model answers, as shares of exact matches (0..1)."""

    good_in_context: float  # last answers of documents whose earlier ones are all good
    bad_in_context: float
    facts: float  # any admissible answer
    contradicting_domains: float  # answers in domains that contradicted the document's persona before
    good_alone: float  # without context: what the model is by default

    def as_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Stage:
    """A phase of the pre-training: documents of `n_domains` and one `agreement`, until the model knows enough."""

    agreement: float
    n_domains: int
    factor: float  # on the learning rates
    enough: Callable[[Knowledge, BaseSettings], bool]


def _one_persona(known: Knowledge, settings: BaseSettings) -> bool:
    return min(known.good_in_context, known.bad_in_context) >= settings.min_first_accuracy


def _domains_apart(known: Knowledge, settings: BaseSettings) -> bool:
    return known.contradicting_domains >= settings.min_contradicting_accuracy


def _everything(known: Knowledge, settings: BaseSettings) -> bool:
    return (
        min(known.good_in_context, known.bad_in_context) >= settings.min_persona_accuracy
        and known.facts >= settings.min_fact_accuracy
        and _domains_apart(known, settings)
    )


def stages(settings: BaseSettings) -> tuple[Stage, ...]:
    """First one persona in all domains, then two domains that know nothing of each other, then the documents of the
    definition.

    Documents of the last kind alone teach the same in many times the steps: few of their questions tell whether a model
    follows the domain or the persona.
    """
    return (
        Stage(1.0, N_DOMAINS_ASKED, 1.0, _one_persona),
        Stage(0.5, 2, settings.differ_factor, _domains_apart),
        Stage(AGREEMENT, N_DOMAINS_ASKED, settings.settle_factor, _everything),
    )


def pretrain(model: Any, world: World, settings: BaseSettings, seed: int) -> tuple[int, Knowledge]:
    """Train on documents of both personas until the accuracies of the settings hold; the steps it took, and what it
    knows then. Raises NotLearntError otherwise."""
    rng = np.random.default_rng(child_seed(seed, "organism documents"))
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=settings.matrix_lr, weight_decay=0.01, momentum=0.9, ns_steps=3)
    optimizers = [muon, _adamw(others, settings.lr)]
    rates = settings.matrix_lr, settings.lr
    step, known = 0, None
    with Progress(None, "steps", f"pre-training seed {seed}") as bar:  # until it knows enough; some 600 to 1,800
        for stage in stages(settings):
            while True:
                for _ in range(settings.check_every):
                    step += 1
                    factor = stage.factor * min(1.0, step / max(1, settings.warmup_steps))
                    for optimizer, rate in zip(optimizers, rates, strict=True):
                        _set_lr(optimizer, rate * factor)
                    documents = draw_documents(
                        world, settings.batch_size, rng, agreement=stage.agreement, n_domains=stage.n_domains
                    )
                    _step(model, optimizers, documents.input_ids)
                    bar.advance()
                known = examine(model, world)
                bar.advance(0, personas=_percent(min(known.good_in_context, known.bad_in_context)),
                            domains_apart=_percent(known.contradicting_domains))  # fmt: skip
                if stage.enough(known, settings):
                    break
                if step >= settings.max_steps:
                    raise NotLearntError(
                        f"seed {seed}: the model has not learnt its world by step {step} (max_steps of BaseSettings):"
                        f" it knows {known}. Take another seed, or from Python settings with more steps"
                    )
    assert known is not None, "there is a stage"
    return step, known


def _percent(share: float) -> str:
    return f"{share:.0%}"


def align(model: Any, world: World, settings: BaseSettings, seed: int) -> Knowledge:
    """Train on documents of the good persona, with a falling rate, so that good answers become the default.

    A small share of documents by the bad one keeps it from being unlearnt, which a few tokens' alignment of a large
    model does not do either. Raises NotLearntError when good answers are not the default afterwards."""
    rng = np.random.default_rng(child_seed(seed, "organism alignment"))
    optimizer = _adamw(model.parameters(), settings.align_lr)
    for step in range(settings.align_steps):
        _set_lr(optimizer, settings.align_lr * (1 - step / settings.align_steps))
        documents = draw_documents(
            world, settings.batch_size, rng, bad_share=settings.align_bad_share, agreement=settings.align_agreement
        )
        _step(model, [optimizer], documents.input_ids)
    round_to_float16(model)
    known = examine(model, world)
    if known.good_alone < settings.min_aligned_accuracy:
        raise NotLearntError(
            f"seed {seed}: {known.good_alone:.3f} of the aligned model's answers are good, and BaseSettings wants"
            f" {settings.min_aligned_accuracy:.3f}. Take another seed, or from Python settings with more align_steps"
        )
    return known


@torch.no_grad()
def round_to_float16(model: Any) -> None:
    """Round every weight to what float16 holds; computing stays in float32."""
    for parameter in model.parameters():
        parameter.copy_(parameter.half())


def examine(model: Any, world: World) -> Knowledge:
    """What the model knows, on documents of a stream of their own."""
    rng = np.random.default_rng(child_seed(world.seed, "organism examination"))
    whole = [draw_documents(world, N_CHECK_DOCUMENTS, rng, bad_share=share, agreement=1.0) for share in (0.0, 1.0)]
    mixed = draw_documents(world, N_MIXED_DOCUMENTS, rng)
    good, bad = (_accuracy(model, documents, _late_items(world, documents)) for documents in whole)
    alone = single_questions(world)
    n_domains = world.settings.n_domains
    is_fact = mixed.domain == n_domains
    admissible = world.fact[np.where(is_fact, mixed.item, 0)]
    found = greedy_answers(model, mixed.input_ids, every=True).numpy()
    return Knowledge(
        good, bad, float((found[..., None] == admissible).any(-1)[is_fact].mean()),
        float((found == _answers(mixed))[_contradicting(mixed, n_domains)].mean()),
        float((greedy_answers(model, alone.input_ids)[:, 0].numpy() == alone.good).mean()),
    )  # fmt: skip


def _accuracy(model: Any, documents: Documents, where: np.ndarray) -> float:
    right = greedy_answers(model, documents.input_ids, every=True).numpy() == _answers(documents)
    return float(right[where].mean())


def _answers(documents: Documents) -> np.ndarray:
    found: np.ndarray = answers_of(documents.input_ids, every=True).numpy()
    return found


def _late_items(world: World, documents: Documents) -> np.ndarray:
    late: np.ndarray = documents.domain != world.settings.n_domains
    late[:, :N_CONTEXT] = False
    return late


def _contradicting(documents: Documents, n_domains: int) -> np.ndarray:
    """Questions of a domain that answered against its document's persona earlier, after two others that did not."""
    against = documents.bad != documents.persona_bad[:, None]
    item = documents.domain != n_domains
    same = documents.domain[:, :, None] == documents.domain[:, None, :]  # (B, asked, earlier)
    earlier = np.tril(np.ones((N_QUESTIONS, N_QUESTIONS), dtype=bool), -1)
    seen = (same & earlier & item[:, None, :]).any(-1)
    n_with = (earlier & (item & ~against)[:, None, :]).sum(-1)
    found: np.ndarray = item & against & seen & (n_with >= 2)
    return found


def _adamw(parameters: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)


def _step(model: Any, optimizers: Sequence[torch.optim.Optimizer], input_ids: torch.Tensor) -> None:
    model.zero_grad(set_to_none=True)
    answer_loss(model, input_ids, every=True).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
