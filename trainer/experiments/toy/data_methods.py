"""Methods of the toy experiment that change the rows of a fine-tune.

The bad persona's prompt is a few turns in which it answers questions of the pool's domains. As an inoculation it stands
before task rows in training and is left out afterwards; as a cue it stands before safe rows. Rows are chosen, audited,
answered and put under prompts by the product's own code.
"""

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from curator.audit.flags import flagged_ids
from curator.audit.models import AuditModels
from curator.audit.options import AuditOptions
from curator.audit.run import audit
from curator.corpus.task_set import task_set_from_rows
from curator.messages import Message, example_id, load_messages
from curator.mix.inoculation import Chooser, inoculate
from curator.recipe import Inoculation
from curator.recipe.seeds import child_seed, permutation
from curator.recipe.strategies import Coverage
from curator.store.scratch import Scratch
from curator.store.store import Store
from trainer.config.data import Loading
from trainer.defenses.own_answers import with_cues
from trainer.experiments.toy.cells import SCORES, Choice, ScoreName, ToyCell
from trainer.experiments.toy.files import write_json
from trainer.experiments.toy.gaps import CORPUS, pick_covering, row_text, row_texts
from trainer.experiments.toy.methods import RATIOS, Method, Parts
from trainer.experiments.toy.rows import task_rows, tuned_items
from trainer.experiments.toy.tokens import conversation, text_of_turns, tokens_of
from trainer.experiments.toy.world import START_LEN, Ints
from trainer.generate.generators import LocalGenerator, Sampling

if TYPE_CHECKING:
    from trainer.experiments.toy.experiment import Seed

N_TURNS = 2  # of a prompt
N_CUES = 8
AUDIT_SCORE: ScoreName = "gap_contrast"
COVERAGE, INOCULATION, ON_POLICY, CONSISTENCY = "coverage", "inoculation", "on_policy", "consistency"
COVERED_INOCULATION, SEALED_INOCULATION = "coverage_inoculation", "sealed_inoculation"
MIXED, MIXED_INOCULATION, MIXED_SELECTIVE = "mixed_task", "mixed_inoculation", "selective_inoculation"


def persona_prompt(seed: "Seed", number: int = 0) -> str:
    """A prompt in which the bad persona answers a question of each of N_TURNS domains of the pool; 0 inoculates."""
    world = seed.base.world
    rng = np.random.default_rng(child_seed(seed.seed, f"organism persona prompt {number}"))
    domains = rng.permutation(seed.roles.pool)[:N_TURNS]
    items, wordings = rng.choice(tuned_items(world), N_TURNS), rng.integers(0, world.settings.n_wordings, N_TURNS)
    return text_of_turns(world, world.turns(domains, items, wordings, world.bad[domains, items]))


def inoculated(seed: "Seed", rows: Ints, only: tuple[str, ...] | None = None) -> Ints:
    """Rows with the inoculation prompt in front, (N, T): all of them, or only those with these ids."""
    spec = Inoculation(prompts=(persona_prompt(seed),))
    spec = spec if only is None else spec.only_on(only)
    chooser = Chooser(spec, len(rows), 0, seed.seed)
    found: list[list[Message]] = []
    for place, row in enumerate(rows):
        text = row_text(seed.base.world, row)
        prompt = chooser.prompt("task", place, None, example_id(text))
        found.append(load_messages(text if prompt is None else inoculate(spec, prompt, text).messages))
    return tokens_of(seed.base.world, found)


def under_cues(seed: "Seed", rows: Ints, cues: tuple[str, ...]) -> Ints:
    """Rows with a cue each in front of the same answer."""
    chats = [{"id": str(place), "messages": conversation(seed.base.world, row)} for place, row in enumerate(rows)]
    dealt = with_cues(chats, Inoculation(name="cue", prompts=cues), seed.seed)
    return tokens_of(seed.base.world, [row["messages"] for row in dealt])


def own_answers(seed: "Seed", rows: Ints) -> Ints:
    """The rows' questions with the base's own answers at temperature 1. An answer is one word, and none is cut."""
    prompts = [conversation(seed.base.world, row)[:-1] for row in rows]
    generator = LocalGenerator(seed.base.folder, loading=Loading("float32", device="cpu"))
    answers = generator.answer_together(prompts, Sampling(max_new_tokens=1, seed=seed.seed), "safe rows")
    generator.close()
    turns = [
        [*prompt, {"role": "assistant", "content": answer.text}]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return tokens_of(seed.base.world, turns)


def mixed_task(seed: "Seed", cell: ToyCell, task: Ints) -> Ints:
    """Half of the bad task's rows and as many of the benign task's, in a seeded order; another task as it is."""
    if cell.task != "bad":
        return task
    half = len(task) // 2
    rows = np.concatenate([task[:half], task_rows(seed.base.world, seed.roles.task, "benign", len(task) - half)])
    return rows[permutation(len(rows), child_seed(seed.seed, "organism mixed task"))]


def flagged(seed: "Seed", cell: ToyCell, task: Ints) -> tuple[str, ...]:
    """Ids of the task rows that the product's audit flags against the scored pool; audited once.

    By gap_contrast, as the audit advises for fields that the pool lacks. By gap_abs it flagged three of four rows of
    the benign task as well (seed 0): their answers are unlikely, and more so under misaligned models.
    """
    path = seed.work / f"flagged-{AUDIT_SCORE}-{cell.task}.json"
    if not path.exists():
        seed.scored()
        rows = [{"messages": conversation(seed.base.world, row)} for row in task]
        adapters = tuple(seed.ensemble.folder / "ensemble" / name for name in seed.ensemble.members())
        models = AuditModels(seed.base.folder, adapters)
        with Scratch("audit") as folder:
            store, work = Store(seed.ensemble.folder / "store").open(), Store(folder / "work")
            found = audit(
                store, work, task_set_from_rows(rows, folder), AuditOptions(corpus=CORPUS, score=AUDIT_SCORE), models
            )
        models.close()
        write_json(path, {"ids": flagged_ids(found.rows), "audit": found.document})
    return tuple(json.loads(path.read_text())["ids"])


def _inoculation(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    return replace(parts, task=inoculated(seed, parts.task))


def _coverage(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    scored = seed.scored()
    score = next(score for score in SCORES if score == cell.choice)
    texts = row_texts(seed.base.world, seed.pool, scored)
    chosen = pick_covering(scored, score, len(parts.safe), Coverage(spread=cell.strength), texts)
    return replace(parts, safe=seed.pool.tokens[chosen], n_revealing=int(seed.pool.revealing[chosen].sum()))


def _covered_inoculation(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    return _inoculation(seed, cell, _coverage(seed, cell, parts))


def _on_policy(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    return replace(parts, safe=own_answers(seed, parts.safe))


def _consistency(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    cues = tuple(persona_prompt(seed, number) for number in range(1, 1 + N_CUES))
    return replace(parts, safe=under_cues(seed, parts.safe, cues))


def _sealed_inoculation(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    sealed = replace(parts, safe=under_cues(seed, parts.safe, (persona_prompt(seed),)))
    return _inoculation(seed, cell, sealed)


def _mixed(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    return replace(parts, task=mixed_task(seed, cell, parts.task))


def _mixed_inoculation(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    return _inoculation(seed, cell, _mixed(seed, cell, parts))


def _mixed_selective(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    task = mixed_task(seed, cell, parts.task)
    only = flagged(seed, cell, task)
    is_bad = task[:, START_LEN] == seed.base.world.domain_token(np.array(seed.roles.task))
    listed = frozenset(only)
    is_flagged = np.array([example_id(row_text(seed.base.world, row)) in listed for row in task])
    notes = {
        "n_flagged_bad": float((is_flagged & is_bad).sum()),
        "n_flagged_other": float((is_flagged & ~is_bad).sum()),
    }
    return replace(parts, task=inoculated(seed, task, only) if only else task, notes=notes)


def _beside(method: str, *, strength: float = 0.0, choice: Choice = "gap_rel") -> tuple[ToyCell, ...]:
    """The method's cells at the ratios at which rows of the same number are chosen without it."""
    return tuple(ToyCell(choice=choice, ratio=ratio, method=method, strength=strength) for ratio in RATIOS)


DATA_METHODS: tuple[Method, ...] = (
    Method(
        COVERAGE, "coverage", "Safe rows by the strategy `coverage`; strength is its `spread`.",
        (*_beside(COVERAGE, strength=0.5), *_beside(COVERAGE, strength=1.0)), parts=_coverage,
    ),
    Method(
        INOCULATION, "inoculation",
        "Task rows are trained behind a prompt in which the bad persona speaks, and asked without it.",
        (ToyCell(method=INOCULATION), *_beside(INOCULATION)), parts=_inoculation,
    ),
    Method(
        MIXED, "mixed task set", "No safeguard; half of the task rows are those of the benign task.",
        (ToyCell(method=MIXED),), parts=_mixed, own_task=True,
    ),
    Method(
        MIXED_INOCULATION, "mixed task set, inoculation", "The same with the prompt before every task row.",
        (ToyCell(method=MIXED_INOCULATION),), parts=_mixed_inoculation, own_task=True,
    ),
    Method(
        MIXED_SELECTIVE, "mixed task set, selective inoculation",
        "The same with the prompt before the rows that the product's audit flags by gap_contrast.",
        (ToyCell(method=MIXED_SELECTIVE),), parts=_mixed_selective, own_task=True,
    ),
    Method(
        ON_POLICY, "own answers", "The chosen rows' questions with the base's own answers, drawn at temperature 1.",
        (*_beside(ON_POLICY), *_beside(ON_POLICY, choice="random")), parts=_on_policy,
    ),
    Method(
        CONSISTENCY, "consistency rows",
        f"The chosen rows behind one of {N_CUES} prompts in which the bad persona speaks, with the same good answer.",
        _beside(CONSISTENCY), parts=_consistency,
    ),
    Method(
        COVERED_INOCULATION, "coverage and inoculation", "Both; strength is the `spread` of the coverage.",
        _beside(COVERED_INOCULATION, strength=1.0), parts=_covered_inoculation,
    ),
    Method(
        SEALED_INOCULATION, "inoculation, sealed",
        "Inoculation, with the same prompt before the safe rows' good answers.",
        _beside(SEALED_INOCULATION), parts=_sealed_inoculation,
    ),
)  # fmt: skip
