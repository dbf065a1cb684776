"""What happens to files and jobs of this form while nobody asks: jobs go on, what is over goes."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from api.openai.files import Files
from api.openai.forward import Forwarder
from api.openai.progress import advance, is_made
from api.openai.records import JobRecord, Records
from api.openai.training import tidy
from api.openai.uploads import Uploads
from api.processes.webhooks import EndedWork
from api.service import Service
from api.telemetry import log_event
from curator.errors import MissingError

POLL_S = 2.0
SWEEP_S = 600.0
N_SIDE_BY_SIDE = 8  # jobs at the upstream, so that a slow call holds up no other
GRACE_S = 3_600.0  # what has no record and was not touched for so long has no process any more that makes it


@dataclass
class Keeper:
    """A thread of the service; several services over one store do each other no harm."""

    service: Service
    forwarder: Forwarder | None = None
    poll_s: float = POLL_S
    _over: set[tuple[str, str]] = field(default_factory=set)  # jobs that have ended
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _swept_s: float = float("-inf")

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="ballast-openai", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, after the request that is under way."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        if self.forwarder is not None:
            self.forwarder.client.http.close()

    def look(self) -> None:
        """Do what is due."""
        self._advance()
        if time.monotonic() - self._swept_s < SWEEP_S:
            return
        self._swept_s = time.monotonic()
        Files(self.service.store).sweep(GRACE_S)
        Uploads(self.service.store).sweep()
        Records(self.service.store).sweep(self.service.settings.job_ttl_s, GRACE_S)

    def _advance(self) -> None:
        """Take every active job a step further."""
        records = Records(self.service.store)
        every = {(tenant, name) for tenant in records.tenants() for name in records.ids(tenant)}
        self._over &= every
        with ThreadPoolExecutor(N_SIDE_BY_SIDE) as pool:
            list(pool.map(self._step, sorted(every - self._over)))

    def _step(self, job: tuple[str, str]) -> None:
        if self._stopping.is_set():
            return
        try:
            found = self._advanced(*job)
        except Exception as error:  # one job's failure is not the others'
            log_event(logging.WARNING, "a fine-tuning job could not be taken further", error, job_id=job[1])
            return
        if found is not None and not found.is_active:
            self._over.add(job)

    def _advanced(self, tenant: str, ft_id: str) -> JobRecord | None:
        """The job as it now stands; None when another process holds it, or it is not there."""
        records = Records(self.service.store)
        try:
            record = records.read(tenant, ft_id)
        except MissingError:
            return None
        if record.is_active and not is_made(self.service, record) and time.time() - record.created_s < GRACE_S:
            return None  # a create is at work, or was cut off: the client's repeat makes it whole
        if record.is_active:
            forwarder = self.forwarder if record.mode == "forward" else None
            found = advance(self.service, record) if forwarder is None else forwarder.step(tenant, ft_id)
            if found is None:
                return None
            record = found
        tidy(records, record)
        is_to_be_posted = record.is_to_be_posted and not record.is_active
        return self._posted(records, tenant, ft_id) if is_to_be_posted else record

    def _posted(self, records: Records, tenant: str, ft_id: str) -> JobRecord | None:
        """The job whose end the webhook has got; None when another process holds it. A kill in between repeats it."""
        with records.held(tenant, ft_id) as is_ours:
            if not is_ours:
                return None
            record = records.read(tenant, ft_id)  # as it is now that nobody else changes it
            if record.is_to_be_posted:
                ended = EndedWork(folder=records.path(tenant, ft_id), report=record.report())
                self.service.webhooks.tell(tenant, ft_id, ended)
                record = record.model_copy(update={"is_to_be_posted": False})
                records.write(record)
        return record

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception as error:  # whatever it is, the next look is not to be lost with this one
                log_event(logging.WARNING, "fine-tuning jobs could not be looked at", error)
            if self._stopping.wait(self.poll_s):
                return
