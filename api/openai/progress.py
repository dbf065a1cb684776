"""Bringing a fine-tuning job up to date: from the job that mixes to its results.

Nothing runs here: `advance` looks at the job of `api.jobs`, and writes what it finds into the record. Whoever reads a
job advances it first.
"""

import time

from api.downloads import MixFile
from api.jobs.record import Job
from api.openai.audits import audited
from api.openai.files import FileRecord, Files, ResultPart, content_id
from api.openai.records import COMPLETED, JobRecord, Records, Upstream
from api.openai.training import failed, trained
from api.service import Service
from curator.errors import MissingError
from curator.mix.files import MANIFEST_FILE, mix_path
from curator.mix.identity import read_manifest
from curator.mix.manifest import Manifest

_NAMES: dict[ResultPart, str] = {"openai": "mix.jsonl", "manifest": "manifest.json", "jsonl": "rows.jsonl"}


def advance(service: Service, record: JobRecord) -> JobRecord:
    """The job as it stands now; what is new is kept, unless another process holds it at the moment.

    Raises StoreError when the store fails.
    """
    if not record.is_active or (record.upstream is not None and record.facts):
        return record
    records = Records(service.store)
    with records.held(record.tenant, record.id) as is_ours:
        if not is_ours:
            return record
        record = records.read(record.tenant, record.id)
        found = advanced(service, record)
        if found != record:
            records.write(found)
        return found


def advanced(service: Service, record: JobRecord) -> JobRecord:
    """The job with what its mixing job and its training have come to; for the holder of its lock."""
    if record.is_active and not record.facts:
        record = _followed(service, record)
    return trained(service, record) if record.is_active and record.facts and record.training else record


def is_made(service: Service, record: JobRecord) -> bool:
    """Whether the job that mixes is there: of a service that was killed while it made one only the record is."""
    return bool(record.facts) or (bool(record.work_id) and service.board.has_record(record.tenant, record.work_id))


def _followed(service: Service, record: JobRecord) -> JobRecord:
    try:
        job = service.board.read(record.tenant, record.work_id)
    except MissingError:
        return record.ended("cancelled", "Fine-tuning job cancelled: its mixing job was removed")
    if job.state in ("running", "done") and not record.is_started:
        at_s = job.started_at.timestamp() if job.started_at is not None else time.time()
        record = record.event("Fine-tuning job started", at_s=at_s).model_copy(
            update={"is_started": True, "status": "running"}
        )
    if job.state == "cancelled":
        return record.ended("cancelled", "Fine-tuning job cancelled")
    if job.state == "failed":
        return failed(record, job)
    if job.state != "done":
        return record
    if record.audit_id and Records(service.store).cancel_asked(record.tenant, record.id):
        return record.ended("cancelled", "Fine-tuning job cancelled")
    found = audited(service, record)
    return record if found is None else _mixed(service, found[0], job, found[1])


def _mixed(service: Service, record: JobRecord, job: Job, audit: dict[str, str]) -> JobRecord:
    """The job whose mix is made, with the facts of its audit: it has succeeded, or goes on at the upstream."""
    mix_id = str((job.result or {}).get("mix_id"))
    try:
        manifest = read_manifest(service.store, record.tenant, mix_id)
        files = result_files(service, record, manifest)
    except MissingError:
        message = "the mix was deleted, or is over its time"
        return record.ended(
            "failed", f"The job failed: {message}", {"code": "mix_gone", "message": message, "param": None}
        )
    facts = {
        "ballast_mix_id": mix_id,
        "ballast_ratio": f"{manifest.ratio.reached_rows:.6g}",
        "ballast_task_rows": str(manifest.task.n_rows),
        "ballast_safe_rows": str(manifest.n_safe),
        "ballast_rows_refused": str(manifest.task.n_rejected),
        **audit,
    }
    text = (
        f"Mixed {manifest.n_safe:,} safe rows into {manifest.task.n_rows:,} training rows "
        f"({facts['ballast_ratio']} safe rows per training row): mix {mix_id}"
    )
    changes = {"facts": facts, "result_files": files}
    record = record.event(text, data={"code": "mixed", **facts}).model_copy(update=changes)
    for warning in manifest.warnings:
        record = record.event(warning.text, "warn", data={"code": warning.code})
    if record.mode == "forward":
        return record.model_copy(update={"upstream": record.upstream or Upstream()})
    return record if record.training else record.ended("succeeded", COMPLETED)


def result_files(service: Service, record: JobRecord, manifest: Manifest) -> list[str]:
    """Keep the three views of a mix as files of the tenant, and return their ids: rows to train on, manifest, and every
    row with where it comes from. Raises MissingError when the mix is gone."""
    files, found = Files(service.store), []
    for part, name in _NAMES.items():
        file_id = content_id("file", [record.tenant, record.id, manifest.mix_id, part])
        found.append(file_id)
        n_bytes = _n_bytes(service, record.tenant, manifest, part)
        kept = FileRecord(
            file_id=file_id,
            n_bytes=n_bytes,
            created_s=time.time(),
            filename=f"{record.id}-{name}",
            purpose="fine-tune-results",
            mix_id=manifest.mix_id,
            part=part,
        )
        files.add(record.tenant, kept)
    return found


def _n_bytes(service: Service, tenant: str, manifest: Manifest, part: ResultPart) -> int:
    if part == "manifest":
        return service.store.n_bytes(f"{mix_path(tenant, manifest.mix_id)}/{MANIFEST_FILE}")
    mix = MixFile(service.store, tenant, manifest)
    if service.store.local_path("") is not None:
        return (mix.stored(part) or mix.render(part)).stat().st_size
    return sum(map(len, mix.chunks(part)))
