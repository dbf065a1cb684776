"""Mixes that are kept for a time only: gone for every reader once it is over, and removed soon after."""

import time
from dataclasses import dataclass

import fsspec

from api.idempotency import FOLDER as IDEMPOTENCY_FOLDER
from curator.build import remove_stale
from curator.errors import MissingError
from curator.mixrows import MANIFEST_FILE, mix_path, tenant_path
from curator.store import Store

KEY_KEPT_S = 7 * 86_400.0  # files of Idempotency-Keys, whatever their own time


@dataclass(frozen=True)
class Expiry:
    """`ttl_s` seconds after a mix was built (its manifest's modification time) it is over; None: never."""

    store: Store
    ttl_s: float | None

    def is_expired(self, tenant: str, mix_id: str) -> bool:
        """Whether a mix's time is over; False for what is no mix."""
        if self.ttl_s is None:
            return False
        try:
            age_s = self._age_s(f"{mix_path(tenant, mix_id)}/{MANIFEST_FILE}")
        except MissingError:
            return False
        return age_s is not None and age_s > self.ttl_s

    def remove_expired(self, tenant: str, mix_id: str) -> bool:
        """Remove a mix if its time is over; returns whether it was."""
        if not self.is_expired(tenant, mix_id):
            return False
        folder = mix_path(tenant, mix_id)
        self.store.delete(f"{folder}/{MANIFEST_FILE}")  # first: what is left after a crash is no mix any more
        self.store.delete(folder)
        return True

    def sweep(self) -> int:
        """Remove every tenant's expired mixes, remains of killed builds and old keys; returns how many mixes went."""
        n_removed = 0
        for tenant in self.store.list("mixes"):
            remove_stale(self.store, tenant)
            n_removed += sum(self.remove_expired(tenant, name) for name in self.store.list(tenant_path(tenant)))
        for tenant in self.store.list(IDEMPOTENCY_FOLDER):
            for name in self.store.list(f"{IDEMPOTENCY_FOLDER}/{tenant}"):
                path = f"{IDEMPOTENCY_FOLDER}/{tenant}/{name}"
                if (self._age_s(path) or 0.0) > KEY_KEPT_S:
                    self.store.delete(path)
        return n_removed

    def _age_s(self, path: str) -> float | None:
        system, full = fsspec.core.url_to_fs(self.store.url(path))
        try:
            return float(time.time() - system.modified(full).timestamp())
        except (FileNotFoundError, NotADirectoryError):
            return None
