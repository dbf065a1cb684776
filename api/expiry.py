"""Mixes that are kept for a time only: gone for every reader once it is over, and removed soon after."""

from dataclasses import dataclass

from api.idempotency import FOLDER as IDEMPOTENCY_FOLDER
from curator.build import is_expired, remove_expired, remove_stale
from curator.mixrows import is_tenant, tenant_path
from curator.store import Store

KEY_KEPT_S = 7 * 86_400.0  # files of Idempotency-Keys, whatever their own time


@dataclass(frozen=True)
class Expiry:
    """`ttl_s` seconds after a mix was built (its manifest's modification time) it is over; None: never."""

    store: Store
    ttl_s: float | None

    def is_expired(self, tenant: str, mix_id: str) -> bool:
        """Whether a mix's time is over; False for what is no mix."""
        return is_expired(self.store, tenant, mix_id, self.ttl_s)

    def sweep_mixes(self) -> int:
        """Remove every tenant's expired mixes and remains of killed builds; returns how many mixes went.

        What is no tenant's folder is passed over.
        """
        n_removed = 0
        for tenant in filter(is_tenant, self.store.list("mixes")):
            remove_stale(self.store, tenant)
            names = self.store.list(tenant_path(tenant))
            n_removed += sum(remove_expired(self.store, tenant, name, self.ttl_s) for name in names)
        return n_removed

    def sweep_keys(self) -> None:
        """Remove old files of Idempotency-Keys."""
        for tenant in self.store.list(IDEMPOTENCY_FOLDER):
            for name in self.store.list(f"{IDEMPOTENCY_FOLDER}/{tenant}"):
                path = f"{IDEMPOTENCY_FOLDER}/{tenant}/{name}"
                if self.store.age_s(path) > KEY_KEPT_S:
                    self.store.delete(path)
