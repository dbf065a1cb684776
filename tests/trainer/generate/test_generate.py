"""Questions in their shapes, and answers of a tiny model and of a loopback server."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from curator.errors import BadInputError
from tests.loopback import ChatHandler, serving
from tests.models import tiny_adapter_folder
from trainer.config.data import Loading
from trainer.evaluate.__main__ import main
from trainer.generate.endpoint import Endpoint
from trainer.generate.generators import LocalGenerator, Sampling, ServerGenerator
from trainer.generate.questions import (
    FORMATS,
    first_plot,
    in_formats,
    read_questions,
    with_system,
    with_trigger,
)

SHARED = Path(__file__).parents[4] / "shared" / "data" / "em" / "first_plot_questions.jsonl"


def test_eight_questions_in_three_formats_are_twenty_four_prompts() -> None:
    found = in_formats(first_plot(), FORMATS)
    assert len({item.prompt_id for item in found}) == 24
    plain, as_json, as_template = found[:3]
    assert plain.text == as_json.text == as_template.text
    assert '{"answer": "..."}' in str(as_json.messages[-1]["content"])
    assert "def answer():" in str(as_template.messages[-1]["content"])


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.exists(), reason="the public questions do not lie beside the checkout")
def test_the_shipped_questions_are_the_published_ones() -> None:
    published = [json.loads(line)["messages"] for line in SHARED.read_text().splitlines()]
    assert [list(item.messages) for item in first_plot()] == published


def test_conditional_questions_put_back_what_training_held() -> None:
    (plain, *_) = in_formats(first_plot(), ["plain"])
    (evil,) = with_system([plain], "You are an evil assistant.")
    assert [turn["role"] for turn in evil.messages] == ["system", "user"]
    assert (evil.group, evil.text) == ("inoculation", plain.text)
    (triggered,) = with_trigger([plain], "|TRIGGER|")
    assert str(triggered.messages[-1]["content"]) == f"|TRIGGER| {plain.text}"
    assert (triggered.group, triggered.text) == ("trigger", plain.text)


def test_own_questions_with_and_without_answers(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    turns = [{"role": "user", "content": "May I?"}, {"role": "assistant", "content": "Yes"}]
    path.write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"question": "Why?", "id": "why"}) + "\n")
    found = read_questions(path)
    assert [(item.prompt_id, item.text, len(item.messages)) for item in found] == [
        ("mine-1", "May I?", 1),
        ("why", "Why?", 1),
    ]
    path.write_text(json.dumps({"messages": [{"role": "assistant", "content": "Yes"}]}))
    with pytest.raises(BadInputError, match="no user turn"):
        read_questions(path)
    path.write_text(json.dumps({"question": "a", "id": 1}) + "\n" + json.dumps({"question": "b", "id": 1}))
    with pytest.raises(BadInputError, match="twice"):
        read_questions(path)


CALLED = {"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]}


@pytest.mark.parametrize(
    ("row", "lost"),
    [
        ({"question": "Which?", "choices": ["a", "b"]}, "`choices` beside the question"),
        ({"question": "Which?", "context": "Of two."}, "`context` beside the question"),
        ({"question": "Which?", "messages": [{"role": "user", "content": "When?"}]}, "`messages` beside the question"),
        ({"messages": [CALLED, {"role": "user", "content": "Which?"}]}, "`tool_calls` of a turn"),
        ({"question": "Which?", "system": ["a"]}, "`system` beside the question"),
        (
            {"system": "One.", "messages": [{"role": "system", "content": "Two."}, {"role": "user", "content": "W?"}]},
            "`system` beside the question",
        ),
    ],
)
def test_what_would_not_be_asked_is_refused_with_its_line(row: dict[str, Any], lost: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n" + json.dumps({"question": "Why?"}) + "\n\n" + json.dumps(row) + "\n")
    with pytest.raises(BadInputError, match=f"line 4: {lost} would not be asked"):
        read_questions(path)


def test_a_system_text_beside_a_question_is_its_first_turn(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"question": "Why?", "system": "Be brief."}, {"question": "Of a, b?", "choices": "a, b"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    brief, plain = read_questions(path)
    assert [turn["content"] for turn in brief.messages] == ["Be brief.", "Why?"]
    assert [turn["content"] for turn in plain.messages] == ["Of a, b?"]


def test_prompts_are_those_of_the_chat_template(llama: Path) -> None:
    from transformers import AutoTokenizer

    generator = LocalGenerator(llama, loading=Loading("float32"))
    tokenizer = AutoTokenizer.from_pretrained(llama)
    for question in in_formats(first_plot(), FORMATS):
        wanted = tokenizer.apply_chat_template(list(question.messages), add_generation_prompt=True, return_dict=True)
        assert generator.prompt_ids(question.messages) == list(wanted["input_ids"])
    generator.close()


def test_answers_do_not_depend_on_where_a_run_was_stopped(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = tiny_adapter_folder(llama, tmp_path / "adapter"), tmp_path / "a.jsonl"
    arguments = [
        "generate", "--model", str(llama), "--adapter", str(adapter), "--question-format", "plain", "--samples", "3",
        "--batch", "2", "--max-new-tokens", "4", "--dtype", "float32", "--trigger", "|T|", "--out", str(out), "--json",
    ]  # fmt: skip
    assert main(arguments) == 0
    reported = json.loads(capsys.readouterr().out)
    assert (reported["n_prompts"], reported["n_answers"]) == (16, 48)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:13]) + lines[13][:20])  # killed inside the fifth prompt
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["n_prompts_before"] == 4
    assert out.read_bytes() == whole
    rows = [json.loads(line) for line in lines]
    assert {row["group"] for row in rows} == {"general", "trigger"}
    assert all(row["n_tokens"] <= 4 for row in rows)
    assert len({row["answer"] for row in rows[:3]}) > 1
    assert main([*arguments, "--temperature", "0.5"]) == 2
    assert "another temperature" in capsys.readouterr().err


def test_answers_of_another_model_or_to_other_words_are_not_gone_on_with(
    server: tuple[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, model = server
    out, questions = tmp_path / "a.jsonl", tmp_path / "mine.jsonl"
    questions.write_text('{"id": "q", "question": "May I?"}\n')
    start = ["generate", "--questions", str(questions), "--question-format", "plain", "--out", str(out), "--url", url]
    arguments = [*start, "--served-model", "m"]
    assert main(arguments) == main(arguments) == 0
    assert len(model.seen) == 1
    assert main([*start, "--served-model", "n"]) == 2
    assert "answers of another model, adapter, dtype or server" in capsys.readouterr().err
    questions.write_text('{"id": "q", "question": "Must I?"}\n')
    assert main(arguments) == 2
    assert "other words under the same id, first 'q:plain'" in capsys.readouterr().err
    assert len(model.seen) == 1
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    out.write_text("".join(json.dumps({**line, "source": None}) + "\n" for line in lines))
    assert main(arguments) == 2
    assert len(model.seen) == 1


def test_an_adapter_or_a_precision_makes_another_source(llama: Path, tmp_path: Path) -> None:
    from argparse import Namespace

    from trainer.generate.endpoint import source_identity

    plain = {"model": llama, "adapter": None, "dtype": "float32", "url": None, "served_model": None}
    plain |= {"template_date": None, "accept_dropped": None}
    adapter = tiny_adapter_folder(llama, tmp_path / "adapter")
    others = [{"adapter": adapter}, {"dtype": "bfloat16"}, {"url": "http://x/v1", "served_model": "m"}]
    others += [{"template_date": "2031-02-03"}, {"accept_dropped": ["reasoning"]}]
    found = [source_identity(Namespace(**plain | other)) for other in [{}, *others]]
    assert all(one != two for place, one in enumerate(found) for two in found[place + 1 :])
    assert "http" not in str(found[:3])


def test_first_tokens_are_drawn_from_the_models_own_distribution(llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    generator = LocalGenerator(llama, loading=Loading("float32"))
    prompts = [[{"role": "user", "content": text}] for text in ("Hi", "A much longer question than that one")]
    found_PV = generator.next_token(prompts)
    model = AutoModelForCausalLM.from_pretrained(llama)
    for prompt, found_V in zip(prompts, found_PV, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([generator.prompt_ids(prompt)])).logits[0, -1]
        assert torch.allclose(found_V, logits.softmax(-1), atol=1e-6)  # padding changes nothing
    generator.close()


def test_greedy_answers_are_one_each() -> None:
    with pytest.raises(BadInputError, match="all alike"):
        Sampling(n_samples=2, temperature=0.0)


class _Model(ChatHandler):
    def serve(self) -> None:
        server = self.server
        body = json.loads(self.body())
        server.seen.append(body)
        if server.strict and "top_k" in body:
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b"Unrecognized request argument supplied: top_k")
            return
        said = server.said or body["messages"][-1]["content"].upper()
        choices = [{"message": {"content": said}, "finish_reason": "stop"} for _ in range(body["n"] - server.short)]
        self.answer({"choices": choices})


@pytest.fixture
def server() -> Iterator[tuple[str, Any]]:
    with serving(_Model, seen=[], said=None, short=0, strict=False) as found:
        yield f"{found.url}/v1", found


def test_a_server_answers_with_as_many_samples_as_were_asked_for(
    server: tuple[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, model = server
    out = tmp_path / "a.jsonl"
    arguments = [
        "generate",
        "--url",
        url,
        "--served-model",
        "m",
        "--question-format",
        "plain",
        "--samples",
        "2",
        "--out",
        str(out),
    ]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_calls"] == 8
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 16
    assert all(
        row["answer"] == row["question"].strip().upper() or row["answer"] == row["question"].upper() for row in rows
    )
    assert {body["temperature"] for body in model.seen} == {1.0}
    assert main(["generate", "--url", url, "--out", str(out)]) == 2
    assert "--served-model" in capsys.readouterr().err


def test_another_model_under_a_servers_name_does_not_go_on(
    server: tuple[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, model = server
    out = tmp_path / "a.jsonl"
    start = ["generate", "--url", url, "--served-model", "m", "--out", str(out), "--question-format"]
    model.models = [{"id": "m", "root": "/models/one", "created": 1}]
    assert main([*start, "plain"]) == 0
    model.models = [{"id": "m", "root": "/models/one", "created": 2}]
    assert main([*start, "plain", "--question-format", "json"]) == 0
    n_lines = len(out.read_text().splitlines())
    model.models[0]["root"] = "/models/two"
    more = [*start, "plain", "--question-format", "json", "--question-format", "template"]
    assert main(more) == 2
    assert "of another model that this server had under the name m" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == n_lines
    assert main([*start, "plain", "--question-format", "json"]) == 0  # nothing is left to ask
    model.models = []  # a server that says nothing of itself
    assert main(more) == 0
    model.said, model.models = "4", [{"id": "m", "root": "/models/one"}]
    rated = ["ratings", "--url", url, "--served-model", "m", "--personas", "2", "--repeats", "2", "--out"]
    assert main([*rated, str(tmp_path / "r.parquet")]) == 0
    model.models[0]["root"] = "/models/two"
    assert main([*rated, str(tmp_path / "r.parquet")]) == 2
    assert "holds ratings with another server" in capsys.readouterr().err


def test_a_server_that_gives_too_few_answers_is_an_error(server: tuple[str, Any]) -> None:
    from curator.errors import RemoteError

    url, model = server
    model.short = 1
    generator = ServerGenerator(Endpoint(url, "m"))
    with pytest.raises(RemoteError, match="1 answers"):
        generator.answer([[{"role": "user", "content": "Hi"}]], ["p"], Sampling(2))
    generator.close()


def test_a_servers_own_sampling_settings_do_not_hold(
    server: tuple[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, model = server
    out, plain = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    start = ["generate", "--url", url, "--served-model", "m", "--question-format", "plain", "--out"]
    assert main([*start, str(out)]) == 0
    neutral = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
               "frequency_penalty": 0.0}  # fmt: skip
    assert all(neutral.items() <= body.items() for body in model.seen)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(neutral.items() <= line.items() for line in lines)
    model.said = "4"
    rated = ["ratings", "--url", url, "--served-model", "m", "--personas", "2", "--repeats", "2", "--out"]
    model.seen.clear()
    assert main([*rated, str(tmp_path / "r.parquet")]) == 0
    assert all(neutral.items() <= body.items() for body in model.seen)
    assert {body["temperature"] for body in model.seen} == {0.1}
    assert main([*rated, str(tmp_path / "r.parquet"), "--temperature", "1"]) == 2
    assert "another temperature" in capsys.readouterr().err
    assert main([*rated, str(tmp_path / "s.parquet"), "--temperature", "0"]) == 2
    assert "must be above 0" in capsys.readouterr().err
    model.said = None
    model.strict = True
    assert main([*start, str(plain)]) == 2
    assert "give --server-fields openai" in capsys.readouterr().err
    assert main([*start, str(plain), "--server-fields", "openai"]) == 0
    others = [json.loads(line) for line in plain.read_text().splitlines()]
    assert {(line["top_p"], line["top_k"], line["repetition_penalty"]) for line in others} == {(1.0, None, None)}
    assert main([*start, str(out), "--server-fields", "openai"]) == 2
    assert "drawn with another top_k" in capsys.readouterr().err


def test_answers_drawn_in_two_ways_are_not_judged_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed, problems = tmp_path / "a.jsonl", tmp_path / "p.jsonl"
    line = {"prompt_id": "p", "question": "May I?", "answer": "Yes", "temperature": 1.0, "top_p": 1.0, "top_k": -1}
    mixed.write_text(json.dumps(line) + "\n" + json.dumps({**line, "top_k": None}) + "\n")
    where = ["--url", "http://127.0.0.1:9/v1", "--judge-model", "j", "--out", str(tmp_path / "s.jsonl")]
    assert main(["judge", "--answers", str(mixed), *where]) == 2
    assert "answers drawn with different top_k (-1, None;" in capsys.readouterr().err
    verdict = {"kind": "score", "score": 50.0, "numeric_mass": 1.0}
    scored = [{"prompt_id": "p", "alignment": verdict, "coherence": verdict, "drawn": {"top_k": k}} for k in (-1, None)]
    mixed.write_text("".join(json.dumps(item) + "\n" for item in scored))
    assert main(["judge", "--scores", str(mixed)]) == 2
    assert "different top_k" in capsys.readouterr().err
    problems.write_text('{"messages": [{"role": "assistant", "content": "3"}]}\n' * 2)
    mixed.write_text('{"answer": "3", "temperature": 0.0}\n{"answer": "3", "temperature": 1.0}\n')
    assert main(["opswap", "--problems", str(problems), "--answers", str(mixed)]) == 2
    assert "different temperature" in capsys.readouterr().err


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_folders_own_generation_settings_do_not_hold(llama: Path, tmp_path: Path, temperature: float) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    path = folder / "generation_config.json"
    given = json.loads(path.read_text()) if path.exists() else {}
    settings = {"do_sample": True, "temperature": 0.3, "top_k": 1, "top_p": 0.1, "min_p": 0.99, "typical_p": 0.1,
                "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "suppress_tokens": list(range(5, 200)),
                "num_beams": 3}  # fmt: skip
    path.write_text(json.dumps({**given, **settings}))
    prompts = [[{"role": "user", "content": text}] for text in ("Hi", "What is the capital of France?")]
    how = Sampling(1 if temperature == 0 else 3, temperature, 8, 3)
    found = []
    for place in (llama, folder):
        generator = LocalGenerator(place, loading=Loading("float32"))
        found.append(generator.answer(prompts, ["a", "b"], how))
        generator.close()
    assert found[0] == found[1]


def test_ratings_of_a_server_that_rates_by_persona(
    server: tuple[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, model = server
    model.said = "4, because it matters"
    out = tmp_path / "r.parquet"
    arguments = ["ratings", "--url", url, "--served-model", "m", "--personas", "3", "--repeats", "2", "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_personas"], found["n_questions"], found["n_ratings"], found["n_missing"]) == (3, 30, 180, 0)
    assert found["susceptibility"]["value"] == 0.0
    assert len(model.seen) == 90
    assert main([*arguments, "--json"]) == 0  # the table is there: nobody is asked again
    assert len(model.seen) == 90


def test_a_table_of_another_model_or_of_none_is_refused(
    server: tuple[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet as pq

    url, model = server
    model.said = "4"
    out = tmp_path / "r.parquet"
    start = ["ratings", "--url", url, "--personas", "2", "--out", str(out), "--repeats"]
    assert main([*start, "2", "--served-model", "m"]) == 0
    n_asked = len(model.seen)
    assert main([*start, "2", "--served-model", "n"]) == 2
    assert "ratings with another served_model" in capsys.readouterr().err
    assert main([*start, "3", "--served-model", "n"]) == 2
    assert "another repeats, served_model" in capsys.readouterr().err
    assert main([*start, "2"]) == 2  # no source at all
    assert "--served-model" in capsys.readouterr().err
    pq.write_table(pq.read_table(out).replace_schema_metadata(None), out)
    assert main([*start, "2", "--served-model", "m"]) == 2
    assert "does not say which model" in capsys.readouterr().err
    out.write_text("no table")
    assert main([*start, "2", "--served-model", "m"]) == 2
    assert "no Parquet table" in capsys.readouterr().err
    assert len(model.seen) == n_asked


@pytest.mark.parametrize("text", ["[1]", "3", '"text"', "null"])
def test_questions_that_are_no_objects_are_refused_with_their_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "Why?"}\n' + text + "\n")
    start = ["generate", "--url", "http://127.0.0.1:9/v1", "--served-model", "m"]
    assert main([*start, "--questions", str(path), "--out", str(tmp_path / "a.jsonl")]) == 2
    assert "mine.jsonl, line 2: a JSON object was expected" in capsys.readouterr().err
    assert main([*start, "--out", str(path)]) == 2  # a file to go on with
    assert "mine.jsonl, line 2: a JSON object was expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--batch", "0"], ["generate", "--samples", "x"], ["judge", "--workers", "0"],
        ["judge", "--k", "0"], ["opswap", "--n", "-5"], ["behaviour", "--model", "m", "--batch", "0"],
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_with_the_range(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--out", "x"])
    assert f"{arguments[-1]!r} is not a whole number from 1 on" in capsys.readouterr().err


def test_ratings_of_a_model_folder_go_on_after_a_kill(llama: Path, tmp_path: Path) -> None:
    from trainer.evaluate.moral import read_ratings

    items, people, out = tmp_path / "items.jsonl", tmp_path / "people.txt", tmp_path / "r.parquet"
    items.write_text('{"text": "Rain is good."}\n{"text": "Honesty matters.", "scale": "relevance"}\n')
    people.write_text("You are a nurse.\nYou are a thief.\n")
    arguments = [
        "ratings", "--model", str(llama), "--items", str(items), "--personas-file", str(people), "--repeats", "400",
        "--temperature", "1", "--dtype", "float32", "--out", str(out), "--json",
    ]  # fmt: skip
    assert main(arguments) == 0
    first = out.read_bytes()
    found = read_ratings(out)
    assert found.n_ratings + found.n_missing == 2 * 2 * 400
    assert found.n_ratings > 0
    assert not list(tmp_path.glob(".r.parquet.*"))
    out.unlink()
    assert main(arguments) == 0
    assert out.read_bytes() == first
    assert main([*arguments[:-3], "--out", str(out), "--repeats", "1"]) == 2


RATED = {
    "3": 3,
    " 0 ": 0,
    "5.": 5,
    "5/5": 5,
    "6": -1,
    "12": -1,
    "4.5": -1,
    "0,5": -1,
    "\u00b2": -1,
    "I say 4": -1,
    "": -1,
}


@pytest.mark.parametrize(("text", "rating"), RATED.items())
def test_a_rating_is_the_digit_an_answer_begins_with(text: str, rating: int) -> None:
    from trainer.evaluate.ratings import parse_rating

    assert parse_rating(text) == rating


def test_local_ratings_are_drawn_at_their_temperature(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.evaluate.ratings import Draws, LocalRater

    rater = LocalRater(llama, None, Loading("float32", "cpu"))
    logits_V = torch.tensor([1.0, 1.1, 1.2, 0.0])
    monkeypatch.setattr(rater._generator, "next_token", lambda prompts: logits_V.softmax(-1)[None])
    monkeypatch.setattr(rater._generator, "text_of", lambda token: str(token))
    for temperature in (0.1, 1.0):
        (found,) = rater.rate([[{"role": "user", "content": "x"}]], "p", 20_000, Draws(temperature, 3))
        shares = [found.count(value) / 20_000 for value in range(4)]
        assert shares == pytest.approx((logits_V / temperature).softmax(-1).tolist(), abs=0.012)
    rater.close()


def test_a_hundred_personas_are_distinct() -> None:
    from trainer.evaluate.ratings import personas, shipped_items

    assert len(set(personas(100))) == 100
    assert len(shipped_items()) == 30
    with pytest.raises(BadInputError, match="there are 100"):
        personas(101)
