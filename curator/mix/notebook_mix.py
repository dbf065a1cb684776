"""A stored mix as a notebook reads it: its manifest, its rows as a Polars frame or a data set of `datasets`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from curator.errors import MissingDependencyError
from curator.messages import Message, load_messages
from curator.mix.files import DEFAULT_TENANT, find_mix, mix_batches
from curator.mix.identity import read_manifest
from curator.mix.manifest import Manifest
from curator.mix.structs import message_keys, message_structs, messages_type
from curator.store.store import Store

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Mix:
    """A complete mix of a store. `manifest` is its receipt; rows are read on demand."""

    store: Store
    tenant: str
    manifest: Manifest

    @property
    def mix_id(self) -> str:
        """The mix's id, 32 hexadecimal digits."""
        return self.manifest.mix_id

    def to_polars(self) -> pl.DataFrame:
        """The rows in training order, with the columns of `schema.MIX_ROWS`.

        `messages` are lists of structs with the keys that any message of the mix has; arguments of tool calls are JSON
        text.
        """
        frame = pl.from_arrow(self._table())
        assert isinstance(frame, pl.DataFrame)
        return frame

    def to_dataset(self) -> "datasets.Dataset":
        """The rows in training order as a data set of Hugging Face `datasets`, with the columns of `to_polars`.

        It lies in memory; nothing is cached. Never shuffle it: the order is part of the mix. Raises
        MissingDependencyError without `datasets`.
        """
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise MissingDependencyError("to_dataset needs datasets: pip install 'ballast-mix[hub]'") from error
        table = self._table()
        place = table.schema.get_field_index("messages")
        keys = [field.name for field in table.schema.field(place).type.value_type]
        schema = table.schema.set(place, pa.field("messages", messages_type(keys, pa.json_())))
        return datasets.Dataset(table).cast(datasets.Features.from_arrow_schema(schema))

    def _table(self) -> pa.Table:
        keys = message_keys(messages for batch in self._batches() for messages in _conversations(batch))
        batches = []
        for batch in self._batches():
            place = batch.schema.get_field_index("messages")
            messages = message_structs(_conversations(batch), keys)
            batches.append(batch.set_column(place, pa.field("messages", messages.type), messages))
        return pa.Table.from_batches(batches)

    def _batches(self) -> Any:
        return mix_batches(self.store, self.tenant, self.mix_id)


def _conversations(batch: pa.RecordBatch) -> list[list[Message]]:
    return [load_messages(text) for text in batch.column("messages").to_pylist()]


def open_mix(store: Store, mix_id: str, tenant: str = DEFAULT_TENANT) -> Mix:
    """A mix by its id, or the beginning of one (at least 4 hexadecimal digits).

    Raises MissingError when the tenant has none that fits, BadInputError when several do.
    """
    return Mix(store, tenant, read_manifest(store, tenant, find_mix(store, tenant, mix_id)))
