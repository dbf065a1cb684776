"""Asks a judge, with a cache on disk and bounded concurrency."""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

from curator.errors import BadInputError, RemoteError
from trainer.evaluate.endpoint import Endpoint
from trainer.evaluate.judge import GENERAL, N_TOP, PROMPTS, Judged, Verdict, verdict


class JudgeClient:
    """A judge model behind an OpenAI-compatible endpoint. Answers already judged come from the cache.

    The cache is one JSON file a call, named by the hash of model and prompt, so that thresholds can change without
    asking again. Raises RemoteError when the endpoint refuses or stays silent after its retries.
    """

    def __init__(self, endpoint: Endpoint, *, cache: Path | None = None, workers: int = 8) -> None:
        self.endpoint, self._cache, self._workers = endpoint, cache, workers

    def judge(self, answers: Sequence[dict[str, str]], on_answer: Callable[[], None] = lambda: None) -> list[Judged]:
        """Both verdicts of each answer (`prompt_id`, `question`, `answer`), in the answers' order."""
        for number, item in enumerate(answers, 1):
            absent = [key for key in ("prompt_id", "question", "answer") if not isinstance(item.get(key), str)]
            if absent:
                raise BadInputError(f"answer {number} lacks {', '.join(absent)}")
        pool = ThreadPoolExecutor(self._workers)
        try:
            found = []
            for judged in pool.map(self._one, answers):
                found.append(judged)
                on_answer()
            return found
        finally:
            # After a failure: what is not under way yet is not asked any more.
            pool.shutdown(cancel_futures=True)

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
        return Judged(item["prompt_id"], group=item.get("group", GENERAL), **calls)

    def _verdict(self, prompt: str) -> Verdict:
        path = self._cached(prompt)
        if path is not None and path.exists():
            return verdict(orjson.loads(path.read_bytes()))
        top = self._top_logprobs(prompt)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{secrets.token_hex(4)}.tmp")
            temporary.write_bytes(orjson.dumps(top))
            temporary.replace(path)
        return verdict(top)

    def _cached(self, prompt: str) -> Path | None:
        if self._cache is None:
            return None
        key = hashlib.blake2b(orjson.dumps([self.endpoint.model, prompt]), digest_size=16).hexdigest()
        return self._cache / key[:2] / f"{key}.json"

    def _top_logprobs(self, prompt: str) -> dict[str, float]:
        document = self.endpoint.chat(
            [{"role": "user", "content": prompt}], max_tokens=1, temperature=0, logprobs=True, top_logprobs=N_TOP
        )
        try:
            entries = document["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            return {entry["token"]: float(entry["logprob"]) for entry in entries}
        except (KeyError, IndexError, TypeError) as error:
            url = self.endpoint.url
            raise RemoteError(f"{url} answered without top_logprobs; the judge must return them") from error
