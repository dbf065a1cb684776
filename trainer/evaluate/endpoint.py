"""One model behind an OpenAI-compatible address: chat calls with retries, and a count of what they used."""

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx

from curator.errors import RemoteError

RETRY_STATUS = (408, 409, 429, 500, 502, 503, 504)
FIRST_WAIT_S, MAX_WAIT_S = 0.5, 20.0
# Environment variables that hold a key: of the model that is asked, and of the judge.
MODEL_KEY, JUDGE_KEY = "BALLAST_MODEL_KEY", "BALLAST_JUDGE_KEY"


class Endpoint:
    """`POST {url}/chat/completions` for one model. Safe to share by threads.

    A call is repeated after a wait that doubles (or as long as Retry-After says), `retries` times at most. Counted are
    calls (repeats included) and the tokens that the answers' `usage` reports.
    """

    def __init__(
        self, url: str, model: str, *, api_key: str | None = None, timeout_s: float = 60.0, retries: int = 4,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(headers=headers, timeout=timeout_s)
        self.url, self.model = f"{url.rstrip('/')}/chat/completions", model
        self._retries, self._sleep, self._lock = retries, sleep, threading.Lock()
        self.n_calls = self.n_prompt_tokens = self.n_completion_tokens = 0

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def chat(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """The answer's JSON; raises RemoteError when the endpoint refuses, is no such endpoint, or stays silent."""
        document = self._post({"model": self.model, "messages": messages, **options})
        usage = document.get("usage") or {}
        with self._lock:
            self.n_prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.n_completion_tokens += int(usage.get("completion_tokens") or 0)
        return document

    def usage(self, price_in: float | None = None, price_out: float | None = None) -> dict[str, Any]:
        """Calls and tokens so far, and their cost: prices are per million prompt and completion tokens, cost is null
        without both."""
        cost = None
        if price_in is not None and price_out is not None:
            cost = (price_in * self.n_prompt_tokens + price_out * self.n_completion_tokens) / 1e6
        return {
            "n_calls": self.n_calls, "n_prompt_tokens": self.n_prompt_tokens,
            "n_completion_tokens": self.n_completion_tokens, "cost": cost,
        }  # fmt: skip

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        wait_s = FIRST_WAIT_S
        for attempt in range(self._retries + 1):
            last, asked_wait = attempt == self._retries, None
            with self._lock:
                self.n_calls += 1
            try:
                answer = self._http.post(self.url, json=body)
            except httpx.TransportError as error:
                if last:
                    raise RemoteError(f"no answer from {self.url}: {type(error).__name__}") from error
            else:
                if answer.is_success:
                    return self._document(answer)
                if last or answer.status_code not in RETRY_STATUS:
                    raise RemoteError(f"{self.url} answered {answer.status_code}: {answer.text[:200]}")
                asked_wait = _seconds(answer.headers.get("retry-after"))
            self._sleep(min(wait_s if asked_wait is None else asked_wait, MAX_WAIT_S))
            wait_s *= 2
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _document(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            document = answer.json()
        except ValueError as error:
            raise RemoteError(f"{self.url} answered with something else than JSON") from error
        if not isinstance(document, dict):
            raise RemoteError(f"{self.url} answered with JSON that is no object")
        return document


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text is not None else None
    except ValueError:  # a date: the growing wait does
        return None
