"""The rows of a mix, from the service or from a store, verified against the manifest while they are read."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from curator.errors import IntegrityError
from curator.messages import Message, dump_messages, example_id
from curator.mix.files import MIX_ID_DIGITS, find_mix, mix_batches, row_lines, whole_mix_id
from curator.mix.identity import Manifest, id_of_manifest, read_manifest
from curator.recipe.problems import problem_line, problems_of
from curator.store.store import Store
from trainer.config import TrainConfig

MANIFEST_COPY, ROWS_COPY = "manifest.json", "mix.jsonl"


@dataclass(frozen=True)
class TrainRow:
    """One row to train on. `position` is its 0-based place in the mix or file."""

    position: int
    example_id: str
    origin: str  # task | safe
    messages: list[Message]


@dataclass(frozen=True)
class Mix:
    """A mix at hand: its manifest, and its canonical JSON lines (read again on each call)."""

    manifest: Manifest
    lines: Iterable[bytes]

    def rows(self) -> Iterator[TrainRow]:
        """The rows in order. Raises IntegrityError, at the end at the latest, unless all are the manifest's.

        A copy that was fetched and is not the manifest's is removed, so that the next reading fetches it again.
        """
        try:
            yield from self._checked()
        except IntegrityError:
            if isinstance(self.lines, _FetchedLines):
                self.lines.path.unlink(missing_ok=True)
            raise

    def _checked(self) -> Iterator[TrainRow]:
        digest, n_rows = hashlib.sha256(), 0
        for line in self.lines:
            digest.update(line)
            yield _row(line, n_rows, self.manifest.mix_id)
            n_rows += 1
        if (n_rows, digest.hexdigest()) != (self.manifest.n_rows, self.manifest.rows_sha256):
            raise IntegrityError(
                f"mix {self.manifest.mix_id}: read {n_rows} rows with SHA-256 {digest.hexdigest()}, the manifest "
                f"says {self.manifest.n_rows} rows with {self.manifest.rows_sha256}; fetch or build the mix again"
            )


def with_whole_id(config: TrainConfig, api_key: str | None = None) -> TrainConfig:
    """The configuration with the whole id of its mix, which may be given by its first 4 or more digits.

    Raises MissingError when none begins so, BadInputError when several do.
    """
    if config.mix_id is None or len(config.mix_id) == MIX_ID_DIGITS:
        return config
    if config.api_url is not None:
        from curator.client import Client

        with Client(config.api_url, api_key=api_key) as client:
            found = whole_mix_id(
                config.mix_id, lambda: (mix["mix_id"] for mix in client.list_mixes()), "no mix of the service's",
                "GET /v1/mixes",
            )  # fmt: skip
    else:
        assert config.store is not None
        found = find_mix(Store(config.store).open(create=False), config.tenant, config.mix_id)
    return config.model_copy(update={"mix_id": found})


def open_mix(config: TrainConfig, folder: Path, api_key: str | None = None) -> Mix:
    """The mix of a configuration; from the service its rows are downloaded into `folder` when they are first read.

    The manifest is copied into `folder` either way. Raises IntegrityError when the manifest is not that of the
    requested id, RemoteError or MissingError when it cannot be had.
    """
    assert config.mix_id is not None
    if config.api_url is not None:
        manifest = _fetch_manifest(config.api_url, api_key, config.mix_id)
        lines: Iterable[bytes] = _FetchedLines(folder / ROWS_COPY, config.api_url, api_key, config.mix_id)
    else:
        assert config.store is not None
        store = Store(config.store).open(create=False)
        manifest = read_manifest(store, config.tenant, config.mix_id)
        lines = _StoreLines(store, config.tenant, config.mix_id)
    _check_identity(manifest, config.mix_id)
    (folder / MANIFEST_COPY).write_bytes(manifest_bytes(manifest))
    return Mix(manifest, lines)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as indented JSON; `sha256` of these bytes is what config.json records."""
    return orjson.dumps(manifest.model_dump(mode="json"), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


@dataclass(frozen=True)
class _FetchedLines:
    path: Path
    url: str
    api_key: str | None
    mix_id: str

    def __iter__(self) -> Iterator[bytes]:
        from curator.client import Client

        if not self.path.exists():
            with Client(self.url, api_key=self.api_key) as client:
                client.download(self.mix_id, self.path, format="jsonl")
        with self.path.open("rb") as file:
            yield from file


@dataclass(frozen=True)
class _StoreLines:
    store: Store
    tenant: str
    mix_id: str

    def __iter__(self) -> Iterator[bytes]:
        for batch in mix_batches(self.store, self.tenant, self.mix_id):
            yield from row_lines(batch)


def _fetch_manifest(url: str, api_key: str | None, wanted: str) -> Manifest:
    from curator.client import Client

    with Client(url, api_key=api_key) as client:
        document = client.manifest(wanted)
    try:
        return Manifest.model_validate({key: document[key] for key in Manifest.model_fields if key in document})
    except ValidationError as error:
        text = f"the service's manifest of mix {wanted} is not of this version: {problem_line(problems_of(error))}"
        raise IntegrityError(text) from error


def _check_identity(manifest: Manifest, wanted: str) -> None:
    follows = id_of_manifest(manifest)
    if not manifest.mix_id == follows == wanted:
        raise IntegrityError(
            f"mix {wanted} was requested; its manifest names {manifest.mix_id} and hashes to {follows}"
        )


def _row(line: bytes, position: int, mix: str) -> TrainRow:
    try:
        row: dict[str, Any] = orjson.loads(line)
        messages: list[Message] = row["messages"]
        found = TrainRow(row["position"], row["example_id"], row["origin"], messages)
        sound = found.position == position and example_id(dump_messages(messages)) == found.example_id
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise IntegrityError(f"mix {mix}: line {position + 1} is not a row of a mix: {error}") from error
    if not sound:
        raise IntegrityError(
            f"mix {mix}: line {position + 1} has position {found.position} and example id {found.example_id}; "
            f"expected position {position} and the hash of its messages"
        )
    return found
