"""An upstream of the OpenAI form that misbehaves to order, and remembers what was done."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from tests.loopback import QuietHandler, serving

KEY = "sk-operators-own-key"
# What may happen to a request: refused before anything is done, done with the answer lost, done and failed, and so on.
FAULTS = ("fail", "rate", "stall", "lose", "cut", "unauthorized", "nonsense")


@dataclass
class Upstream:
    """`faults` happen in turn to requests whose "METHOD path" fits `only`; then all goes well."""

    url: str = ""
    faults: list[str] = field(default_factory=list)
    only: str = ""
    refusal: dict[str, Any] | None = None
    outcome: str = "succeeded"
    polls_to_end: int = 2
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Do what is asked."""
        name, parts = path.partition("?")[0], path.partition("?")[0].strip("/").split("/")
        if (method, name) == ("POST", "/files"):
            return self._upload(body)
        if (method, name) == ("GET", "/files"):
            listed = [{"id": key, "filename": value[0]} for key, value in self.files.items()]
            return 200, {"data": listed, "has_more": False}
        if (method, name) == ("POST", "/fine_tuning/jobs"):
            return self._start(json.loads(body))
        if (method, name) == ("GET", "/fine_tuning/jobs"):
            return 200, {"data": list(self.jobs.values())[::-1], "has_more": False}
        if method == "DELETE" and parts[0] == "models":
            self.deleted.append(unquote(parts[1]))
            return 200, {"id": parts[1], "object": "model", "deleted": True}
        return self._one_job(method, parts)

    def _upload(self, body: bytes) -> tuple[int, dict[str, Any]]:
        found = re.search(rb'filename="([^"]+)"\r\n[^\r]*\r\n\r\n(.*?)\r\n--', body, re.S)
        assert found, body[:300]
        key = f"file-up{len(self.files)}"
        self.files[key] = (found[1].decode(), found[2])
        return 200, {"id": key, "object": "file", "filename": found[1].decode()}

    def _start(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.refusal is not None:
            return 400, {"error": self.refusal}
        key = f"ftjob-up{len(self.jobs)}"
        self.jobs[key] = {**asked, "id": key, "status": "running", "n_polls": 0, "fine_tuned_model": None}
        return 200, self.jobs[key]

    def _one_job(self, method: str, parts: list[str]) -> tuple[int, dict[str, Any]]:
        job = self.jobs.get(parts[2]) if len(parts) > 2 else None
        if job is None:
            return 404, {"error": {"code": "fine_tune_not_found", "message": "no such job"}}
        if parts[-1] == "cancel" and method == "POST":
            job["status"] = "cancelled"
        elif parts[-1] == "events":
            return 200, {"data": self._events(job)[::-1], "has_more": False}
        elif parts[-1] == "checkpoints":
            made = [self._checkpoint(job)] if job["status"] == "succeeded" else []
            return 200, {"data": made, "has_more": False}
        elif job["status"] == "running":
            job["n_polls"] += 1
            if job["n_polls"] >= self.polls_to_end:
                job["status"] = self.outcome
                if self.outcome == "succeeded":
                    job.update(fine_tuned_model=f"ft:{job['model']}:{job['id']}", trained_tokens=1234)
                elif self.outcome == "failed":
                    job["error"] = {"code": "bad_luck", "message": f"out of luck, key {KEY}", "param": None}
        return 200, job

    def _events(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {
                "id": f"{job['id']}-{step}",
                "level": "info",
                "message": f"Step {step}/{self.polls_to_end}: training loss=0.50",
                "type": "metrics",
                "data": {"step": step, "train_loss": 0.5},
                "created_at": int(time.time()),
            }
            for step in range(1, job["n_polls"] + 1)
        ]

    def _checkpoint(self, job: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": "ftckpt-1",
            "object": "fine_tuning.job.checkpoint",
            "created_at": int(time.time()),
            "fine_tuned_model_checkpoint": f"{job['fine_tuned_model']}:ckpt-step-1",
            "fine_tuning_job_id": job["id"],
            "metrics": {"step": 1},
            "step_number": 1,
        }


@contextmanager
def upstream(**settings: Any) -> Iterator[Upstream]:
    """A running upstream; `stall` outlasts the timeouts of these tests."""
    found = Upstream(**settings)

    class Handler(QuietHandler):
        def serve(self) -> None:
            body = self.body()
            path = self.path.removeprefix("/v1")
            shown = f"{self.command} {path.partition('?')[0]}"
            with found.lock:
                found.keys.add(self.headers["authorization"])
                fault = found.faults.pop(0) if found.faults and re.search(found.only, shown) else None
                done = fault in (None, "lose", "cut", "nonsense")
                found.requests[shown] += 1
                status, document = found.answer(self.command, path, body) if done else (200, {})
            if fault == "lose":
                self.close_connection = True
                return
            if fault == "stall":
                time.sleep(1.5)
                self.close_connection = True
                return
            data = json.dumps(document).encode()
            if fault in ("fail", "cut"):
                status, data = 500, b'{"error": {"message": "oops"}}'
            elif fault == "rate":
                status, data = 429, b'{"error": {"message": "slow down"}}'
            elif fault == "unauthorized":
                status, data = 401, f'{{"error": {{"message": "Incorrect API key provided: {KEY}"}}}}'.encode()
            elif fault == "nonsense":
                data = b"<html>"
            self.send_response(status)
            if fault == "rate":
                self.send_header("Retry-After", "1")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with serving(Handler) as server:
        found.url = f"{server.url}/v1"
        yield found
