"""The model that answers: one behind an OpenAI-compatible address, and the options that name it or a folder instead.

`Endpoint` makes chat calls with retries and counts what they used.
"""

import argparse
import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import orjson

from curator.errors import BadInputError, RemoteError
from curator.render import RenderSettings
from curator.render.model_source import MODEL_FORMS, model_option
from curator.scoring.identity import (
    adapter_sha256,
    check_adapter_dir,
    check_model_dir,
    weights_sha256,
)
from curator.store.retries import Retries, TryAgainError, retry_after_s
from trainer.config.data import add_model_options, loading_of, rendering_of
from trainer.config.defences import file_sha256, gates_file

RETRY_STATUS = (408, 409, 429, 500, 502, 503, 504)
FIRST_WAIT_S, MAX_WAIT_S = 0.5, 20.0
# Environment variables that hold a key: of the model that is asked, and of the judge.
MODEL_KEY, JUDGE_KEY = "BALLAST_MODEL_KEY", "BALLAST_JUDGE_KEY"
# Sampling from the model's own distribution, whatever the server or the folder's generation_config says: OpenAI's
# fields, and those that vLLM and SGLang add. A server that does not know the latter keeps its own values: null.
NEUTRAL: dict[str, float] = {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
NEUTRAL_EXTRA: dict[str, float] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
SERVER_FIELDS = ("vllm", "openai")
CHAT = "/chat/completions"
# Of an entry in a list of models: the time of the call, and permissions with random ids (vLLM).
PASSING = ("created", "permission")


class Endpoint:
    """`POST {url}/chat/completions` for one model. Safe to share by threads.

    A call is repeated after a wait that doubles (or as long as Retry-After says), `retries` times at most. Counted are
    calls (repeats included) and the tokens that the answers' `usage` reports. `extra_fields`: the server knows the
    sampling fields that vLLM adds to OpenAI's.
    """

    def __init__(
        self, url: str, model: str, *, api_key: str | None = None, timeout_s: float = 60.0, retries: int = 4,
        sleep: Callable[[float], None] = time.sleep, extra_fields: bool = True,
    ) -> None:  # fmt: skip
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(headers=headers, timeout=timeout_s)
        self.extra_fields = extra_fields
        self.url, self.model = f"{url.rstrip('/')}{CHAT}", model
        self._retries = Retries(retries + 1, FIRST_WAIT_S, MAX_WAIT_S, sleep=sleep)
        self._lock = threading.Lock()
        self.n_calls = self.n_prompt_tokens = self.n_completion_tokens = 0

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def chat(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """The answer's JSON; raises RemoteError when the endpoint refuses, is not a such endpoint, or stays silent."""
        document = self._post({"model": self.model, "messages": messages, **options})
        usage = document.get("usage") or {}
        with self._lock:
            self.n_prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.n_completion_tokens += int(usage.get("completion_tokens") or 0)
        return document

    def reported(self) -> dict[str, Any] | None:
        """What the server's list of models says of this one (`GET {url}/models`: vLLM's `root`, its window, ...), less
        what changes from call to call; null where it has no such list or the model is not in it. Never retried."""
        try:
            answer = self._http.get(f"{self.url.removesuffix(CHAT)}/models")
            entries = answer.json()["data"] if answer.is_success else []
            found = next((item for item in entries if item["id"] == self.model), None)
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None
        return None if found is None else {name: found[name] for name in sorted(found) if name not in PASSING}

    def draw(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """`chat` with every sampling setting at its neutral value (see `drawn`)."""
        extra = NEUTRAL_EXTRA if self.extra_fields else {}
        try:
            return self.chat(messages, **NEUTRAL, **extra, **options)
        except RemoteError as error:
            if extra and error.message.startswith(tuple(f"{self.url} answered {code}" for code in (400, 422))):
                raise RemoteError(
                    f"{error.message}; if it refuses {', '.join(extra)}, give --server-fields openai: the server's own"
                    " values of these then hold, and its answers are not compared with neutral ones"
                ) from error
            raise

    def drawn(self) -> dict[str, float | None]:
        """The sampling settings that `draw` uses; null where the server's own values hold."""
        return drawn(self.extra_fields)

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
        def attempt() -> dict[str, Any]:
            with self._lock:
                self.n_calls += 1
            try:
                answer = self._http.post(self.url, json=body)
            except httpx.TransportError as error:
                raise TryAgainError(RemoteError(f"no answer from {self.url}: {type(error).__name__}")) from error
            if answer.is_success:
                return self._document(answer)
            refusal = RemoteError(f"{self.url} answered {answer.status_code}: {answer.text[:200]}")
            if answer.status_code in RETRY_STATUS:
                raise TryAgainError(refusal, retry_after_s(answer.headers.get("retry-after")))
            raise refusal

        return self._retries.run(attempt)

    def _document(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            document = answer.json()
        except ValueError as error:
            raise RemoteError(f"{self.url} answered with something else than JSON") from error
        if not isinstance(document, dict):
            raise RemoteError(f"{self.url} answered with JSON that is not an object")
        return document


def drawn(extra_fields: bool = True) -> dict[str, float | None]:
    """Neutral sampling settings, as answers record them; null for those that were left to a server."""
    return {**NEUTRAL, **(NEUTRAL_EXTRA if extra_fields else dict.fromkeys(NEUTRAL_EXTRA))}


def drawn_alike(lines: Sequence[Mapping[str, Any]], source: str) -> dict[str, Any]:
    """How these answers were drawn: temperature, longest length and the sampling settings; null where a line does not
    say (answers that another tool made). Raises BadInputError when they were not all drawn in one way: shares of
    answers drawn differently are not to be compared, let alone pooled."""
    found: dict[str, Any] = {}
    for name in ("temperature", "max_new_tokens", *drawn()):
        values = sorted({line.get(name) for line in lines}, key=str)
        if len(values) > 1:
            raise BadInputError(
                f"{source} holds answers drawn with different {name} ({', '.join(map(str, values))}; None: not recorded"
                " or the server's own): they cannot be compared. Keep them in files of their own"
            )
        found[name] = values[0] if values else None
    return found


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """--model with --adapter, or --url with --served-model; and how a folder is loaded."""
    add = parser.add_argument
    add(
        "--model",
        type=model_option,
        metavar="MODEL",
        help=f"Hugging Face model, run here with transformers: {MODEL_FORMS}",
    )
    add("--adapter", type=model_option, metavar="MODEL", help=f"LoRA adapter on it: {MODEL_FORMS}")
    add(
        "--gates",
        type=Path,
        metavar="DIR",
        help="gates on it: the adapter's folder of a run with --gating, or the file",
    )
    add("--reverse", action="store_true", help="the gates as the defence uses them: 2 - g instead of g")
    add("--url", help="or: address of an OpenAI-compatible endpoint, up to and with /v1")
    add("--served-model", metavar="NAME", help=f"the model's name there (its key, if any: ${MODEL_KEY})")
    add("--server-fields", choices=SERVER_FIELDS, default="vllm",
        help="sampling fields that the server takes: vLLM's beside OpenAI's (default; so that its own top-k and "
        "repetition penalty do not hold), or OpenAI's alone")  # fmt: skip
    add_model_options(parser)


def check_source(args: argparse.Namespace) -> None:
    """Raise BadInputError unless exactly one source is named and its folders hold what they should."""
    if args.url:
        if args.model or args.adapter or args.gates or args.reverse or not args.served_model:
            raise BadInputError("with --url give --served-model, and none of --model, --adapter, --gates and --reverse")
        if rendering_of(args) != RenderSettings():
            raise BadInputError("--template-date and --accept-dropped go with --model: a server renders by itself")
        return
    if args.model is None:
        raise BadInputError("give --model DIR, or --url with --served-model")
    check_model_dir(args.model)
    if args.adapter is not None:
        check_adapter_dir(args.adapter)
    check_gates(args)


def check_gates(args: argparse.Namespace) -> None:
    """Put the gates' file in place of a folder; raise BadInputError for --reverse without gates."""
    if args.gates is not None:
        args.gates = gates_file(args.gates)
    elif args.reverse:
        raise BadInputError("--reverse says how --gates act: give --gates as well")


def source_identity(args: argparse.Namespace) -> dict[str, Any]:
    """What decides a source's answers: hashes of the weights (and of gates, if any), the requested precision and what
    is rendered other than by default; or a server's address and the model's name there (what runs behind them cannot
    be known). Null where there is no such part."""
    local = {"model": None, "adapter": None, "dtype": None} if args.url else {
        "model": weights_sha256(args.model), "dtype": loading_of(args).dtype,
        "adapter": None if args.adapter is None else adapter_sha256(args.adapter),
    }  # fmt: skip
    gates = getattr(args, "gates", None)
    rendering = {} if args.url else rendering_of(args).document()
    gated = {} if gates is None else {"gates": file_sha256(gates_file(gates)), "reverse": args.reverse}
    return {**local, **rendering, **gated, "url": args.url, "served_model": args.served_model if args.url else None}


def short_hash(document: Mapping[str, object] | list[object]) -> str:
    """Twelve hex digits over plain values."""
    return hashlib.blake2b(orjson.dumps(document, option=orjson.OPT_SORT_KEYS), digest_size=6).hexdigest()


def endpoint_of(args: argparse.Namespace, timeout_s: float = 60.0) -> Endpoint:
    """The server that --url names, with its key from the environment."""
    return Endpoint(
        args.url, args.served_model, api_key=os.environ.get(MODEL_KEY), timeout_s=timeout_s,
        extra_fields=args.server_fields == "vllm",
    )  # fmt: skip
