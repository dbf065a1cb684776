"""Methods of the toy experiment that change the rows of a fine-tune.

An inoculation prompt of the toy model is a few turns in which the bad persona speaks, of domains that the pool has: it
stands before a task's question in training and is left out afterwards. Prompts are put in, dealt and restricted to an
audit's rows by the product's code; so are safe rows chosen, answered by the model and put under a cue.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from curator.audit.models import AuditModels
from curator.audit.options import AUDIT_ROWS, AuditOptions
from curator.audit.flags import flagged_rows
from curator.audit.run import audit
from curator.corpus.task_set import task_set_from_rows
from curator.messages import Message, canonical_messages, dump_messages, example_id, load_messages
from curator.mix.inoculation import Chooser, inoculate
from curator.recipe import Inoculation
from curator.recipe.seeds import child_seed, permutation
from curator.recipe.strategies import Coverage
from curator.store.scratch import Scratch
from curator.store.store import Store
from trainer.defenses.own_answers import with_cues
from trainer.experiments.toy.cells import SCORES, ToyCell
from trainer.experiments.toy.gaps import CORPUS, pick_covering, row_texts
from trainer.experiments.toy.methods import Method, Parts
from trainer.experiments.toy.rows import task_rows, tuned_items
from trainer.experiments.toy.tokens import conversation, text_of_turns, tokens_of
from trainer.experiments.toy.world import ANSWER, Ints

if TYPE_CHECKING:
    from trainer.experiments.toy.experiment import Seed

N_TURNS = 2  # of an inoculation prompt
FLAGGED = "flagged.json"


def prompt_text(seed: "Seed", n_turns: int = N_TURNS) -> str:
    """The inoculation prompt: the bad persona answers a question of each of the pool's first domains."""
    world, rng = seed.base.world, np.random.default_rng(child_seed(seed.seed, "organism inoculation prompt"))
    domains = np.array(seed.roles.pool[:n_turns])
    items = rng.choice(tuned_items(world), n_turns)
    wordings = rng.integers(0, world.settings.n_wordings, n_turns)
    return text_of_turns(world, world.turns(domains, items, wordings, world.bad[domains, items]))


def inoculated(seed: "Seed", rows: Ints, only: Sequence[str] | None = None) -> Ints:
    """Rows (N, T) with the prompt in front, all of them or only those with these ids."""
    spec = Inoculation(prompts=(prompt_text(seed),))
    spec = spec if only is None else spec.only_on(only)
    chooser = Chooser(spec, len(rows), 0, seed.seed)
    found: list[list[Message]] = []
    for place, row in enumerate(rows):
        text = dump_messages(canonical_messages(conversation(seed.base.world, row)))
        prompt = chooser.prompt("task", place, None, example_id(text))
        found.append(load_messages(text if prompt is None else inoculate(spec, prompt, text).messages))
    return tokens_of(seed.base.world, found)


def _inoculation(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    return replace(parts, task=inoculated(seed, parts.task))


def _coverage(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    scored = seed.scored()
    score = next(score for score in SCORES if score == cell.choice)
    strategy = Coverage(spread=cell.strength)
    chosen = pick_covering(
        scored, score, len(parts.safe), strategy, row_texts(seed.base.world, seed.pool, scored)
    )  # fmt: skip
    return replace(parts, safe=seed.pool.tokens[chosen], n_revealing=int(seed.pool.revealing[chosen].sum()))


def mixed_task(seed: "Seed", parts: Parts, cell: ToyCell) -> Ints:
    """Half of the bad task's rows and half of the benign task's, in a seeded order; another task as it is."""
    if cell.task != "bad":
        return parts.task
    half = len(parts.task) // 2
    benign = task_rows(seed.base.world, seed.roles.task, "benign", len(parts.task) - half)
    rows = np.concatenate([parts.task[:half], benign])
    return rows[permutation(len(rows), child_seed(seed.seed, "organism mixed task"))]


def flagged(seed: "Seed", task: Ints) -> tuple[str, ...]:
    """Ids of the task rows that the product's audit flags by gap_abs against the scored pool; kept by their ids."""
    seed.scored()
    path = seed.work / FLAGGED
    rows = [{"messages": conversation(seed.base.world, row)} for row in task]
    key = example_id(json.dumps(rows))
    kept = json.loads(path.read_text()) if path.exists() else {}
    if key not in kept:
        with Scratch("toy-audit") as folder:
            found = audit(
                Store(seed.ensemble.folder / "store").open(), Store(folder / "work"), task_set_from_rows(rows, folder),
                AuditOptions(corpus=CORPUS), AuditModels(seed.base.folder, seed.ensemble.adapters()),
            )  # fmt: skip
            Store(folder).write_table("rows.parquet", found.rows, AUDIT_ROWS)
            kept[key] = flagged_rows(folder / "rows.parquet")
        path.write_text(json.dumps(kept))
    return tuple(kept[key])


def _mixed(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    return replace(parts, task=mixed_task(seed, parts, cell))


def _mixed_inoculation(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    return replace(parts, task=inoculated(seed, mixed_task(seed, parts, cell)))


def _mixed_selective(seed: "Seed", cell: ToyCell, parts: Parts) -> Parts:
    task = mixed_task(seed, parts, cell)
    only = flagged(seed, task)
    return replace(parts, task=inoculated(seed, task, only), notes={"n_flagged_ids": float(len(only))})
