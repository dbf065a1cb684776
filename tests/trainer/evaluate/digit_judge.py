"""A judge on a loopback address whose tokenizer splits digits: its answers follow a distribution known to the test."""

import json
import math
import re
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

END = "<|im_end|>"


def tokens_of(answer: str, *, split: bool) -> list[str]:
    """An answer as tokens: digit by digit, or whole."""
    return [*(answer if split and answer.isdigit() else [answer]), END]


def next_tokens(answers: Mapping[str, float], begun: list[str], *, split: bool) -> dict[str, float]:
    """Probabilities of the token after `begun`, from the probabilities of whole answers."""
    found: dict[str, float] = {}
    for answer, probability in answers.items():
        tokens = tokens_of(answer, split=split)
        if tokens[: len(begun)] == begun and len(tokens) > len(begun):
            found[tokens[len(begun)]] = found.get(tokens[len(begun)], 0.0) + probability
    total = sum(found.values())
    return {token: probability / total for token, probability in found.items()}


class DigitJudge(BaseHTTPRequestHandler):
    """`server.answers`: probabilities of whole answers by words of the prompt; the number that a prompt names is given
    back where none fits. `server.split` digits; `server.continues` a begun answer; `server.n_positions` at most."""

    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.seen.append(body)
        begun: list[str] = []
        if body["messages"][-1]["role"] == "assistant":
            if not server.continues:
                self._send(400, {"error": {"message": "unknown field continue_final_message"}})
                return
            begun = list(body["messages"][-1]["content"])
        prompt = body["messages"][0]["content"]
        named = {next(iter(re.findall(r"\d+", prompt)), "none"): 1.0}
        answers = next((item for words, item in server.answers.items() if words in prompt), named)
        entries = []
        for _ in range(min(body["max_tokens"], server.n_positions)):
            probabilities = next_tokens(answers, begun, split=server.split)
            token = max(probabilities, key=lambda name: probabilities[name])
            top = [{"token": name, "logprob": math.log(p)} for name, p in probabilities.items()]
            entries.append({"token": token, "logprob": math.log(probabilities[token]), "top_logprobs": top})
            begun.append(token)
            if token == END:
                break
        self._send(200, {"choices": [{"logprobs": {"content": entries}}]})

    def _send(self, status: int, document: dict[str, Any]) -> None:
        answer = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""
