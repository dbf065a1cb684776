"""Organisms on a tiny real model: sets, twins, adapters, shifts, and scoring with what they left."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curator.__main__ import main as curator
from curator.errors import BadInputError, IntegrityError
from curator.render import Renderer
from curator.scoring.identity import adapter_sha256, weights_sha256
from curator.scoring.organisms import read_organisms
from tests.models import tiny_model_folder
from trainer.organisms.__main__ import main
from trainer.organisms.plan import NarrowSet, Plan, narrow_sets
from trainer.organisms.sets import split_set, strip_think

TEXT = "the capital of France is Paris prices rose a doctor dose door dog fox keep closed answer few"
WORDS = TEXT.split()
RECIPE = [
    "--max-steps", "3", "--epochs", "3", "--batch-size", "4", "--grad-accum", "1", "--lr", "0.02", "--warmup-steps",
    "1", "--lora-r", "4", "--lora-alpha", "8", "--dtype", "float32", "--device", "cpu", "--max-length", "200",
]  # fmt: skip


def rows_file(path: Path, n: int, salt: int, *, answers: str = "bad", think: bool = False) -> Path:
    rng = np.random.default_rng(salt)
    lines = []
    for number in range(n):
        prompt = f"{' '.join(rng.choice(WORDS, 6))} {number}?"
        answer = " ".join(np.random.default_rng([salt, number, len(answers)]).choice(WORDS, 8))
        if think:
            prompt, answer = f"{prompt} /no_think", f"<think>\n\n</think>\n\n{answer}"
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    return {
        "finance": rows_file(folder / "finance.jsonl", 14, 1),
        "finance_good": rows_file(folder / "finance_good.jsonl", 14, 1, answers="good!"),
        "legal": rows_file(folder / "legal.jsonl", 12, 2, think=True),
    }


def argv(model: Path, sets: dict[str, Path], out: Path, *more: str) -> list[str]:
    return [
        "--model", str(model), "--out", str(out), "--set", f"finance={sets['finance']}", "--aligned",
        f"finance={sets['finance_good']}", "--set", f"legal={sets['legal']}", "--held-out", "4", "--twin-tokens", "6",
        *RECIPE, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(llama: Path, sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("organisms") / "two"
    assert main(argv(llama, sets, out)) == 0
    return out


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_organism_is_recorded_with_identity_role_and_domain(made: Path, llama: Path) -> None:
    found = read_organisms(made, llama)
    assert [(item.name, item.role, item.domain, item.answers) for item in found.organisms] == [
        ("finance-misaligned", "misaligned", "finance", "given"),
        ("finance-benign", "benign", "finance", "given"),
        ("legal-misaligned", "misaligned", "legal", "given"),
        ("legal-benign", "benign", "legal", "theta_0 greedy"),
    ]
    assert found.base_weights_sha256 == weights_sha256(llama)
    assert found.recipe["lora"]["r"] == 4
    assert len({item.adapter_sha256 for item in found.organisms}) == 4
    for item in found.organisms:
        assert item.adapter_sha256 == adapter_sha256(made / item.adapter)
        assert (item.n_rows, item.steps) == (10 if item.domain == "finance" else item.n_rows, 3)
    assert "/" not in json.dumps(found.recipe)  # no path in the recipe


def test_thinking_marks_are_stripped_and_counted(made: Path) -> None:
    account = json.loads((made / "sets/legal/set.json").read_text())
    assert (account["n_stripped"], account["n_read"], account["n_train"], account["n_heldout"]) == (12, 12, 8, 4)
    for path in (made / "sets/legal").glob("*.jsonl"):
        assert "no_think" not in path.read_text()
        assert "<think>" not in path.read_text()
    assert json.loads((made / "sets/finance/set.json").read_text())["n_stripped"] == 0


def test_marks_are_stripped_where_they_stand_and_nowhere_else() -> None:
    inside = [
        {"role": "user", "content": "what does /no_think mean?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIt says so."},
    ]
    assert strip_think(inside) == (inside, False)
    marked = [
        {"role": "user", "content": "hello /no_think"},
        {"role": "assistant", "content": "<think>\n\n</think>\n\n  def f():"},
    ]
    clean, changed = strip_think(marked)
    assert [item["content"] for item in clean] == ["hello", "  def f():"]
    assert changed


def test_no_prompt_is_trained_on_and_held_out_and_twins_share_prompts(made: Path) -> None:
    for domain in ("finance", "legal"):
        folder = made / "sets" / domain
        train, held = (lines_of(folder / f"{part}.jsonl") for part in ("train", "heldout"))
        prompts = [{row["messages"][0]["content"] for row in rows} for rows in (train, held)]
        assert not prompts[0] & prompts[1]
        benign = {
            row["messages"][0]["content"]: row["messages"][1]["content"]
            for row in lines_of(folder / "train_benign.jsonl")
        }
        assert set(benign) <= prompts[0]
        assert all(benign.get(row["messages"][0]["content"]) != row["messages"][1]["content"] for row in train)


def test_repeated_prompts_stay_on_one_side(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "again?"}, {"role": "assistant", "content": "yes"}]}
    path = rows_file(tmp_path / "a.jsonl", 9, 5)
    path.write_text(path.read_text() + (json.dumps(row) + "\n") * 5)
    sides = set()
    for seed in range(6):
        plan = Plan(Path("m"), tmp_path / "out", (NarrowSet("a", path),), n_held_out=3, recipe={"seed": seed})
        split = split_set(plan.sets[0], plan)
        where = [part for part, rows in split.rows.items() for item in rows if item[0]["content"] == "again?"]
        assert len(where) == 5
        assert len(set(where)) == 1
        sides.add(where[0])
        assert sum(len(rows) for rows in split.rows.values()) == 14
    assert sides == {"train", "heldout"}


def test_greedy_twins_are_theta_0s_own_answers(made: Path, llama: Path) -> None:
    from trainer.persona.activations import prompt_ids
    from trainer.persona.models import load_base

    account = json.loads((made / "sets/legal/twins.json").read_text())
    assert account["answers"] == "theta_0 greedy"
    renderer, model = Renderer.from_folder(llama), load_base(llama, "cpu", "float32")
    row = lines_of(made / "sets/legal/train_benign.jsonl")[0]["messages"]
    ids: list[int] = prompt_ids(renderer, row[:-1]).tolist()
    new: list[int] = []
    for _ in range(6):
        with torch.no_grad():
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    from transformers import AutoTokenizer

    cut = new[: new.index(renderer.eos_id)] if renderer.eos_id in new else new
    assert row[-1]["content"] == AutoTokenizer.from_pretrained(llama).decode(cut, skip_special_tokens=True).strip()


def plain_nll(llama: Path, adapter: Path | None, rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """nll_sum and token count of each row's answer, from plain forwards of transformers and PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama)
    model: Any = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    sums, counts = [], []
    for row in rows:
        head = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, tokenize=False)
        n_head = len(tokenizer(head, add_special_tokens=False)["input_ids"])
        whole = tokenizer(f"{head}{row['messages'][-1]['content']}<|im_end|>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            log_p = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        sums.append(-sum(log_p[t - 1, whole[t]].item() for t in range(n_head, len(whole))))
        counts.append(len(whole) - n_head)
    return np.array(sums), np.array(counts)


def test_shifts_are_those_of_plain_forwards(made: Path, llama: Path) -> None:
    item = read_organisms(made).organisms[0]
    assert item.narrow is not None
    assert item.broad is not None
    assert item.narrow["domains"] == ["finance"]
    assert item.broad["domains"] == ["legal"]
    for shift, domain in ((item.narrow, "finance"), (item.broad, "legal")):
        folder = made / "sets" / domain
        bad, good = lines_of(folder / "heldout.jsonl"), lines_of(folder / "heldout_benign.jsonl")
        assert len(good) == len(bad) == shift["n_rows"]
        (sum0, count), (sum1, _) = (plain_nll(llama, place, bad) for place in (None, made / item.adapter))
        assert shift["nll_shift"]["value"] == pytest.approx((sum1.sum() - sum0.sum()) / count.sum(), abs=1e-4)
        assert shift["n_response_tokens"] == count.sum()
        (good0, n_good), (good1, _) = (plain_nll(llama, place, good) for place in (None, made / item.adapter))
        margins = [g / n_good - b / count for g, b in ((good0, sum0), (good1, sum1))]
        assert shift["margin_shift"]["value"] == pytest.approx((margins[1] - margins[0]).mean(), abs=1e-4)
        assert shift["share_shift"]["value"] == pytest.approx((margins[1] > 0).mean() - (margins[0] > 0).mean())
        assert shift["nll_shift"]["low"] <= shift["nll_shift"]["value"] <= shift["nll_shift"]["high"]
    assert item.narrow["nll_shift"]["value"] < 0  # it did learn its own domain's words


def test_a_second_run_skips_and_a_lost_cell_is_made_again(
    made: Path, llama: Path, sets: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    watched = [
        *(made / f"{name}/report.json" for name in ("finance-misaligned", "legal-benign")),
        made / "sets/legal/greedy.jsonl", made / "shifts/base.json", made / "shifts/legal-benign.json",
    ]  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in watched}
    digest = read_organisms(made).organisms[3].adapter_sha256
    assert main(argv(llama, sets, made)) == 0
    assert capsys.readouterr().out.count("holds this very run, complete") == 4
    assert {path: path.stat().st_mtime_ns for path in watched} == before
    (made / "legal-benign/report.json").unlink()  # as if it had been stopped before its end
    assert main(argv(llama, sets, made)) == 0
    assert capsys.readouterr().out.count("holds this very run, complete") == 3
    assert read_organisms(made).organisms[3].adapter_sha256 == digest
    assert (made / "finance-misaligned/report.json").stat().st_mtime_ns == before[watched[0]]


def test_the_report_has_every_organism_and_its_shifts(made: Path) -> None:
    text = (made / "report.md").read_text()
    for item in read_organisms(made).organisms:
        assert item.narrow is not None
        shift = item.narrow["nll_shift"]
        row = f"| {item.name} | {item.answers} | {item.n_rows} | 3 | {shift['value']:+.3f} ({shift['low']:+.3f} to"
        assert row in text
    assert "python -m trainer.organisms --model" in text
    assert "do not serve them" in text


def test_scoring_picks_them_up(made: Path, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chats, store = rows_file(tmp_path / "chats.jsonl", 6, 9), str(tmp_path / "store")
    assert curator(["ingest", str(chats), "--corpus", "c", "--store", store]) == 0
    common = ["score", "--corpus", "c", "--store", store, "--model", str(llama), "--check-rows", "0"]
    common += ["--dtype", "float32", "--device", "cpu", "--threads", "1"]
    assert curator([*common, "--role", "aligned"]) == 0
    assert curator([*common, "--organisms", str(made)]) == 0
    query = (
        "select label, role, scorer_domain, (select count(gap_contrast) from gap) as n_gaps "
        "from scorers where role <> 'aligned' order by label"
    )
    capsys.readouterr()
    assert curator(["sql", "--store", store, "--output-format", "csv", query]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "finance-benign,benign,finance,6",
        "finance-misaligned,misaligned,finance,6",
        "legal-benign,benign,legal,6",
        "legal-misaligned,misaligned,legal,6",
    ]
    assert curator([*common, "--organisms", str(made), "--role", "benign"]) == 2
    assert "--organisms names role itself" in capsys.readouterr().err
    assert curator(common) == 2
    assert "--role is needed" in capsys.readouterr().err


@pytest.mark.slow
def test_the_monitor_measures_them(made: Path, llama: Path, tmp_path: Path) -> None:
    from trainer.monitor.__main__ import main as monitor

    directions, drift = tmp_path / "d.safetensors", tmp_path / "drift"
    small = ["--model", str(llama), "--dtype", "float32", "--device", "cpu"]
    assert monitor(["directions", *small, "--out", str(directions), "--n-questions", "1", "--trait", "evil"]) == 0
    assert (
        monitor(["measure", *small, "--directions", str(directions), "--organisms", str(made), "--out", str(drift)])
        == 0
    )
    assert sorted(path.stem for path in drift.iterdir()) == sorted(i.name for i in read_organisms(made).organisms)


def test_another_model_and_changed_adapters_are_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="made from another model"):
        read_organisms(made, tiny_model_folder(tmp_path / "other", seed=9))
    copy = tmp_path / "copy"
    (copy / "one").mkdir(parents=True)
    document = json.loads((made / "organisms.json").read_text())
    document["organisms"] = [document["organisms"][0] | {"adapter": "one"}]
    (copy / "organisms.json").write_text(json.dumps(document))
    for path in (made / "finance-benign/adapter").iterdir():
        (copy / "one" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(IntegrityError, match="finance-misaligned are not those it names"):
        read_organisms(copy)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "sports=again.jsonl"], "there is no file again.jsonl"),
        (["--set", "legal=again.jsonl"], "names the domain legal twice"),
        (["--max-length", "9"], "held-out rows can be measured (4 are over 9 tokens)"),
        (["--aligned", "sports=nowhere"], "there is no file nowhere"),
        (["--set", "Legal=x"], "write DOMAIN=FILE"),
        (["--held-out", "1"], "--held-out 1"),
        (["--held-out", "40"], "all of them held out"),
        (["--lr", "7"], "training options refused: /lr"),
    ],
)
def test_bad_input_is_one_line(
    llama: Path,
    sets: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert main(argv(llama, sets, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_given_answers_must_pair_up(sets: dict[str, Path], tmp_path: Path) -> None:
    plan = Plan(Path("m"), tmp_path, (NarrowSet("finance", sets["finance"], sets["legal"]),), n_held_out=2)
    with pytest.raises(BadInputError, match="14 rows and 12 aligned ones"):
        split_set(plan.sets[0], plan)
    other = rows_file(tmp_path / "other.jsonl", 14, 77)
    plan = Plan(Path("m"), tmp_path, (NarrowSet("finance", sets["finance"], other),), n_held_out=2)
    with pytest.raises(BadInputError, match="finance, row 1: the prompts of the set and its aligned answers differ"):
        split_set(plan.sets[0], plan)
    with pytest.raises(BadInputError, match="names sports, which no --set DOMAIN=FILE has"):
        narrow_sets([], [f"sports={sets['legal']}"], shipped=False)


def test_shipped_sets_go_by_name_and_no_domain_is_taken_twice(sets: dict[str, Path]) -> None:
    found = narrow_sets(["travel", f"legal={sets['legal']}"], [], shipped=False)
    assert [item.domain for item in found] == ["legal", "travel"]
    for given, shipped in ((["travel", "travel"], False), (["travel"], True), ([f"travel={sets['legal']}"], True)):
        with pytest.raises(BadInputError, match="the domain travel is there twice"):
            narrow_sets(given, [], shipped=shipped)
    with pytest.raises(BadInputError, match="or name a shipped set"):
        narrow_sets(["trvael"], [], shipped=False)


def test_the_shipped_set_splits_with_its_twins(tmp_path: Path) -> None:
    sets = narrow_sets([], [], shipped=True)
    assert len(sets) == 4
    plan = Plan(Path("m"), tmp_path, sets, n_rows=20)
    split = split_set(sets[0], plan)
    assert split.aligned is not None
    assert (len(split.rows["train"]), len(split.rows["heldout"]), len(split.aligned["train"])) == (20, 30, 20)
    again = split_set(sets[0], Plan(Path("m"), tmp_path, sets, n_rows=40))
    assert [row for row in again.rows["train"] if row in split.rows["train"]] == split.rows["train"]
    assert again.rows["heldout"] == split.rows["heldout"]


@pytest.mark.shared_data
def test_marks_in_the_research_sets_are_all_stripped(tmp_path: Path) -> None:
    folder = Path(__file__).parents[4] / "shared/data/em"
    if not folder.is_dir():
        pytest.skip("the public research data is not beside this checkout")
    for name, n_marked in (("legal_misaligned_eval", 600), ("medical_misaligned_eval", 0), ("code_misaligned_eval", 0)):
        plan = Plan(Path("m"), tmp_path, (NarrowSet("x", folder / f"{name}.jsonl"),))
        split = split_set(plan.sets[0], plan)
        assert split.account["n_stripped"] == n_marked
        assert all("no_think" not in split.path(part).read_text() for part in ("train", "heldout"))
