"""Scoring with a running vLLM server over HTTP: prompt token ids in, prompt log-probabilities out.

The server's weights cannot be seen from here, so its identity is declared and recorded as declared. Prompts go
as token ids, so that the server's own template and tokenizer have no part in it.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from curator.errors import BadInputError, ScoringError
from curator.scoring.engines.base import OnRows, RowLoss
from curator.store.retries import Retries, TryAgainError

if TYPE_CHECKING:
    from curator.render import Rendered

NAME = "server"
SERVER_KEY = "BALLAST_SERVER_KEY"  # environment variable with the key of a server that wants one
DEFAULT_CONCURRENCY = 16  # requests at a time
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
# What vLLM's server writes for every smaller log-probability, -inf among them: a bound, not a measured value.
CLAMPED = -9999.0
ROUNDING = 1e-3  # a probability of 1 may come out that much above it
MAX_WAIT_S = 30.0  # between two attempts


class RowRefusedError(RuntimeError):
    """The server answers, and refuses this row."""


@dataclass(frozen=True)
class ServerLaunch:
    """How to reach a server. `version` and `dtype` are what its operator says they are."""

    url: str
    model: str
    dtype: str
    version: str
    concurrency: int = DEFAULT_CONCURRENCY
    timeout_s: float = 300.0
    n_tries: int = 6
    backoff_s: float = 0.5
    name: str = NAME
    device: str = "cuda"  # the block size of a large machine

    def __call__(self) -> "ServerEngine":
        """Connect; the server must know the model."""
        return ServerEngine(self)

    def with_threads(self, n: int) -> "ServerLaunch":
        """The same: the server has threads of its own."""
        return self


class ServerEngine:
    """`base.Engine` over one model of one server; the server's own model name stands for base or adapter."""

    name = NAME

    def __init__(self, launch: ServerLaunch) -> None:
        self.version, self.dtype = launch.version, launch.dtype
        self._launch = launch
        limits = httpx.Limits(max_connections=launch.concurrency, max_keepalive_connections=launch.concurrency)
        self._http = _client(launch.url, timeout=launch.timeout_s, limits=limits)
        self._pool = ThreadPoolExecutor(launch.concurrency, thread_name_prefix="score")

    def use_adapter(self, path: Path | None) -> None:
        """Nothing to do: which adapter runs is decided by the server's model name."""

    def score(self, rows: "Sequence[Rendered]", on_rows: OnRows | None = None) -> list[RowLoss]:
        """One loss for each row, in the order given, `concurrency` requests at a time; see `base.Engine.score`."""
        waiting = [self.submit(row) for row in rows]
        losses = []
        try:
            for row, answer in zip(rows, waiting, strict=True):
                losses.append(answer.result())
                if on_rows is not None:
                    on_rows(1, row.n_tokens)
        finally:
            for answer in waiting:
                answer.cancel()
        return losses

    def submit(self, row: "Rendered") -> Future[RowLoss]:
        """One row's loss to come, or its error: ConnectionError when the server did not answer."""
        return self._pool.submit(self._one, row)

    def answers(self, row: "Rendered") -> bool:
        """Whether the server scores this row now, at the first try."""
        try:
            self._post_once(self._body(row))
        except TryAgainError:
            return False
        return True

    def close(self) -> None:
        """End the connections."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._http.close()

    def _one(self, row: "Rendered") -> RowLoss:
        body = self._body(row)
        return row_loss(row, body["prompt"], self._post(body))

    def _body(self, row: "Rendered") -> dict[str, Any]:
        ids = [int(token) for token in row.input_ids]
        return {
            "model": self._launch.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0,
        }  # fmt: skip

    def _post(self, body: dict[str, Any]) -> Any:
        launch = self._launch
        return Retries(launch.n_tries, launch.backoff_s, MAX_WAIT_S, jitter=True).run(lambda: self._post_once(body))

    def _post_once(self, body: dict[str, Any]) -> Any:
        try:
            response = self._http.post("/v1/completions", json=body)
        except httpx.TransportError as error:
            raise self._no_answer(f"{type(error).__name__}: {error}") from error
        if response.status_code == 200:
            try:
                return response.json()
            except ValueError as error:  # such as the page of a proxy before it
                raise ScoringError(
                    f"the server's answer is not JSON but {response.text[:80]!r}: is there a vLLM server behind it?"
                ) from error
        reason = f"HTTP {response.status_code}: {response.text[:200]}"
        if response.status_code in _RETRIED:
            raise self._no_answer(reason)
        if response.status_code in (401, 403):
            raise ScoringError(f"the server refuses the key: {reason}. Set ${SERVER_KEY} to one that it takes")
        if response.status_code == 404:
            raise ScoringError(f"the server refuses model {self._launch.model!r}: {reason}")
        raise RowRefusedError(reason)

    def _no_answer(self, reason: str) -> TryAgainError:
        return TryAgainError(ConnectionError(f"no answer after {self._launch.n_tries} tries; last {reason}"))


def row_loss(row: "Rendered", ids: Sequence[int], answer: Any) -> RowLoss:
    """The loss in a completion's `prompt_logprobs`: one entry for each token, the first null.

    Each entry maps token ids to log-probabilities and holds the prompt's own token whatever its rank. A row with a
    value that the server clamped, or that no probability has, has an infinite loss, with that reason.
    """
    try:
        entries = answer["choices"][0]["prompt_logprobs"]
        if len(entries) != len(ids):
            raise ScoringError(f"the server scored {len(entries)} tokens of {len(ids)}: it cut or changed the prompt")
        nll_sum, n, reason = 0.0, 0, None
        for position in range(1, len(ids)):
            if row.response_mask[position]:
                log_prob = float(entries[position][str(ids[position])]["logprob"])
                if log_prob <= CLAMPED and reason is None:
                    reason = f"the server clamped the log-probability of token {position} to {log_prob:g}"
                if log_prob > ROUNDING and reason is None:
                    reason = f"the server gives token {position} the log-probability {log_prob:g}, which is above 0"
                nll_sum -= log_prob
                n += 1
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ScoringError(
            f"the server's answer has no prompt log-probabilities ({type(error).__name__}: {error}): "
            "it must be a vLLM server that answers `prompt_logprobs`"
        ) from error
    return RowLoss(nll_sum, n) if reason is None else RowLoss(math.inf, n, reason)


def _client(url: str, **options: Any) -> httpx.Client:
    """For an address with or without /v1 at its end, which other commands want."""
    key = os.environ.get(SERVER_KEY)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=url.rstrip("/").removesuffix("/v1"), headers=headers, **options)


def find_version(url: str, model: str, timeout_s: float = 10.0) -> tuple[str, int | None]:
    """(version, window in tokens) as the server reports them; BadInputError when it is not there or lacks the model."""
    try:
        with _client(url, timeout=timeout_s) as http:
            answer = http.get("/v1/models")
            if answer.status_code in (401, 403):
                raise BadInputError(f"the server at {url} wants a key: set ${SERVER_KEY}")
            models = answer.raise_for_status().json()["data"]
            known = {item["id"]: item.get("max_model_len") for item in models}
            version = http.get("/version")
            text = version.json().get("version") if version.status_code == 200 else None
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"no vLLM server at {url}: {error}") from error
    if model not in known:
        raise BadInputError(f"the server has no model {model!r}; it has {', '.join(sorted(known))}")
    return f"vllm {text}" if text else "unknown", known[model]
