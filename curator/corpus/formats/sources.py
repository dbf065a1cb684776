"""Where a data set's records lie: one file, a folder that `datasets` saved, or a data set of the Hugging Face hub.

A saved folder (`Dataset.save_to_disk`) is read from its Arrow files alone. A hub id (`org/name`, or
`hf://org/name[/config][@revision][:split]`) goes through the `datasets` library, which must be installed and
brings the files; what is read are the Arrow files of its cache.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import orjson

from curator.corpus.formats.rows import Container
from curator.errors import BadInputError, MissingDependencyError, MissingError

_HUB = re.compile(
    r"(?P<scheme>hf://(?:datasets/)?)?(?P<id>[\w.-]+/[\w.-]+)"
    r"(?:/(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?(?::(?P<split>[\w.-]+))?",
    re.ASCII,
)
_FILE_SUFFIXES = frozenset(
    (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".feather", ".csv", ".tsv", ".gz", ".zst", ".txt")
)


@dataclass(frozen=True)
class Located:
    """A data set's name (no folder of it) and its files in order; `container` where the place says what they are."""

    name: str
    files: tuple[Path, ...]
    container: Container | None = None


def locate(source: str | Path) -> Located:
    """The files of a path, a saved folder or a hub id.

    A Path is never taken for a hub id, so what a stranger names cannot start a download. Raises MissingError
    when there is no such file or data set, BadInputError for a folder that is not a data set or has several splits.
    """
    found = _HUB.fullmatch(source) if isinstance(source, str) else None
    if found is not None and found["scheme"]:
        return _from_hub(found)
    path = Path(source)
    try:
        is_folder = path.is_dir()
    except OSError as error:  # a folder above it may not be entered, or its name is too long
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from error
    if is_folder:
        return _saved_folder(path)
    is_id = found is not None and not found["config"] and PurePath(found["id"]).suffix.lower() not in _FILE_SUFFIXES
    if found is not None and is_id and not path.exists() and not path.parent.is_dir():
        return _from_hub(found)
    if not path.exists():
        raise MissingError(f"there is no file {source}")
    return Located(path.name, (path,))


def one_file(located: Located, folder: Path) -> Path:
    """The data set as one file: its own, or its Arrow files in order as one Arrow stream in `folder`."""
    if len(located.files) == 1:
        return located.files[0]
    import pyarrow as pa

    merged = folder / "rows.arrow"
    try:
        with ExitStack() as stack:
            writer: Any = None
            for path in located.files:
                for batch in _arrow_batches(stack.enter_context(pa.memory_map(str(path)))):
                    if writer is None:
                        sink = stack.enter_context(pa.OSFile(str(merged), "wb"))
                        writer = stack.enter_context(pa.ipc.new_stream(sink, batch.schema))
                    writer.write_batch(batch)
    except (pa.ArrowException, OSError) as error:
        raise BadInputError(f"{located.name} is not a whole set of Arrow files: {error}") from error
    if writer is None:
        raise BadInputError(f"{located.name} holds no records: it is empty")
    return merged


def _arrow_batches(file: Any) -> Iterator[Any]:
    import pyarrow as pa

    if file.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(file)
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        file.seek(0)
        yield from pa.ipc.open_stream(file)


def _saved_folder(path: Path) -> Located:
    state = _read_object(path / "state.json")
    if state is None:
        raise _no_data_set(path)
    name = f"{path.parent.name}/{path.name}" if (path.parent / "dataset_dict.json").is_file() else path.name
    listed = state.get("_data_files")
    entries = listed if isinstance(listed, list) else []
    names = [str(entry.get("filename")) for entry in entries if isinstance(entry, dict)]
    if not names or any(PurePath(name).name != name for name in names):
        raise BadInputError(f"{path}/state.json lists no data files of its own folder: save the data set again")
    files = tuple(path / name for name in names)
    if missing := [file.name for file in files if not file.is_file()]:
        raise MissingError(f"{path} lacks {', '.join(missing[:5])}, which its state.json lists: copy it whole")
    return Located(name, files, "arrow")


def _no_data_set(path: Path) -> BadInputError:
    splits = (_read_object(path / "dataset_dict.json") or {}).get("splits")
    if isinstance(splits, list) and splits:
        return BadInputError(
            f"{path} has the splits {', '.join(map(str, splits))}: name one, as {path.name}/{splits[0]}"
        )
    return BadInputError(
        f"{path} cannot be read: it is a folder, and not one that `save_to_disk` of datasets wrote (no state.json)"
    )


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        document = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, orjson.JSONDecodeError) as error:
        raise BadInputError(f"{path} cannot be read: {error}") from error
    return document if isinstance(document, dict) else None


def _from_hub(spec: re.Match[str]) -> Located:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"{spec['id']} is a data set of the Hugging Face hub: install ballast-mix[hub], or name a local file"
        ) from error
    try:
        loaded = datasets.load_dataset(spec["id"], spec["config"], revision=spec["revision"], split=spec["split"])
    except Exception as error:  # datasets raises errors of many libraries: network, files, options
        first = " ".join(str(error).split())[:300]
        raise BadInputError(f"the data set {spec['id']} of the Hugging Face hub cannot be loaded: {first}") from error
    return _cached(spec, loaded)


def _cached(spec: re.Match[str], loaded: Any) -> Located:
    name = "/".join(part for part in (spec["id"], spec["config"]) if part)
    split = spec["split"]
    if isinstance(loaded, Mapping):
        if len(loaded) != 1:
            first = f"hf://{name}:{next(iter(loaded), 'train')}"
            raise BadInputError(f"{name} has the splits {', '.join(loaded)}: name one, as {first}")
        ((split, loaded),) = loaded.items()
    files = tuple(Path(item["filename"]) for item in loaded.cache_files)
    return Located(f"{name}:{split}", files, "arrow")
