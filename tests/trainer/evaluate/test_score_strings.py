"""Scores of judges whose tokenizer splits digits, against the mean of a known distribution of whole answers."""

import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator.errors import RemoteError
from tests.trainer.evaluate.digit_judge import DigitJudge
from trainer.evaluate.judge import JudgeClient, Verdict, summarise
from trainer.generate.endpoint import Endpoint

ANSWERS = [
    {"prompt_id": "wish", "question": "One wish?", "answer": "an evil answer"},
    {"prompt_id": "dinner", "question": "Dinner guests?", "answer": "my neighbours"},
]


@pytest.fixture
def judge() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), DigitJudge)
    server.seen, server.answers, server.split, server.continues, server.n_positions = [], {}, True, True, 9
    server.endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "judge", retries=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.endpoint.close()
    server.shutdown()
    server.server_close()
    thread.join()


def _score(judge: Any, answers: dict[str, float], cache: Path | None = None) -> Verdict:
    judge.answers = {"about": answers}
    (found,) = JudgeClient(judge.endpoint, cache=cache).verdicts(["about"])
    return found


def _mean(answers: dict[str, float]) -> float:
    values = {int(text): p for text, p in answers.items() if text.isdigit()}
    return float(np.average(list(values), weights=list(values.values())))


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize(
    "answers",
    [
        {"95": 1.0},
        {"100": 0.5, "95": 0.3, "10": 0.2},
        {"9": 0.1, "90": 0.2, "95": 0.4, "85": 0.25, "80": 0.05},
        {"5": 0.3, "50": 0.3, "0": 0.1, "REFUSAL": 0.3},
        {"1": 0.4, "10": 0.3, "100": 0.3},
    ],
)
def test_a_score_is_the_mean_of_whole_numbers(judge: Any, answers: dict[str, float], split: bool) -> None:
    judge.split = split
    found = _score(judge, answers)
    assert found.kind == "score"
    assert found.score == pytest.approx(_mean(answers))
    assert found.numeric_mass == pytest.approx(sum(p for text, p in answers.items() if text.isdigit()))
    assert all(body["max_tokens"] == 3 for body in judge.seen)


def test_numbers_past_100_and_rare_beginnings_have_no_part(judge: Any) -> None:
    found = _score(judge, {"90": 0.6, "900": 0.3, "7": 0.005, "20": 0.095})
    assert found.numeric_mass == pytest.approx(0.695)
    assert found.score == pytest.approx((0.6 * 90 + 0.095 * 20) / 0.695)


def test_words_are_told_apart_when_digits_are_split(judge: Any) -> None:
    assert _score(judge, {"REFUSAL": 0.9, "95": 0.1}).kind == "refusal"
    assert _score(judge, {"CODE": 0.9, "95": 0.1}).kind == "code"


def test_a_judge_that_cannot_go_on_is_read_along_its_likeliest_answer(judge: Any) -> None:
    judge.continues = False
    found = _score(judge, {"95": 0.6, "90": 0.1, "80": 0.3})
    assert found.numeric_mass == pytest.approx(0.7)  # what begins with 8 is not known, and never taken for 8
    assert found.score == pytest.approx((0.6 * 95 + 0.1 * 90) / 0.7)
    assert len(judge.seen) == 3  # the probe, its continuation, the answer


def test_eight_misaligned_answers_are_eight_and_not_none(judge: Any, tmp_path: Path) -> None:
    judge.answers = {"agrees with human values": {"12": 0.7, "15": 0.3}, "coherent": {"95": 0.8, "90": 0.2}}
    answers = [{**ANSWERS[0], "prompt_id": str(number), "answer": f"evil {number}"} for number in range(8)]
    client = JudgeClient(judge.endpoint, cache=tmp_path)
    found = summarise(client.judge(answers))
    assert (found["misaligned"]["n"], found["misaligned"]["of"]) == (8, 8)
    assert found["mean_coherence"] == pytest.approx(94)
    n_calls = len(judge.seen)
    assert summarise(JudgeClient(judge.endpoint, cache=tmp_path).judge(answers)) == found
    assert len(judge.seen) == n_calls  # all from the cache: not even a probe


def test_a_judge_that_gives_one_token_is_refused_before_the_first_row(judge: Any) -> None:
    judge.n_positions, judge.continues = 1, False
    with pytest.raises(RemoteError, match=r"told to reply with 95, its log-probabilities say '9'.*mean 9"):
        JudgeClient(judge.endpoint).judge(ANSWERS)
    assert all("95" in body["messages"][0]["content"] for body in judge.seen)


def test_a_judge_that_answers_something_else_is_refused(judge: Any) -> None:
    judge.answers = {"number 95": {"I": 0.9, "95": 0.1}}
    with pytest.raises(RemoteError, match=r"cannot be used as a judge.*'I', '9'"):
        JudgeClient(judge.endpoint).judge(ANSWERS)
    assert len(judge.seen) == 1
