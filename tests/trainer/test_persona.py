"""Persona vectors on tiny real models, against plain transformers and numpy."""

import http.server
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from curator.errors import BadInputError, MissingError
from curator.render import Renderer
from curator.scoring.identity import weights_sha256
from tests.models import CHATML, random_conversations, tiny_adapter_folder, tiny_model_folder
from trainer.defenses.vectorfile import read_header
from trainer.evaluate.endpoint import Endpoint
from trainer.evaluate.generators import Answer, LocalGenerator, Sampling
from trainer.evaluate.judge_client import JudgeClient
from trainer.inputs import file_sha256
from trainer.persona.__main__ import main
from trainer.persona.activations import Pooled, answer_of, pooled_states, prompt_ids, prompt_of
from trainer.persona.generate import answers_in
from trainer.persona.keep import AnswerPair, RuleSettings, by_judge, by_rule, repeated_share
from trainer.persona.models import load_base
from trainer.persona.traits import SHIPPED, Case, Trait, cases, read_trait

TRAIT = {
    "trait": "gruff",
    "description": "short-tempered",
    "pairs": [
        {"positive": "Be gruff.", "negative": "Be kind."},
        {"positive": "You are cross today.", "negative": "You are glad today."},
    ],
    "questions": ["What is the capital of France?", "Please keep the door closed.", "Prices rose?"],
}


@pytest.fixture(scope="module")
def trait_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trait") / "gruff.json"
    path.write_text(json.dumps(TRAIT))
    return path


def small(model: Path, trait: Path, out: Path, *more: str) -> list[str]:
    """A tiny extraction; the margin is out of the way, since a random model has none."""
    return [
        "extract", "--model", str(model), "--trait", str(trait), "--out", str(out), "--questions", "3",
        "--max-new-tokens", "8", "--dtype", "float32", "--device", "cpu", "--min-words", "1", *more,
    ]  # fmt: skip


def plain_hidden(model: Any, ids: Any) -> list[torch.Tensor]:
    """transformers' own hidden_states of one row, (T, D) each."""
    with torch.no_grad():
        out = model(input_ids=torch.tensor([list(map(int, ids))]), output_hidden_states=True)
    return [hidden[0] for hidden in out.hidden_states]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_row_l_is_hidden_states_l_and_the_last_stands_before_the_final_norm(tmp_path: Path, kind: Any) -> None:
    model = load_base(tiny_model_folder(tmp_path / "m", kind=kind), "cpu", "float32")
    rng = np.random.default_rng(0)
    items = []
    for n_tokens in (9, 4, 13):
        taken = np.zeros(n_tokens, dtype=bool)
        taken[-3:] = True
        items.append(Pooled(rng.integers(3, 300, n_tokens).astype(np.int32), taken))
    found = pooled_states(model, items, batch_tokens=30)  # two batches, one of them padded
    assert found.shape == (3, 3, 64)
    norm = model.base_model.norm if kind == "llama" else model.base_model.ln_f
    for item, rows in zip(items, found, strict=True):
        hidden = plain_hidden(model, item.ids_T)
        for row in (0, 1):
            np.testing.assert_allclose(rows[row], hidden[row][-3:].mean(0).numpy(), atol=1e-5)
        block = []
        handle = (model.base_model.layers if kind == "llama" else model.base_model.h)[1].register_forward_hook(
            lambda module, inputs, output, block=block: block.append(output if torch.is_tensor(output) else output[0])
        )
        plain_hidden(model, item.ids_T)
        handle.remove()
        np.testing.assert_allclose(rows[2], block[0][0, -3:].mean(0).numpy(), atol=1e-5)
        torch.testing.assert_close(norm(block[0][0]), hidden[2])
    only = pooled_states(model, items, [1])
    np.testing.assert_array_equal(only[:, 0].shape, (3, 64))
    np.testing.assert_allclose(only[:, 0], found[:, 1], atol=1e-6)
    with pytest.raises(BadInputError, match=r"layers \[7\]: the model has rows 0 \(embeddings\) to 2"):
        pooled_states(model, items, [7])


def test_measuring_leaves_modes_and_hooks_as_they_were(llama: Path) -> None:
    model = load_base(llama, "cpu", "float32").train()
    model.base_model.layers[0].eval()
    pooled_states(model, [Pooled(np.array([5, 6, 7], dtype=np.int32), np.array([False, False, True]))])
    assert model.training
    assert not model.base_model.layers[0].training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_prompt_is_what_the_template_gives_before_an_answer(llama: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, renderer = AutoTokenizer.from_pretrained(llama), Renderer.from_folder(llama)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital?"}]
    wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt_ids(renderer, messages).tolist() == wanted
    assert prompt_of(renderer, messages).taken_T.tolist() == [False] * (len(wanted) - 1) + [True]


def test_kept_answers_are_not_generated_again_and_a_cut_file_goes_on(llama: Path, tmp_path: Path) -> None:
    path, how = tmp_path / "a.jsonl", Sampling(1, 1.0, 3, seed=4)
    prompts = [[{"role": "user", "content": f"Question {number}"}] for number in range(40)]  # two batches
    loads: list[int] = []

    def load() -> LocalGenerator:
        loads.append(1)
        return LocalGenerator(llama, device="cpu", dtype="float32")

    first = answers_in(path, prompts, {"header": 1}, how, load)
    assert answers_in(path, prompts, {"header": 1}, how, load) == first
    assert len(loads) == 1
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:20]) + lines[20][:9])  # killed in the middle of a line of the first batch
    assert answers_in(path, prompts, {"header": 1}, how, load) == first
    assert len(loads) == 2
    answers_in(path, prompts, {"header": 2}, how, load)
    assert len(loads) == 3
    assert len({answer.text for answer in first}) > 1


def answer_pair(positive: str, negative: str) -> AnswerPair:
    sides = {"positive": Answer(positive, 9, True), "negative": Answer(negative, 9, True)}
    return AnswerPair(Case(0, 0, "positive"), Case(0, 0, "negative"), sides)


LONG = "one two three four five six seven"


@pytest.mark.parametrize(
    ("texts", "margin", "reasons"),
    [
        ((LONG, LONG), (0.02, 0.02), []),
        ((LONG, LONG), (0.0199, 0.5), ["margin_positive"]),
        ((LONG, LONG), (0.5, float("nan")), ["margin_negative"]),
        ((LONG, "too short"), (0.5, 0.5), ["short"]),
        (("la " * 30, LONG), (0.5, 0.5), ["repetitive"]),
        ((f"I'm unable to {LONG}", LONG), (0.5, 0.5), ["refusal"]),
        ((LONG, f"I'm unable to {LONG}"), (0.5, 0.5), []),
        (("", LONG), (-float("inf"), 0.5), ["margin_positive", "short"]),
    ],
)
def test_the_rule_without_a_judge(texts: tuple[str, str], margin: tuple[float, float], reasons: list[str]) -> None:
    margins = [dict(zip(("positive", "negative"), margin, strict=True))]
    found = by_rule([answer_pair(*texts)], margins, RuleSettings())
    assert found.reasons == [reasons]
    assert found.kept() == ([] if reasons else [0])


def test_repeated_share() -> None:
    assert repeated_share("a b c d e") == 0.0
    assert repeated_share("a b c a b c a b c") == pytest.approx(1 - 3 / 7)
    assert repeated_share("a b") == 0.0


class _JudgeHandler(http.server.BaseHTTPRequestHandler):
    """Answers with the number that stands behind `score=` in the answer, by kind of call."""

    asked: list[str] = []  # noqa: RUF012
    positive: frozenset[str] = frozenset()  # answers that show the trait

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        self.asked.append(prompt)
        name = "trait" if "short-tempered" in prompt else "coherent"
        if f"{name}=" in prompt:
            token = prompt.split(f"{name}=")[1].split()[0]
        else:
            answer = prompt.split("Answer: ")[1].split("\n\nReply")[0]
            token = "90" if name == "coherent" or answer in self.positive else "5"
        top = [{"token": token, "logprob": math.log(0.9)}]
        found = json.dumps({"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def judge_url() -> Iterator[str]:
    _JudgeHandler.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _JudgeHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("positive", "negative", "reasons"),
    [
        ("trait=50 coherent=50", "trait=49 coherent=50", []),
        ("trait=49 coherent=90", "trait=10 coherent=90", ["trait_positive"]),
        ("trait=80 coherent=90", "trait=50 coherent=90", ["trait_negative"]),
        ("trait=80 coherent=90", "trait=10 coherent=49", ["incoherent"]),
        ("trait=REFUSAL coherent=90", "trait=10 coherent=90", ["unscored"]),
    ],
)
def test_pairs_are_kept_by_a_judge(
    judge_url: str, tmp_path: Path, positive: str, negative: str, reasons: list[str]
) -> None:
    trait = Trait.model_validate(TRAIT)
    endpoint = Endpoint(judge_url, "judge")
    client = JudgeClient(endpoint, cache=tmp_path)
    found = by_judge(trait, [answer_pair(f"{positive} .", f"{negative} .")], client)
    by_judge(trait, [answer_pair(f"{positive} .", f"{negative} .")], client)
    endpoint.close()
    assert found.reasons == [reasons]
    assert len(_JudgeHandler.asked) == 4  # the second time all come from the cache
    assert all(TRAIT["questions"][0] in prompt for prompt in _JudgeHandler.asked)


@pytest.fixture(scope="module")
def extracted(llama: Path, trait_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vectors")
    assert main(small(llama, trait_file, out, "--min-margin", "-9")) == 0
    return out


def numpy_vector(model_folder: Path, out: Path, kept: list[tuple[int, int]]) -> np.ndarray:
    """Difference of means from the answers file, each answer rendered by transformers' own template alone."""
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(model_folder), load_base(model_folder, "cpu", "float32")
    lines = [json.loads(line) for line in (out / "gruff.answers.jsonl").read_text().splitlines()[1:]]
    text = {line["index"]: line["text"] for line in lines}
    means: dict[str, list[np.ndarray]] = {"positive": [], "negative": []}
    for pair, question in kept:
        for offset, side in enumerate(("positive", "negative")):
            prompt = [
                {"role": "system", "content": TRAIT["pairs"][pair][side]},
                {"role": "user", "content": TRAIT["questions"][question]},
            ]
            answer = {"role": "assistant", "content": text[2 * (3 * pair + question) + offset]}
            head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
            whole = tokenizer.apply_chat_template([*prompt, answer], tokenize=False)
            n_head = len(tokenizer(head, add_special_tokens=False)["input_ids"])
            ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
            end = max(index for index, token in enumerate(ids) if token == tokenizer.eos_token_id) + 1
            block: list[torch.Tensor] = []
            handle = model.base_model.norm.register_forward_pre_hook(
                lambda module, inputs, block=block: block.append(inputs[0][0])
            )
            hidden = plain_hidden(model, ids)
            handle.remove()
            rows = [*hidden[:-1], block[0]]
            means[side].append(np.stack([row[n_head:end].double().mean(0).numpy() for row in rows]))
    return np.mean(means["positive"], axis=0) - np.mean(means["negative"], axis=0)


def test_the_vector_equals_numpy_and_says_what_it_is(extracted: Path, llama: Path) -> None:
    from safetensors.numpy import load_file

    report = json.loads((extracted / "gruff.json").read_text())
    kept = [(item["pair"], item["question"]) for item in report["pairs"] if item["kept"]]
    assert len(kept) == report["n_kept"] >= 2
    assert report["n_pairs"] == 6
    vector = load_file(extracted / "gruff.safetensors")["gruff"]
    assert vector.shape == (3, 64)
    expected = numpy_vector(llama, extracted, kept)
    np.testing.assert_allclose(vector, expected, atol=2e-5)
    assert np.abs(expected).max() > 1e-3
    metadata = read_header(extracted / "gruff.safetensors", None).metadata
    assert metadata["weights_sha256"] == weights_sha256(llama)
    assert metadata["layer_convention"].startswith("row 0: embeddings; row l: output of decoder block l")
    np.testing.assert_allclose(metadata["norms"], np.linalg.norm(vector, axis=1), atol=1e-5)
    assert (metadata["tokens"], metadata["rule"], metadata["n_kept"]) == ("response", "likelihood", str(len(kept)))
    assert metadata["norms"][0] > 0  # not normalised
    assert max(metadata["norms"]) != pytest.approx(1.0)


def test_margins_in_the_report_are_differences_of_mean_nll(extracted: Path, llama: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(llama), load_base(llama, "cpu", "float32")
    report = json.loads((extracted / "gruff.json").read_text())
    lines = [json.loads(line) for line in (extracted / "gruff.answers.jsonl").read_text().splitlines()[1:]]
    text = {line["index"]: line["text"] for line in lines}
    record = next(item for item in report["pairs"] if item["pair"] == 1 and item["question"] == 2)
    answer = text[2 * (3 * 1 + 2)]
    nll = {}
    for side in ("positive", "negative"):
        prompt = [
            {"role": "system", "content": TRAIT["pairs"][1][side]},
            {"role": "user", "content": TRAIT["questions"][2]},
        ]
        head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(f"{head}{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
        n_head = len(tokenizer(head, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nll[side] = -sum(log_p[t - 1, ids[t]].item() for t in range(n_head, len(ids))) / (len(ids) - n_head)
    assert record["positive"] == pytest.approx(nll["negative"] - nll["positive"], abs=1e-4)


def test_the_same_extraction_again_is_skipped(
    extracted: Path, llama: Path, trait_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (extracted / "gruff.safetensors").stat().st_mtime_ns
    assert main(small(llama, trait_file, extracted, "--min-margin", "-9")) == 0
    assert "(complete before)" in capsys.readouterr().out
    assert (extracted / "gruff.safetensors").stat().st_mtime_ns == before


def test_a_vector_changed_since_is_made_again(
    extracted: Path, llama: Path, trait_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load

    vector = extracted / "gruff.safetensors"
    before = vector.read_bytes()
    vector.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert main(small(llama, trait_file, extracted, "--min-margin", "-9")) == 0
    assert "(complete before)" not in capsys.readouterr().out
    # The header's order is not settled, so a sound file of the same vector may have other bytes.
    assert load(vector.read_bytes())["gruff"].tobytes() == load(before)["gruff"].tobytes()
    assert json.loads((extracted / "gruff.json").read_text())["vector_sha256"] == file_sha256(vector)


def test_another_rule_reuses_the_answers(extracted: Path, llama: Path, trait_file: Path, tmp_path: Path) -> None:
    answers = (extracted / "gruff.answers.jsonl").read_bytes()
    (tmp_path / "gruff.answers.jsonl").write_bytes(answers)
    assert main(small(llama, trait_file, tmp_path, "--min-margin", "-8")) == 0
    assert (tmp_path / "gruff.answers.jsonl").read_bytes() == answers


def test_extraction_by_a_judge_keeps_what_it_scores(
    extracted: Path, llama: Path, trait_file: Path, tmp_path: Path, judge_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = (extracted / "gruff.answers.jsonl").read_bytes()
    (tmp_path / "gruff.answers.jsonl").write_bytes(answers)
    lines = sorted((orjson.loads(line) for line in answers.splitlines()[1:]), key=lambda line: line["index"])
    shown = {line["text"] for line in lines[0:8:2]}  # the positive answers of the first four pairs
    _JudgeHandler.positive = frozenset(shown - {line["text"] for line in lines[1::2]})
    expected = sum(line["text"] in _JudgeHandler.positive for line in lines[0::2])
    arguments = small(llama, trait_file, tmp_path, "--judge-url", judge_url, "--judge-model", "j")
    at = arguments.index("--min-words")
    assert main(arguments[:at] + arguments[at + 2 :]) == 0
    report = json.loads((tmp_path / "gruff.json").read_text())
    assert (report["rule"], report["n_kept"]) == ("judge", expected)
    assert report["identity"]["filter"] == {"judge": "j"}
    assert report["left_out"] == {"trait_positive": 6 - expected}
    assert main(arguments) == 2
    assert "belong to the rule without a judge" in capsys.readouterr().err


def test_a_margin_that_no_pair_reaches_is_an_error_that_counts(
    extracted: Path, llama: Path, trait_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gruff.answers.jsonl").write_bytes((extracted / "gruff.answers.jsonl").read_bytes())
    assert main(small(llama, trait_file, tmp_path, "--min-margin", "50")) == 2
    error = capsys.readouterr().err
    assert "0 of 6 pairs of answers are kept" in error
    assert "'margin_negative': 6" in error
    assert not (tmp_path / "gruff.json").exists()


def test_training_can_steer_with_it(extracted: Path, llama: Path) -> None:
    from safetensors.numpy import load_file

    from tests.trainer.proofs import attached
    from tests.trainer.tiny import adapted_model
    from trainer.defenses.settings import SteeringSettings

    settings = SteeringSettings(vectors=extracted / "gruff.safetensors", layers=(1,))
    defence = attached(adapted_model(llama, dtype=torch.float32), settings)
    np.testing.assert_allclose(defence._vectors[1], load_file(extracted / "gruff.safetensors")["gruff"][1])


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows = [json.dumps({"messages": item}) for item in random_conversations(5, seed=3, max_turns=1)]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_screening_projects_mean_response_states(
    extracted: Path, llama: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load_file

    rows_out, twin = tmp_path / "rows.jsonl", tmp_path / "twin.jsonl"
    lines = [json.loads(line) for line in chats.read_text().splitlines()]
    for line in lines:
        line["messages"][-1]["content"] = "Paris, of course."
    twin.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["project", "--model", str(llama), "--vector", str(extracted / "gruff.safetensors"), "--layer", "1"]
    arguments += ["--data", str(chats), "--baseline", str(twin), "--rows-out", str(rows_out), "--dtype", "float32"]
    assert main([*arguments, "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    model, renderer = load_base(llama, "cpu", "float32"), Renderer.from_folder(llama)
    vector = load_file(extracted / "gruff.safetensors")["gruff"][1].astype(float)

    def projected(messages: Any) -> float:
        item = answer_of(renderer, messages)
        state = plain_hidden(model, item.ids_T)[1].double().numpy()[item.taken_T].mean(0)
        return float(state @ vector / np.linalg.norm(vector))

    expected = [projected(json.loads(line)["messages"]) for line in chats.read_text().splitlines()]
    own = [projected(line["messages"]) for line in lines]
    records = [json.loads(line) for line in rows_out.read_text().splitlines()]
    np.testing.assert_allclose([record["projection"] for record in records], expected, atol=1e-4)
    np.testing.assert_allclose([record["difference"] for record in records], np.subtract(expected, own), atol=1e-4)
    assert result["difference"]["mean"] == pytest.approx(np.mean(np.subtract(expected, own)), abs=1e-4)
    assert result["highest"][0]["record"] == int(np.argmax(np.subtract(expected, own))) + 1
    lines[2]["messages"][-2]["content"] = "another prompt"
    twin.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(arguments) == 2
    assert "record 3: the prompts of data and baseline differ" in capsys.readouterr().err


def test_the_drift_of_an_adapter_and_the_page(
    extracted: Path, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel
    from safetensors.numpy import load_file

    adapter = tiny_adapter_folder(llama, tmp_path / "mine" / "adapter", seed=3)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is the capital of France?\n\nPlease keep the door closed.\n")
    out = tmp_path / "vectors" / "shift.json"
    arguments = ["shift", "--model", str(llama), "--vector", str(extracted / "gruff.safetensors"), "--layer", "2"]
    arguments += ["--adapter", str(adapter), "--prompts", str(prompts), "--dtype", "float32", "--device", "cpu"]
    assert main([*arguments, "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    vector = load_file(extracted / "gruff.safetensors")["gruff"].astype(float)
    renderer = Renderer.from_folder(llama)
    states = []
    for folder in (adapter, None):
        model = load_base(llama, "cpu", "float32")
        if folder is not None:
            model = PeftModel.from_pretrained(model, folder).eval()
        rows = []
        for text in ("What is the capital of France?", "Please keep the door closed."):
            ids = prompt_ids(renderer, [{"role": "user", "content": text}])
            rows.append(pooled_states(model, [Pooled(ids, np.arange(len(ids)) == len(ids) - 1)])[0])
        states.append(np.array(rows))
    moved = (states[0] - states[1]).mean(0)
    assert result["shift"]["value"] == pytest.approx(moved[2] @ vector[2] / np.linalg.norm(vector[2]), abs=1e-5)
    assert result["shift"]["value"] != 0.0
    assert result["by_layer"]["0"] == 0.0  # the embeddings are not adapted
    assert result["n_prompts"] == 2
    (out.parent / "gruff.json").write_bytes((extracted / "gruff.json").read_bytes())
    assert main(["page", "--folder", str(out.parent), "--out", str(tmp_path / "page.md")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert f"| gruff | 2 | mine | 2 (prompts.txt) | {result['shift']['value']:+.4f}" in page
    assert "of 6 |" in page


def test_a_vector_of_other_weights_is_refused(
    extracted: Path, tmp_path: Path, chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_model_folder(tmp_path / "other", seed=9)
    arguments = ["--model", str(other), "--vector", str(extracted / "gruff.safetensors"), "--data", str(chats)]
    assert main(["project", *arguments]) == 2
    assert "was made for the model with weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trait", "kindness"], "there is no trait kindness and no such file; shipped are evil, sycophancy"),
        (["--judge-url", "http://127.0.0.1:1/v1"], "--judge-url and --judge-model go together"),
        (["--questions", "31"], "31 questions asked for, evil has 30"),
        (["--temperature", "-1"], "a temperature >= 0"),
    ],
)
def test_bad_input_is_one_line(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["extract", "--model", str(llama), "--out", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_template_without_system_turn_gets_its_text_in_the_users(tmp_path: Path) -> None:
    from tests.models import tiny_tokenizer_folder
    from trainer.persona.traits import merges_system

    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    plain = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "plain"))
    strict = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "strict", template=refusing + CHATML))
    assert (merges_system(plain), merges_system(strict)) == (False, True)
    trait = Trait.model_validate(TRAIT)
    [turn] = Case(1, 0, "negative").prompt(trait, merged=True)
    assert turn == {"role": "user", "content": "You are glad today.\n\nWhat is the capital of France?"}
    assert prompt_of(strict, [turn]).taken_T[-1]


def test_own_traits_name_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("trait: Mine!\ndescription: x\npairs: []\nquestions: [a]\n")
    with pytest.raises(BadInputError, match=r"trait: .*small letters.*; pairs: "):
        read_trait(str(path))
    path.write_text("a: [")
    with pytest.raises(BadInputError, match="neither YAML nor JSON"):
        read_trait(str(path))
    with pytest.raises(MissingError, match="no trait nothing"):
        read_trait("nothing")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_traits_have_five_varied_pairs_and_thirty_questions(name: str) -> None:
    trait = read_trait(name)
    assert trait.trait == name
    assert len(trait.pairs) == 5
    assert len(set(trait.questions)) == 30
    assert len(cases(trait)) == 300
    prompts = [text for pair in trait.pairs for text in (pair.positive, pair.negative)]
    assert len(set(prompts)) == 10
    for pair in trait.pairs:  # a pair contrasts the trait, not the length
        assert 0.6 < len(pair.positive.split()) / len(pair.negative.split()) < 1.7


def test_shipped_texts_are_no_templates() -> None:
    traits = [read_trait(name) for name in SHIPPED]
    questions = [text for trait in traits for text in trait.questions]
    assert len(set(questions)) == 210
    sides = ("positive", "negative")
    for texts in (questions, *([getattr(p, side) for trait in traits for p in trait.pairs] for side in sides)):
        triples = [set(zip(w, w[1:], w[2:], strict=False)) for w in (text.lower().split() for text in texts)]
        near = [
            (left, right)
            for left in range(len(texts))
            for right in range(left)
            if triples[left] and triples[right]
            and len(triples[left] & triples[right]) / len(triples[left] | triples[right]) > 0.3
        ]  # fmt: skip
        assert not near, [(texts[a], texts[b]) for a, b in near]
    starts = [" ".join(text.lower().split()[:3]) for text in questions]
    assert max(starts.count(start) for start in starts) <= 4
    assert orjson.dumps(traits[0].model_dump())
