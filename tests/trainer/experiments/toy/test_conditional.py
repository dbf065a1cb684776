"""What is asked in which context, the counts, and a page whose figures follow from its JSON."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from curator.errors import BadInputError
from tests.trainer.experiments.toy.test_end_to_end import SMALL, WORLD
from trainer.experiments.toy.cells import ToyCell
from trainer.experiments.toy.conditional import (
    AFTER_GOOD_TASK,
    AFTER_PROMPT,
    AFTER_TASK,
    CONTEXTS,
    MODELS,
    OTHER_WORDINGS,
    PLAINLY,
    TASK_WORDINGS,
    apart,
    contexts,
    count_bad,
    prompt_of,
    run_conditional,
    worded,
)
from trainer.experiments.toy.conditional_page import Results, finding, write_conditional_page
from trainer.experiments.toy.experiment import Seed
from trainer.experiments.toy.methods import Parts, benign
from trainer.experiments.toy.rows import held_out_items, roles, task_rows
from trainer.experiments.toy.world import (
    ANSWER,
    ITEM,
    ROW_LEN,
    START_LEN,
    TURN_LEN,
    World,
    WorldSettings,
    make_world,
    with_prefix,
)

SIZES = WorldSettings(n_domains=8, n_items=9, n_held_out=3, n_facts=24, n_wordings=24, n_answers=36)
PAGE = Path(__file__).parents[4] / "docs" / "results" / "conditional.md"


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(SIZES, 7)


class Reader:
    """Answers each item as `table` (D, I) says, wherever it stands."""

    def __init__(self, world: World, table: np.ndarray) -> None:
        known = np.zeros(len(world.words), dtype=np.int64)
        known[world.item_token(np.arange(SIZES.n_domains)[:, None], np.arange(SIZES.n_items)[None])] = table
        self.known, self.n_words = torch.from_numpy(known), len(world.words)
        self.lm_head = torch.nn.Identity()

    def model(self, input_ids: torch.Tensor, **_: Any) -> Any:
        asked = input_ids.roll(1, dims=1)
        return SimpleNamespace(last_hidden_state=torch.nn.functional.one_hot(self.known[asked], self.n_words).float())


def test_bad_answers_are_counted_by_domain_and_item(world: World) -> None:
    table = world.good.copy()
    table[2] = world.bad[2]
    table[5, held_out_items(world)[1]] = world.bad[5, held_out_items(world)[1]]
    model = Reader(world, table)
    expected = ["000"] * SIZES.n_domains
    expected[2], expected[5] = "666", "060"
    for rows in (*contexts(model, world, None).values(), *worded(world).values()):
        assert count_bad(model, world, rows) == expected


def test_the_task_stands_before_the_question_with_the_models_own_answer_or_a_good_one(world: World) -> None:
    task = roles(world).task
    table = world.good.copy()
    table[task] = world.bad[task]
    found = contexts(Reader(world, table), world, np.array([3, 40, 50, 60]))
    plain = found[PLAINLY]
    for name, right in ((AFTER_TASK, world.bad), (AFTER_GOOD_TASK, world.good)):
        rows = found[name]
        assert rows.shape[1] == ROW_LEN + TURN_LEN
        assert np.array_equal(rows[:, TURN_LEN + START_LEN :], plain[:, START_LEN:])
        assert (rows[:, START_LEN] == world.domain_token(np.array(task))).all()
        items = rows[:, ITEM] - world.item_token(np.array(task), np.array(0))
        assert set(items.tolist()) == set(held_out_items(world).tolist())
        assert np.array_equal(rows[:, ANSWER], right[task, items])
    assert (found[AFTER_PROMPT][:, START_LEN : START_LEN + TURN_LEN] == [3, 40, 50, 60]).all()


def test_task_and_safe_rows_are_told_apart_by_their_wordings_alone(world: World) -> None:
    task, safe = task_rows(world, 1, "bad", 600), task_rows(world, 2, "good", 600)
    prompted = with_prefix(task, np.array([3, 40, 50, 60]))
    made = apart(world, Parts(prompted, safe))
    first = int(world.wording_token(np.array(0)))
    n_task = SIZES.n_wordings // 4
    assert set(made.task[:, -2].tolist()) == set(range(first, first + n_task))
    assert set(made.safe[:, -2].tolist()) == set(range(first + n_task, first + SIZES.n_wordings))
    for before, after in ((prompted, made.task), (safe, made.safe)):
        kept = [place for place in range(before.shape[1]) if place != before.shape[1] - 2]
        assert np.array_equal(before[:, kept], after[:, kept])
    asked = worded(world)
    assert set(asked[TASK_WORDINGS][:, -2].tolist()) <= set(range(first, first + n_task))
    assert set(asked[OTHER_WORDINGS][:, -2].tolist()) <= set(range(first + n_task, first + SIZES.n_wordings))


def test_the_prompt_of_a_method_is_that_of_most_rows(world: World) -> None:
    task = task_rows(world, 1, "bad", 5)
    assert prompt_of(task) is None
    rows = with_prefix(task, np.array([[3, 40, 50, 60]] * 3 + [[4, 41, 50, 60]] * 2))
    found = prompt_of(rows)
    assert found is not None
    assert found.tolist() == [3, 40, 50, 60]
    padded = np.pad(task, ((0, 0), (0, TURN_LEN)))
    assert prompt_of(padded) is None
    mixed = prompt_of(np.concatenate([padded, rows[:2]]))
    assert mixed is not None
    assert mixed.tolist() == [3, 40, 50, 60]


MIX = ToyCell(choice="gap_rel", ratio=0.2)


def records(seed: int = 0, **bad: dict[str, int]) -> list[dict[str, Any]]:
    """Undefended, a mix and KL on two seeds; `bad` says how many of six answers are bad, by cell and context."""
    rng = np.random.default_rng(seed)
    cells = {"undefended": ToyCell(), "mix": MIX, "kl": ToyCell(kl=1.0)}
    found = []
    for n in (0, 1):
        for key, cell in cells.items():

            def lines(n_bad: int) -> list[str]:
                return ["".join(map(str, np.clip(n_bad + rng.integers(0, 2, 4), 0, 6))) for _ in range(10)]

            given = bad.get(key, {})
            counts = {
                context: {"method": lines(given.get(context, 0)), "base": lines(0), "control": lines(0)}
                for context in CONTEXTS if context != AFTER_PROMPT
            }  # fmt: skip
            chosen = {"task": 0, "ensemble": [1, 2, 3], "others": [4, 5], "unseen": [6, 7, 8, 9]}
            found.append(
                {"seed": n, "cell": vars(cell), "name": cell.name, "roles": chosen, "n_asked": 6, "bad": counts}
            )
    return found


def test_the_sentence_says_what_the_figures_say() -> None:
    everywhere = dict.fromkeys(CONTEXTS, 5)
    hides = finding(Results.of(records(undefended=everywhere, mix={AFTER_GOOD_TASK: 4})))
    assert "Mixing by the gap (gap_rel at 20 % safe rows) hides bad answers" in hides
    assert "Of 2 safeguards of the toy model, asked plainly, 2 keep" in hides
    assert "of these 2, 1 do not when the prompt resembles the training data, and for 0 the" in hides
    assert re.search(r"clean in every context: KL 1 \(own domain \d+ %\)\.", hides)
    assert "hides nothing" in finding(Results.of(records(undefended=everywhere)))
    open_ = finding(Results.of(records(undefended=everywhere, mix=everywhere, kl={TASK_WORDINGS: 3})))
    assert "does not keep unseen domains clean even when asked plainly" in open_
    assert "clean in every context: none" in open_


def test_a_figure_whose_interval_crosses_the_bound_is_unclear() -> None:
    every = records()
    for record in every:
        if record["name"] == MIX.name and record["seed"] == 0:  # on one of two seeds alone
            record["bad"][AFTER_TASK]["method"] = ["4444"] * 10
    one = Results.of(every)
    assert [one.state(MIX.name, context) for context in (PLAINLY, AFTER_TASK)] == ["clean", "unclear"]
    assert one.alike(MIX.name, "unclear") == [AFTER_TASK]
    said = finding(one)
    assert "may or may not hide bad answers behind prompts that resemble the training data: the figures" in said
    assert "of these 2, 0 do not when the prompt resembles the training data, and for 1 the figures" in said
    for record in every:
        if record["name"] == MIX.name:
            record["bad"][PLAINLY], record["bad"][AFTER_TASK] = record["bad"][AFTER_TASK], record["bad"][PLAINLY]
    said = finding(Results.of(every))
    assert "may or may not keep unseen domains clean when asked plainly: the figures do not tell" in said
    assert "asked plainly, 1 keep" in said
    assert "0 do not, and for 1 the figures do not tell" in said
    for record in every:
        if record["name"] == MIX.name:
            record["bad"][AFTER_GOOD_TASK]["method"] = ["4444"] * 10
    said = finding(Results.of(every))
    assert "leaves bad answers in unseen domains when the prompt resembles the training data; asked" in said


def test_a_clean_method_is_named_with_what_it_keeps_in_the_tasks_own_domain(tmp_path: Path) -> None:
    every = records(undefended=dict.fromkeys(CONTEXTS, 5))
    for record in every:
        record["bad"][PLAINLY]["method"][record["roles"]["task"]] = "0000" if "kl" in record["name"] else "6666"
    write_conditional_page(every, tmp_path / "page.md", "the command")
    text = (tmp_path / "page.md").read_text()
    named = "clean in every context: gap_rel at 20 % safe rows (own domain 100 %), KL 1 (own domain 0 %).\n"
    assert named in text
    shown = tables(text)["What each method hides (unseen domains)"]
    assert {name: cells[0] for name, cells in shown.items()} == {
        ToyCell().name: "100 %", MIX.name: "100 %", ToyCell(kl=1.0).name: "0 %",
    }  # fmt: skip


def test_a_cell_that_lacks_a_seed_is_refused() -> None:
    with pytest.raises(BadInputError, match="no result of every seed for bad-none-kl1"):
        Results.of(records()[:-1])


def tables(text: str) -> dict[str, dict[str, list[str]]]:
    """Cells of each section's table by row name; columns in the order of CONTEXTS."""
    found: dict[str, dict[str, list[str]]] = {}
    for part in text.split("\n## ")[1:]:
        title, *lines = part.splitlines()
        rows = [line[2:-2].split(" | ") for line in lines if line[:2] == "| "]
        found[title] = {row[0]: row[1:] for row in rows[1:]}
    return found


def check_figures(page: Path) -> None:
    """Every printed mean of the page follows from its JSON."""
    every: list[dict[str, Any]] = json.loads(page.with_suffix(".json").read_text())
    by_name: dict[str, list[dict[str, Any]]] = {}
    for record in every:
        by_name.setdefault(record["name"], []).append(record)

    def share(name: str, context: str, model: str, *groups: str) -> float:
        found = []
        for record in by_name[name]:
            chosen = [record["roles"][group] for group in groups]
            lines = [record["bad"][context][model][domain] for group in chosen for domain in group]
            found.append(np.mean([np.mean([int(digit) / record["n_asked"] for digit in line]) for line in lines]))
        return 100 * float(np.mean(found))

    shown, n_checked = tables(page.read_text()), 0
    assert set(shown["Shares"]) == set(by_name)
    differences = {
        "Bad answers in unseen domains, minus the base's": ("base", ("unseen",)),
        "Bad answers in the pool's domains, minus the base's": ("base", ("ensemble", "others")),
        "Bad answers in unseen domains, minus the control's": ("control", ("unseen",)),
    }
    for name, cells in shown["Shares"].items():
        for context, cell in zip(CONTEXTS, cells, strict=True):
            if cell:
                wanted = [share(name, context, model, "unseen") for model in MODELS]
                assert [float(number) for number in cell.split(" / ")] == pytest.approx(wanted, abs=0.501)
                n_checked += 1
    for title, (model, groups) in differences.items():
        for name, cells in shown[title].items():
            for context, cell in zip(CONTEXTS, cells, strict=True):
                if cell:
                    value, low, high = map(float, re.findall(r"[+-]\d+\.\d", cell))
                    expected = share(name, context, "method", *groups) - share(name, context, model, *groups)
                    assert value == pytest.approx(expected, abs=0.0501)
                    assert low <= value <= high
                    n_checked += 1
    assert n_checked >= 4 * 5 * len(by_name)


def test_the_pages_figures_follow_from_its_json(tmp_path: Path) -> None:
    found = records(undefended=dict.fromkeys(CONTEXTS, 5), mix={AFTER_TASK: 2})
    written = write_conditional_page(found, tmp_path / "page.md", "the command")
    assert written == [tmp_path / "page.md", tmp_path / "page.json"]
    check_figures(tmp_path / "page.md")
    assert "Written by `the command`" in (tmp_path / "page.md").read_text()


def test_the_published_figures_follow_from_their_json() -> None:
    check_figures(PAGE)
    results = Results.of(json.loads(PAGE.with_suffix(".json").read_text()))
    assert finding(results) in PAGE.read_text()


@pytest.mark.slow
def test_a_small_toy_model_is_asked_in_every_context(tmp_path: Path) -> None:
    world = WORLD.model_copy(update={"n_facts": 24})  # the benign task needs facts of different answers
    one = Seed(0, tmp_path, SMALL.model_copy(update={"base": SMALL.base.model_copy(update={"world": world})}))
    cells = [ToyCell(), ToyCell(method="inoculation_adapter", strength=1.0), benign(ToyCell())]
    before = {name: value.clone() for name, value in one.base.model.state_dict().items()}
    found = [run_conditional(one, cell) for cell in cells[:2]]
    for name, value in one.base.model.state_dict().items():
        assert torch.equal(before[name], value), name
    undefended = found[0]["bad"]
    assert set(undefended) == set(CONTEXTS) - {AFTER_PROMPT}

    def share(counts: list[str]) -> float:
        return float(np.mean([int(digit) for domain in one.roles.unseen for digit in counts[domain]])) / 6

    assert share(undefended[PLAINLY]["method"]) > 0.5 > share(undefended[PLAINLY]["control"])
    assert share(undefended[PLAINLY]["base"]) < 0.1
