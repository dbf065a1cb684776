"""The mode `forward`: the mix goes to the upstream, the job is started there once, and mirrored here until its end.

Each step is kept before its request is sent and after its answer came. A request whose answer was lost, by a broken
connection or by a kill, is not simply sent again: the upstream is first asked whether it was carried out. The mix is
uploaded for this job alone under the job's own name, so that a job over that file is this one. Only a start that is
still not to be found `settle_s` seconds later is sent again.
"""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from api.downloads import MixFile
from api.openai.progress import advanced
from api.openai.records import COMPLETED, JobRecord, Level, Records, Status, Upstream
from api.openai.upstream import UpstreamClient, UpstreamDownError, UpstreamRefusedError, quoted
from api.service import Service
from api.telemetry import log_event
from curator.errors import MissingError
from curator.mix.identity import read_manifest
from curator.store.scratch import Scratch

SETTLE_S = 60.0  # after a start whose answer was lost: for so long the job may still appear
FOLLOW_S = 10.0  # between two looks at a job that runs
MAX_WAIT_S = 60.0
MAX_FAILED = 1_500  # calls in a row that came to nothing: about a day
JOB_KEY = "gateway_job"  # of the upstream job's metadata: our job's id
MAX_METADATA = 16
_ENDS: dict[str, Status] = {"succeeded": "succeeded", "failed": "failed", "cancelled": "cancelled"}


@dataclass(frozen=True)
class Forwarder:
    """Takes jobs of one service to its upstream."""

    service: Service
    client: UpstreamClient
    settle_s: float = SETTLE_S
    follow_s: float = FOLLOW_S

    def step(self, tenant: str, ft_id: str) -> JobRecord | None:
        """Do what is due for a job; returns it, or None when another process holds it or it is not there."""
        records = Records(self.service.store)
        with records.held(tenant, ft_id) as is_ours:
            if not is_ours:
                return None
            try:
                record = records.read(tenant, ft_id)
            except MissingError:
                return None
            found = advanced(self.service, record)
            if found != record:
                records.write(found)
            if found.is_active and found.upstream is not None and found.upstream.not_before_s <= time.time():
                found = self._tried(records, found)
                records.write(found)
            return found

    def _tried(self, records: Records, record: JobRecord) -> JobRecord:
        """The job after one call, whatever came of it."""
        upstream = _upstream(record)
        try:
            found = self._next(records, record)
        except UpstreamRefusedError as error:
            return _failed(record, error.code, error.message)
        except MissingError:
            return _failed(record, "mix_gone", "the mix was deleted before it was sent")
        except UpstreamDownError as error:
            log_event(logging.WARNING, "upstream failed", job_id=record.id, reason=error.reason, step=upstream.step)
            if upstream.n_failed >= MAX_FAILED:
                return _failed(record, "upstream_unreachable", "the upstream could not be reached for a day")
            # What was kept before the request stays, unless it is known that nothing was done.
            kept = _upstream(records.read(record.tenant, record.id))
            wait_s = min(MAX_WAIT_S, error.after_s or 2.0 ** min(upstream.n_failed, 6) / 2)
            changes: dict[str, Any] = {"n_failed": upstream.n_failed + 1, "not_before_s": time.time() + wait_s}
            if not error.may_be_done:
                changes["tried_s"] = None
            return _with(record, kept.model_copy(update=changes))
        return found

    def _next(self, records: Records, record: JobRecord) -> JobRecord:
        upstream = _upstream(record)
        is_cancelled = records.cancel_asked(record.tenant, record.id)
        if is_cancelled and upstream.job_id is None and not (upstream.step == "start" and upstream.tried_s):
            return record.ended("cancelled", "Fine-tuning job cancelled")
        if upstream.step == "upload":
            return self._upload(records, record)
        if upstream.step == "start":
            return self._start(records, record, is_cancelled)
        if is_cancelled and not upstream.cancel_sent:
            self._cancel(upstream)
            record = _with(record, upstream.model_copy(update={"cancel_sent": True}))
        return self._follow(record)

    def _upload(self, records: Records, record: JobRecord) -> JobRecord:
        """Send the mix, then the validation file if there is one; each is found again when its answer was lost."""
        upstream = _upstream(record)
        is_validation = upstream.file_id is not None
        name = f"{record.id}-validation.jsonl" if is_validation else f"{record.id}.jsonl"
        found = self._sent_file(name) if upstream.tried_s else None
        if found is None:
            records.write(_with(record, upstream.model_copy(update={"tried_s": time.time()})))
            with self._content(record, is_validation) as file:
                found = str(self.client.upload(file, name)["id"])
        changes: dict[str, Any] = {"tried_s": None, "n_failed": 0}
        changes["validation_id" if is_validation else "file_id"] = found
        if is_validation or record.asked["validation_file"] is None:
            changes["step"] = "start"
        what = "validation file" if is_validation else "mix"
        record = record.event(f"The {what} was sent to the upstream", data={"code": "sent"})
        return _with(record, upstream.model_copy(update=changes))

    def _sent_file(self, name: str) -> str | None:
        found = (item for item in self.client.items("/files", purpose="fine-tune") if item.get("filename") == name)
        return next((str(item["id"]) for item in found), None)

    @contextmanager
    def _content(self, record: JobRecord, is_validation: bool) -> Iterator[BinaryIO]:
        """The bytes to send; raises MissingError when the mix is gone."""
        store = self.service.store
        if is_validation:
            with store.open_file(Records(store).validation_path(record.tenant, record.id)) as file:
                yield file
            return
        manifest = read_manifest(store, record.tenant, record.facts["ballast_mix_id"])
        mix = MixFile(store, record.tenant, manifest)
        if store.local_path("") is not None:
            with (mix.stored("openai") or mix.render("openai")).open("rb") as file:
                yield file
            return
        with Scratch("job", self.service.settings.temp_dir) as folder:
            with (folder / "mix").open("wb") as written:
                written.writelines(mix.chunks("openai"))
            with (folder / "mix").open("rb") as file:
                yield file

    def _start(self, records: Records, record: JobRecord, is_cancelled: bool) -> JobRecord:
        """Start the job, unless an earlier try turns out to have started it."""
        upstream = _upstream(record)
        started = self._started(record, upstream) if upstream.tried_s else None
        if started is None and upstream.tried_s and time.time() - upstream.tried_s < self.settle_s:
            return _with(record, upstream.model_copy(update={"not_before_s": time.time() + self.settle_s / 10}))
        if started is None and is_cancelled:
            return record.ended("cancelled", "Fine-tuning job cancelled")
        if started is None:
            records.write(_with(record, upstream.model_copy(update={"tried_s": time.time()})))
            started = self.client.call("POST", "/fine_tuning/jobs", json=_start_body(record, upstream))
        job_id = str(started["id"])
        facts = {**record.facts, "ballast_upstream_job": job_id}
        record = record.event(f"Started at the upstream as {job_id}", data={"code": "started_upstream"})
        changes = {"job_id": job_id, "step": "follow", "tried_s": None, "n_failed": 0}
        return _with(record.model_copy(update={"facts": facts}), upstream.model_copy(update=changes))

    def _started(self, record: JobRecord, upstream: Upstream) -> dict[str, Any] | None:
        """The upstream's job over the file that was sent for this job."""
        for job in self.client.items("/fine_tuning/jobs"):
            named = (job.get("metadata") or {}).get(JOB_KEY, record.id)
            if job.get("training_file") == upstream.file_id and named == record.id:
                return job
        return None

    def _cancel(self, upstream: Upstream) -> None:
        try:
            self.client.call("POST", f"/fine_tuning/jobs/{quoted(upstream.job_id or '')}/cancel")
        except UpstreamRefusedError as error:  # it has ended by itself, which is seen next
            log_event(logging.INFO, "upstream refused a cancel", reason=error.code)

    def _follow(self, record: JobRecord) -> JobRecord:
        """Mirror the upstream's job."""
        upstream = _upstream(record)
        path = f"/fine_tuning/jobs/{quoted(upstream.job_id or '')}"
        job = self.client.call("GET", path)
        record = self._with_events(record, path)
        checkpoints = [self._checkpoint(record, item) for item in self.client.items(f"{path}/checkpoints")]
        changes = {"n_failed": 0, "not_before_s": time.time() + self.follow_s, "checkpoints": checkpoints}
        record = _with(record, _upstream(record).model_copy(update=changes))
        tokens, model = job.get("trained_tokens"), job.get("fine_tuned_model")
        record = record.model_copy(
            update={
                "trained_tokens": tokens if isinstance(tokens, int) else None,
                "model": str(model) if model else None,
            }
        )
        status = _ENDS.get(str(job.get("status")))
        if status is None:
            return record
        if status == "failed":
            error = job.get("error") or {}
            message = self.client.clean(error.get("message") or "the upstream gave no reason")
            return _failed(record, str(error.get("code") or "upstream_failed")[:64], message)
        return record.ended(status, COMPLETED if status == "succeeded" else "Fine-tuning job cancelled")

    def _with_events(self, record: JobRecord, path: str) -> JobRecord:
        """The job with the upstream's events since the last one that was seen."""
        seen = _upstream(record).last_event
        found: list[dict[str, Any]] = []
        for event in self.client.items(f"{path}/events"):
            if event.get("id") == seen:
                break
            found.append(event)
        for event in reversed(found):
            levels: dict[str, Level] = {"info": "info", "warn": "warn", "error": "error"}
            data = event.get("data")
            record = record.event(
                self.client.clean(event.get("message", "")),
                levels.get(str(event.get("level")), "info"),
                at_s=float(event.get("created_at") or time.time()),
                type="metrics" if event.get("type") == "metrics" else "message",
                data=data if isinstance(data, dict) else {},
            )
        if found:
            record = _with(record, _upstream(record).model_copy(update={"last_event": found[0].get("id")}))
        return record

    def _checkpoint(self, record: JobRecord, item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "fine_tuning_job_id": record.id}


def keep_validation(service: Service, record: JobRecord, content_path: str) -> None:
    """Keep a job's own copy of its validation file, which is sent as it is."""
    store = service.store
    with (
        store.open_file(content_path) as source,
        store.fill(Records(store).validation_path(record.tenant, record.id)) as path,
        path.open("wb") as target,
    ):
        shutil.copyfileobj(source, target)


def _start_body(record: JobRecord, upstream: Upstream) -> dict[str, Any]:
    asked = record.asked
    metadata = {key: value for key, value in asked["metadata"].items() if not key.startswith("ballast_")}
    if len(metadata) < MAX_METADATA:
        metadata[JOB_KEY] = record.id
    body = {"model": asked["model"], "training_file": upstream.file_id, "metadata": metadata}
    optional = {"validation_file": upstream.validation_id, "suffix": asked["suffix"], "seed": asked["seed"]}
    body |= {name: value for name, value in optional.items() if value is not None}
    if asked["hyperparameters"]:
        body["method"] = {"type": "supervised", "supervised": {"hyperparameters": asked["hyperparameters"]}}
    return body


def _upstream(record: JobRecord) -> Upstream:
    assert record.upstream is not None
    return record.upstream


def _with(record: JobRecord, upstream: Upstream) -> JobRecord:
    return record.model_copy(update={"upstream": upstream})


def _failed(record: JobRecord, code: str, message: str) -> JobRecord:
    return record.ended("failed", f"The job failed: {message}", {"code": code, "message": message, "param": None})
