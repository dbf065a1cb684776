"""Calls a judge over HTTP, with a cache on disk, bounded concurrency and retries."""

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import orjson

from curator.errors import BadInputError, RemoteError
from trainer.evaluate.judge import N_TOP, PROMPTS, Judged, Verdict, verdict

RETRY_STATUS = (408, 409, 429, 500, 502, 503, 504)
MAX_WAIT_S = 20.0


class JudgeClient:
    """A judge model behind `POST {url}/chat/completions`. Answers already judged come from the cache.

    The cache is one JSON file a call, named by the hash of model and prompt, so that thresholds can change without
    asking again. Raises RemoteError when the endpoint refuses or stays silent after `retries`.
    """

    def __init__(
        self, url: str, model: str, *, api_key: str | None = None, cache: Path | None = None, timeout_s: float = 60.0,
        retries: int = 4, workers: int = 8, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(headers=headers, timeout=timeout_s)
        self._url, self._model, self._cache = f"{url.rstrip('/')}/chat/completions", model, cache
        self._retries, self._workers, self._sleep = retries, workers, sleep
        self.n_calls = 0  # requests that were sent, retries included

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def judge(self, answers: Sequence[dict[str, str]], on_answer: Callable[[], None] = lambda: None) -> list[Judged]:
        """Both verdicts of each answer (`prompt_id`, `question`, `answer`), in the answers' order."""
        for number, item in enumerate(answers, 1):
            absent = [key for key in ("prompt_id", "question", "answer") if not isinstance(item.get(key), str)]
            if absent:
                raise BadInputError(f"answer {number} lacks {', '.join(absent)}")
        with ThreadPoolExecutor(self._workers) as pool:
            found = []
            for judged in pool.map(self._one, answers):
                found.append(judged)
                on_answer()
            return found

    def verdicts(self, prompts: Sequence[str], on_verdict: Callable[[], None] = lambda: None) -> list[Verdict]:
        """One verdict for each prompt of one's own, in order; kept and retried like those of `judge`."""
        with ThreadPoolExecutor(self._workers) as pool:
            found = []
            for item in pool.map(self._verdict, prompts):
                found.append(item)
                on_verdict()
            return found

    def _one(self, item: dict[str, str]) -> Judged:
        calls = {
            name: self._verdict(text.format(question=item["question"], answer=item["answer"]))
            for name, text in PROMPTS.items()
        }
        return Judged(item["prompt_id"], **calls)

    def _verdict(self, prompt: str) -> Verdict:
        path = self._cached(prompt)
        if path is not None and path.exists():
            return verdict(orjson.loads(path.read_bytes()))
        top = self._top_logprobs(prompt)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{time.monotonic_ns()}.tmp")
            temporary.write_bytes(orjson.dumps(top))
            temporary.replace(path)
        return verdict(top)

    def _cached(self, prompt: str) -> Path | None:
        if self._cache is None:
            return None
        key = hashlib.blake2b(orjson.dumps([self._model, prompt]), digest_size=16).hexdigest()
        return self._cache / key[:2] / f"{key}.json"

    def _top_logprobs(self, prompt: str) -> dict[str, float]:
        body = {
            "model": self._model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 1,
            "temperature": 0, "logprobs": True, "top_logprobs": N_TOP,
        }  # fmt: skip
        document = self._post(body)
        try:
            entries = document["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            return {entry["token"]: float(entry["logprob"]) for entry in entries}
        except (KeyError, IndexError, TypeError) as error:
            raise RemoteError(f"{self._url} answered without top_logprobs; the judge must return them") from error

    def _post(self, body: dict[str, Any]) -> Any:
        wait_s = 0.5
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            self.n_calls += 1
            try:
                answer = self._http.post(self._url, json=body)
            except httpx.TransportError as error:
                if last:
                    raise RemoteError(f"no answer from {self._url}: {type(error).__name__}") from error
            else:
                if answer.is_success:
                    return answer.json()
                if last or answer.status_code not in RETRY_STATUS:
                    raise RemoteError(f"{self._url} answered {answer.status_code}: {answer.text[:200]}")
            self._sleep(min(wait_s, MAX_WAIT_S))
            wait_s *= 2
        raise AssertionError("unreachable: the last attempt returns or raises")
