"""What happens to files and jobs of this form while nobody asks: what is over its time goes."""

import logging
import threading
import time
from dataclasses import dataclass, field

from api.openai.files import Files
from api.openai.records import Records
from api.service import Service
from api.telemetry import log_event

POLL_S = 2.0
SWEEP_S = 600.0
GRACE_S = 3_600.0  # what has no record and was not touched for so long has no process any more that makes it


@dataclass
class Keeper:
    """A thread of the service; several services over one store do each other no harm."""

    service: Service
    poll_s: float = POLL_S
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

    def look(self) -> None:
        """Do what is due."""
        if time.monotonic() - self._swept_s < SWEEP_S:
            return
        self._swept_s = time.monotonic()
        Files(self.service.store).sweep(GRACE_S)
        Records(self.service.store).sweep(self.service.settings.job_ttl_s, GRACE_S)

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception as error:  # whatever it is, the next look is not to be lost with this one
                log_event(logging.WARNING, "fine-tuning jobs could not be looked at", error)
            if self._stopping.wait(self.poll_s):
                return
