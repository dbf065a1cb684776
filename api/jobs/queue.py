"""The messages that wake workers: one queue for each kind of job, in the storages of the library huey.

A message holds a tenant and a job id and nothing that runs: huey's own task layer would unpickle what it takes, so
whoever can write the queue could run code in a worker. A worker takes a message as a reason to look at the board, never
as the job to do: losing one costs seconds, since an idle worker also looks there now and again.
"""

from dataclasses import dataclass, field
from typing import Any

from api.jobs.record import JobKind
from curator.errors import BadInputError, MissingDependencyError, StoreError
from curator.store.store import Store

DEFAULT_FILE = ".jobs.sqlite"  # a dot: the store's own, never listed
SERVERS = {"redis": "Redis", "rediss": "Redis", "unix": "Redis", "postgresql": "PostgreSQL", "postgres": "PostgreSQL"}


@dataclass
class JobQueue:
    """The queues of one store. `address` is a SQLite file, or the URL of a Redis or PostgreSQL server.

    Threads may share one: the storages keep a connection for each.
    """

    address: str
    _storages: dict[JobKind, Any] = field(default_factory=dict)

    def put(self, kind: JobKind, tenant: str, job_id: str) -> None:
        """Send a job's message; raises StoreError when the queue cannot be reached."""
        storage = self._storage(kind)
        try:
            storage.enqueue(f"{tenant}/{job_id}".encode())
        except Exception as error:
            raise _unreachable(error) from error

    def take(self, kind: JobKind) -> tuple[str, str] | None:
        """(tenant, job id) of the oldest message, which is then gone; None when there is none."""
        storage = self._storage(kind)
        try:
            data = storage.dequeue()
        except Exception as error:
            raise _unreachable(error) from error
        if data is None:
            return None
        tenant, _, job_id = bytes(data).decode(errors="replace").partition("/")
        return tenant, job_id

    def close(self) -> None:
        """Let go of the connections."""
        for storage in self._storages.values():
            storage.close()
        self._storages.clear()

    def _storage(self, kind: JobKind) -> Any:
        if kind not in self._storages:
            self._storages[kind] = _open(f"ballast_{kind}", self.address)
        return self._storages[kind]


def _open(name: str, address: str) -> Any:
    server = SERVERS.get(address.partition("://")[0]) if "://" in address else None
    try:
        from huey import storage

        if server is None:
            return storage.SqliteStorage(name, filename=address)
        if server == "Redis":
            return storage.RedisStorage(name, blocking=False, url=address)
        return storage.PostgresStorage(name, dsn=address, blocking=False)
    except ImportError as error:
        raise MissingDependencyError(f"{error.name} is absent: pip install 'ballast-mix[jobs]'") from error
    except Exception as error:
        if type(error).__name__ == "ConfigurationError" and server is not None:
            extra = f"pip install 'ballast-mix[{server.lower()}]'"
            raise MissingDependencyError(f"this job queue needs a driver: {extra}") from error
        raise _unreachable(error) from error


def open_queue(store: Store, address: str | None) -> JobQueue:
    """The queue at an address, or the SQLite file that a local store keeps.

    Raises BadInputError for an address of another kind, and without one for a store in a bucket.
    """
    if address is not None:
        scheme, separator, _ = address.partition("://")
        if separator and scheme not in SERVERS:
            raise BadInputError(
                f"job queue {scheme}:// is neither a file nor one of {', '.join(f'{name}://' for name in SERVERS)}"
            )
        return JobQueue(address)
    path = store.local_path(DEFAULT_FILE)
    if path is None:
        raise BadInputError(
            "a store in a bucket has no job queue of its own: name one, redis://... or postgresql://..."
        )
    return JobQueue(str(path))


def _unreachable(error: Exception) -> StoreError:
    # Drivers name the address, password and all, in some of their texts: only the kind of failure is passed on.
    return StoreError(f"the job queue cannot be reached ({type(error).__name__})")
