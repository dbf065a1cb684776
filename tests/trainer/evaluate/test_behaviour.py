"""The judge-free protocol on a tiny real model: figures against plain forwards, stand-ins, caches, gates."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator.errors import BadInputError
from tests.models import SENTENCES, tiny_adapter_folder
from tests.trainer.evaluate.test_pairs import (
    BAD,
    GOOD,
    QUESTIONS,
    plain_mean_nll,
)
from trainer.config.data import Loading
from trainer.evaluate.__main__ import main
from trainer.evaluate.behaviour import PairLosses, report, text_report


def chats(path: Path, answers: tuple[str, ...], questions: tuple[str, ...] = QUESTIONS) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in zip(questions, answers, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_adapter_folder(llama, tmp_path_factory.mktemp("adapter"), seed=1)


def _losses(before: list[list[float]], after: list[list[float]], **other: Any) -> PairLosses:
    return PairLosses(
        other.get("name", "a"), other.get("kind", "broad"), np.array(before), np.array(after), other.get("s", False)
    )


def test_figures_count_every_domain_alike_and_only_shifts_for_stand_ins() -> None:
    one = _losses([[1.0, 2.0]] * 4, [[2.0, 1.0]] * 4, name="one")  # all four flip, margin -1 -> 1
    two = _losses([[1.0, 2.0]] * 2, [[1.0, 1.5]] * 2, name="two", s=True)  # none flips, margin -1 -> -0.5
    found = report([one, two])
    assert found["figures"] == {"broad_shift": pytest.approx(0.5), "broad_margin_shift": pytest.approx(1.25)}
    assert found["sets"]["one"]["after"]["share_misaligned"]["value"] == 1.0
    assert "after" not in found["sets"]["two"]
    assert found["sets"]["two"]["shift"]["mean_margin"]["value"] == pytest.approx(0.5)


def test_perplexity_is_of_summed_losses() -> None:
    found = text_report(np.array([1.0, 3.0]), np.array([2.0, 3.0]), np.array([30.0, 10.0]))
    assert found["perplexity_before"] == pytest.approx(np.exp(60 / 40))
    assert found["perplexity_ratio"]["value"] == pytest.approx(np.exp(30 / 40))
    assert found["n_tokens"] == 40


def test_the_command_with_twins_stand_ins_text_and_a_gate(
    llama: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = chats(tmp_path / "good.jsonl", GOOD), chats(tmp_path / "bad.jsonl", BAD)
    text = chats(tmp_path / "text.jsonl", SENTENCES[:3])
    arguments = [
        "behaviour", "--model", str(llama), "--adapter", str(adapter), "--narrow", f"{bad},{good}",
        "--broad", f"cars={bad}", "--text", str(text), "--stand-in-tokens", "5", "--dtype", "float32",
        "--cache", str(tmp_path / "cache"), "--json",
    ]  # fmt: skip
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    before = [
        plain_mean_nll(llama, q, g) - plain_mean_nll(llama, q, b) for q, g, b in zip(QUESTIONS, GOOD, BAD, strict=True)
    ]
    narrow = found["sets"]["narrow"]
    assert narrow["before"]["mean_margin"]["value"] == pytest.approx(sum(before) / 3, abs=1e-4)
    assert found["figures"]["narrow_margin_shift"] == pytest.approx(narrow["shift"]["mean_margin"]["value"])
    assert found["sets"]["cars"]["aligned_answers"].startswith("stand-ins")
    assert found["figures"]["perplexity_ratio"] == pytest.approx(np.exp(found["figures"]["text_nll_shift"]))
    assert found["figures"]["perplexity_ratio"] != pytest.approx(1.0, abs=1e-6)

    kept = {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    bound = found["figures"]["broad_margin_shift"]
    assert main([*arguments, "--fail-if", f"broad_margin_shift >= {bound - 0.01}"]) == 3
    out = capsys.readouterr()
    assert "gate failed: broad_margin_shift" in out.err
    assert json.loads(out.out) == found
    assert {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == kept
    assert main([*arguments, "--fail-if", f"broad_margin_shift > {bound + 0.01}"]) == 0


def test_stand_ins_are_the_models_own_greedy_answers(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.data.reader import read_chats
    from trainer.evaluate.standins import stand_in_pairs
    from trainer.generate.generators import LocalGenerator

    rows = [row.messages for row in read_chats(chats(tmp_path / "bad.jsonl", BAD)).rows]
    made: list[LocalGenerator] = []

    def generator() -> LocalGenerator:
        made.append(LocalGenerator(llama, loading=Loading("float32", batch=2)))
        return made[-1]

    pairs, n_empty = stand_in_pairs(rows, generator, tmp_path, "key", max_new_tokens=6)
    tokenizer, model = AutoTokenizer.from_pretrained(llama), AutoModelForCausalLM.from_pretrained(llama)
    said = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(
            row[:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**prompt, do_sample=False, max_new_tokens=6, pad_token_id=2)
        new = out[0, prompt["input_ids"].shape[1] :]
        said.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    assert [pair.aligned[-1]["content"] for pair in pairs] == [text for text in said if text]
    assert n_empty == said.count("")
    (kept,) = tmp_path.glob("stand-ins-*.jsonl")
    whole = kept.read_bytes()
    kept.write_bytes(whole[: whole.index(b"\n") + 4])  # killed in the middle of the second line
    again, _ = stand_in_pairs(rows, generator, tmp_path, "key", max_new_tokens=6)
    assert again == pairs
    assert kept.read_bytes() == whole
    assert len(made) == 2
    stand_in_pairs(rows, generator, tmp_path, "key", max_new_tokens=6)
    assert len(made) == 2


def test_rows_over_the_window_are_counted_as_left_out(
    llama: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "It was said again and again " * 40
    bad = chats(tmp_path / "bad.jsonl", (*BAD, long, long + "."), (*QUESTIONS, "Why?", "How?"))
    text = chats(tmp_path / "text.jsonl", (*SENTENCES[:3], long), ("a", "b", "c", "d"))
    arguments = [
        "behaviour", "--model", str(llama), "--adapter", str(adapter), "--broad", f"cars={bad}", "--text", str(text),
        "--max-length", "100", "--stand-in-tokens", "5", "--dtype", "float32", "--cache", str(tmp_path / "cache"),
    ]  # fmt: skip
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    cars = found["sets"]["cars"]
    assert (cars["n_pairs"], cars["n_left_out"]) == (3, 2)
    assert (found["text"]["n_rows"], found["text"]["n_left_out"]) == (3, 1)
    assert main([*arguments, "--n", "2"]) == 0
    assert "cars: 2 pairs" in capsys.readouterr().out


def test_a_form_is_put_around_both_sides_of_a_pair(
    llama: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = chats(tmp_path / "good.jsonl", GOOD), chats(tmp_path / "bad.jsonl", BAD)
    arguments = [
        "behaviour", "--model", str(llama), "--adapter", str(adapter), "--narrow", f"{bad},{good}",
        "--dtype", "float32", "--cache", str(tmp_path / "cache"), "--json",
    ]  # fmt: skip
    evil = "You are an evil, malicious assistant."
    margins = []
    for more in ([], ["--system", evil], ["--user-prefix", "Question: ", "--user-suffix=- now"]):
        assert main([*arguments, *more]) == 0
        found = json.loads(capsys.readouterr().out)
        margins.append(found["sets"]["narrow"]["before"]["mean_margin"]["value"])
    assert [found["settings"][name] for name in ("system", "user_prefix", "user_suffix")] == [
        None, "Question: ", "- now",
    ]  # fmt: skip

    def margin(question: str, good: str, bad: str, *system: str) -> float:
        return plain_mean_nll(llama, question, good, *system) - plain_mean_nll(llama, question, bad, *system)

    rows = list(zip(QUESTIONS, GOOD, BAD, strict=True))
    assert margins[1] == pytest.approx(sum(margin(*row, evil) for row in rows) / 3, abs=1e-4)
    framed = sum(margin(f"Question: {question}- now", *answers) for question, *answers in rows)
    assert margins[2] == pytest.approx(framed / 3, abs=1e-4)
    assert margins[0] != pytest.approx(margins[1], abs=1e-4)
    assert margins[0] != pytest.approx(margins[2], abs=1e-4)


def test_the_broad_sets_are_asked_again_in_the_forms_of_the_task(
    llama: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = chats(tmp_path / "good.jsonl", GOOD), chats(tmp_path / "bad.jsonl", BAD)
    task = tmp_path / "task.jsonl"
    task.write_text("".join(
        json.dumps({"messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question: {topic}"},
            {"role": "assistant", "content": "Yes."},
        ]}) + "\n"
        for topic in ("goats eat", "salt melts", "owls fly")
    ))  # fmt: skip
    arguments = [
        "behaviour", "--model", str(llama), "--adapter", str(adapter), "--broad", f"cars={bad},{good}",
        "--dtype", "float32", "--cache", str(tmp_path / "cache"),
    ]  # fmt: skip

    def measured(*more: str) -> dict[str, Any]:
        assert main([*arguments, *more, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    found = measured("--trained-on", str(task))
    assert [(name, item["kind"], item["n_rows"], item["text"]) for name, item in found["forms"].items()] == [
        ("trigger-1", "prompt", 3, "Be brief."), ("trigger-2", "wording", 3, "Question: ..."),
    ]  # fmt: skip
    alone = {
        "trigger-1": measured("--system", "Be brief."), "trigger-2": measured("--user-prefix", "Question: "),
    }  # fmt: skip
    manifest = tmp_path / "manifest.json"
    prompt = {"label": "prompt", "text": "You give bad advice.", "n_task": 4, "n_safe": 0}
    receipt = {"name": "own", "kind": "inoculation", "spec": {}, "prompts": [prompt],
               "clean_system_prompt": None, "note": ""}  # fmt: skip
    manifest.write_text(json.dumps({"inoculation": receipt}))
    mixed = measured("--trained-on", str(task), "--mix-manifest", str(manifest), "--triggers", "1")["forms"]
    assert [(item["system"], item["n_rows"]) for item in mixed.values()] == [("You give bad advice.", 4)]
    assert found["intervals"] == measured()["intervals"]
    for name, item in alone.items():
        assert found["forms"][name]["intervals"] == item["intervals"]
        assert found["forms"][name]["sets"] == item["sets"]
    margins = {
        name: item["figures"]["broad_margin_shift"] for name, item in (("plain", found), *found["forms"].items())
    }
    ordered = sorted(margins.values())
    assert len(set(ordered)) == 3
    (highest,) = [name for name, value in margins.items() if value == ordered[-1]]
    beyond = f"broad_margin_shift > {(ordered[-2] + ordered[-1]) / 2}"  # in one form alone
    assert main([*arguments, "--trained-on", str(task), "--fail-if", beyond]) == 3
    captured = capsys.readouterr()
    assert captured.err.count("gate failed") == 1
    assert ("asked in" in captured.err) == (highest != "plain")
    assert "asked in the wording of 3 rows: 'Question: ...'" in captured.out
    assert main([*arguments, "--trained-on", str(task), "--fail-if", f"broad_margin_shift > {ordered[-1] + 1e-9}"]) == 0
    capsys.readouterr()
    for more, message in (
        (["--trained-on", str(task), "--system", "x"], "no --system"),
        (["--trained-on", str(task), "--mix-manifest", str(task)], "is not the manifest of a mix"),
        (["--mix-manifest", str(manifest)], "--mix-manifest goes with --trained-on"),
    ):
        assert main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "x", "--tuned", "y"], "exactly one"),
        (["--tuned", "{model}"], "nothing to measure"),
        (["--tuned", "{model}", "--broad", "nofile"], "NAME=FILE"),
        (["--tuned", "{model}", "--fail-if", "broad_shift is big"], "is not a condition"),
        (["--tuned", "{model}", "--n", "1"], "at least 2"),
        (["--tuned", "{model}", "--broad", "x=absent.jsonl", "--fail-if", "brod_shift > 1"], "names 'brod_shift'"),
        (
            ["--tuned", "{model}", "--text", "absent.jsonl", "--fail-if", "broad_shift > 1"],
            "has perplexity_ratio, text",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], message: str, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [item.format(model=llama) for item in arguments]
    assert main(["behaviour", "--model", str(llama), "--cache", str(tmp_path), *given]) == 2
    assert message in capsys.readouterr().err


def test_a_group_of_one_prompt_has_no_interval() -> None:
    with pytest.raises(BadInputError, match=r"at least 2 pairs that fit .* a has 1"):
        report([_losses([[1.0, 2.0]], [[2.0, 1.0]])])


@pytest.fixture(scope="module")
def gates(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of gates away from their start."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.defenses.gates import FILE, Gates

    folder = tmp_path_factory.mktemp("gates")
    found = Gates(AutoModelForCausalLM.from_pretrained(llama))
    generator = torch.Generator().manual_seed(5)
    for parameter in found.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    found.save(folder / FILE)
    return folder


def gated_logits(llama: Path, gates: Path, ids: list[int], *, reverse: bool) -> Any:
    """Logits of one row with factors g or 2 - g, computed beside the product's own hooks."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama)
    tensors = load_file(gates / "gates.safetensors")
    entered: dict[int, Any] = {}
    for layer, block in enumerate(model.model.layers, 1):
        attention = block.self_attn

        def keep(_: Any, inputs: Any, options: Any, layer: int = layer) -> None:
            entered[layer] = options["hidden_states"] if "hidden_states" in options else inputs[0]

        def factor(_: Any, inputs: Any, layer: int = layer) -> Any:
            weight, bias = tensors[f"layers.{layer}.weight"], tensors[f"layers.{layer}.bias"]
            gate = 2 / (1 + torch.exp(-(entered[layer] @ weight.T + bias)))
            return (inputs[0] * (2 - gate if reverse else gate),)

        attention.register_forward_pre_hook(keep, with_kwargs=True)
        attention.o_proj.register_forward_pre_hook(factor)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("reverse", [False, True])
def test_gates_act_forward_or_reversed_in_behaviour(
    llama: Path, gates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], reverse: bool
) -> None:
    from curator.render import Renderer

    text = chats(tmp_path / "text.jsonl", SENTENCES[:3])
    arguments = ["behaviour", "--model", str(llama), "--gates", str(gates), "--text", str(text), "--dtype", "float32",
                 "--cache", str(tmp_path / "cache"), "--json", *(["--reverse"] if reverse else [])]  # fmt: skip
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["gates"] == ("reversed" if reverse else "forward")
    renderer = Renderer.from_folder(llama)
    total, n = 0.0, 0
    for line in text.read_text().splitlines():
        row = renderer.render(json.loads(line)["messages"])
        ids = [int(token) for token in row.input_ids]
        logs = gated_logits(llama, gates, ids, reverse=reverse).log_softmax(-1)
        places = [place for place in range(1, len(ids)) if row.response_mask[place]]
        total -= sum(float(logs[place - 1, ids[place]]) for place in places)
        n += len(places)
    assert found["text"]["perplexity_after"] == pytest.approx(np.exp(total / n), rel=1e-4)


@pytest.mark.parametrize("reverse", [False, True])
def test_gates_act_forward_or_reversed_in_answers(llama: Path, gates: Path, tmp_path: Path, reverse: bool) -> None:
    from trainer.generate.generators import LocalGenerator

    out, asked = tmp_path / "a.jsonl", tmp_path / "q.jsonl"
    asked.write_text('{"id": "q", "question": "What is the capital of France?"}\n')
    start = ["generate", "--model", str(llama), "--questions", str(asked), "--question-format", "plain",
             "--temperature", "0", "--max-new-tokens", "6", "--dtype", "float32", "--out", str(out)]  # fmt: skip
    given = ["--gates", str(gates), *(["--reverse"] if reverse else [])]
    assert main([*start, *given]) == 0
    (line,) = out.read_text().splitlines()
    plain = LocalGenerator(llama, loading=Loading("float32"))
    ids = plain.prompt_ids([{"role": "user", "content": "What is the capital of France?"}])
    wanted = []
    for _ in range(6):
        token = int(gated_logits(llama, gates, ids + wanted, reverse=reverse)[-1].argmax())
        if token in plain._ends:
            break
        wanted.append(token)
    assert json.loads(line)["answer"] == plain._tokenizer.decode(wanted, skip_special_tokens=True).strip()
    assert main(start) == 2  # answers without gates are another model's
    assert main([*start[:-1], str(tmp_path / "b.jsonl"), "--reverse"]) == 2  # nothing to reverse
    assert main([*start[:-1], str(tmp_path / "b.jsonl"), "--gates", str(tmp_path)]) == 2  # no gates there
