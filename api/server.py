"""uvicorn's server, with a service that knows at once that it is to stop.

uvicorn tells the application (the end of its lifespan) only after the last request has been answered: too late for
/readyz, and for requests that wait for an event.
"""

import time
from types import FrameType

import uvicorn

from api.service import Service


class Server(uvicorn.Server):
    """Serves until a signal; a second one ends the delay of the first."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._until_s = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Tell the service, and take requests for `shutdown_delay_s` more."""
        now_s = time.monotonic()
        self._until_s = 0.0 if self._service.stopping else now_s + self._service.settings.shutdown_delay_s
        self._service.stopping = True
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Whether the loop is to end, as asked ten times a second."""
        asked = await super().on_tick(counter)
        return asked and time.monotonic() >= self._until_s
