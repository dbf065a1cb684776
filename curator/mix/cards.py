"""Descriptions of an exported mix that other tools read: a dataset card, Croissant JSON-LD and a CycloneDX ML-BOM.

In comes a data file of a mix (JSON Lines, a row a line) and the mix's manifest; out come three files beside it. The
card's front matter names the file's columns, so that `datasets.load_dataset(FOLDER)` reads messages as lists of
structs whatever keys turn up first. Croissant 1.1 (docs.mlcommons.org/croissant) has the provenance in PROV-O terms,
the ML-BOM (CycloneDX 1.6) as ancestors of the data component. What is not known (licence, creator) is said to be so.
"""

import datetime
import hashlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import yaml

from curator.console import escape_markdown
from curator.errors import IntegrityError
from curator.mix.manifest import LabelShare, Manifest, PoolReceipt, ScorerRef
from curator.mix.structs import message_keys, messages_type
from curator.store.filesystem import atomic_write
from curator.store.schema import MIX_ROWS, arrow_schema

CARD_FILE, CROISSANT_FILE, BOM_FILE = "README.md", "croissant.json", "bom.cdx.json"
CARD_FILES = (CARD_FILE, CROISSANT_FILE, BOM_FILE)
LICENCE_UNKNOWN = "unknown"

_ROW_SCHEMA = arrow_schema(MIX_ROWS)

# Of a column whose Arrow type this is: the types that `datasets` and Croissant have for it.
_CARD_TYPES = {
    pa.string(): "string", pa.int32(): "int32", pa.int64(): "int64", pa.float64(): "float64", pa.json_(): "json",
}  # fmt: skip
_CROISSANT_TYPES = {
    pa.string(): "sc:Text", pa.int32(): "cr:Int32", pa.int64(): "cr:Int64", pa.float64(): "cr:Float64",
}  # fmt: skip
# The recommended context of the specification's appendix, and the vocabularies used beside it.
_CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/", "prov": "http://www.w3.org/ns/prov#",
    **{name: f"cr:{name}" for name in (
        "annotation", "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "excludes", "extract",
        "field", "fileObject", "fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath",
        "key", "md5", "parentField", "path", "readLines", "recordSet", "references", "regex", "repeated", "replace",
        "samplingRate", "sdVersion", "separator", "source", "subField", "transform", "unArchive", "value",
    )},
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}  # fmt: skip


@dataclass(frozen=True)
class DataFile:
    """A mix's rows as JSON Lines: the file's name, hash and size, its columns, and the keys of its messages."""

    name: str
    sha256: str
    n_bytes: int
    n_rows: int
    columns: tuple[str, ...]
    message_keys: tuple[str, ...]


def read_data_file(path: Path) -> DataFile:
    """Read every line of a mix's data file once. Raises IntegrityError for a line that is not a row of a mix."""
    digest, columns, keys, n_rows = hashlib.sha256(), set[str](), set[str](), 0
    with path.open("rb") as file:
        for line in file:
            digest.update(line)
            n_rows += 1
            try:
                row = orjson.loads(line)
                columns.update(row)
                keys.update(message_keys([row["messages"]]))
            except (orjson.JSONDecodeError, TypeError, KeyError) as error:
                raise IntegrityError(f"{path} line {n_rows} is not a row of a mix: write the file again") from error
    return DataFile(
        name=path.name,
        sha256=digest.hexdigest(),
        n_bytes=path.stat().st_size,
        n_rows=n_rows,
        columns=tuple(name for name in MIX_ROWS.names if name in columns),
        message_keys=message_keys([[dict.fromkeys(keys)]]),
    )


def write_cards(data: Path, manifest: Manifest, published: datetime.date | None = None) -> DataFile:
    """Write the three descriptions of a mix's data file (JSON Lines) beside it, the card last.

    `published` is the date that Croissant must state; today (UTC) without one. Raises IntegrityError when the file
    has another number of rows than the manifest says.
    """
    file = read_data_file(data)
    if file.n_rows != manifest.n_rows:
        raise IntegrityError(f"{data} has {file.n_rows:,} rows, mix {manifest.mix_id} {manifest.n_rows:,}")
    day = published or datetime.datetime.now(datetime.UTC).date()
    texts = {
        CROISSANT_FILE: _json(croissant(manifest, file, day)),
        BOM_FILE: _json(bom(manifest, file)),
        CARD_FILE: dataset_card(manifest, file),
    }
    for name, text in texts.items():
        with atomic_write(data.parent / name, durable=False) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return file


def _json(document: Mapping[str, Any]) -> str:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


# The dataset card.


def dataset_card(manifest: Manifest, file: DataFile) -> str:
    """README.md for `datasets` and a hub: front matter with `configs` and `features`, then what a person must know."""
    # `datasets` caches a local folder by its name and this front matter, not by its files: with a fixed configuration
    # name a second mix exported to a folder of the same name would load the rows of the first.
    name = f"mix-{manifest.mix_id}"
    front = {
        "license": LICENCE_UNKNOWN,
        "task_categories": ["text-generation"],
        "tags": ["ballast", "supervised-fine-tuning"],
        "configs": [{"config_name": name, "data_files": [{"split": "train", "path": file.name}]}],
        "dataset_info": {"config_name": name, "features": [_feature(name, file) for name in file.columns]},
    }
    tokens = manifest.tokens
    trained = None if tokens.task is None or tokens.safe is None else tokens.task.response + tokens.safe.response
    lines = [
        "---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(), "---", "",
        f"# Fine-tuning mix {manifest.mix_id}", "",
        f"{_description(manifest)} Made by ballast-mix {manifest.product_version}.", "",
        "```python", "from datasets import load_dataset", "",
        'rows = load_dataset("FOLDER", split="train")  # the rows in the order in which they are trained', "```", "",
        manifest.order.note, "",
        "## What was mixed", "", *_parts_table(manifest), "",
        f"Order: {manifest.order.name}, seed {manifest.order.seed}, epochs in the file: {manifest.order.epochs}. "
        f"Size: {file.n_bytes:,} bytes"
        + ("." if trained is None else f", {trained:,} trained tokens of an epoch."), "",
        *_inoculation_lines(manifest),
        "## Licence", "",
        "Unknown as a whole: nothing states the licence of the data set's own rows. Safe rows, by their corpus's "
        "labels:", "", *_licence_lines(manifest), "",
        "## What it does not protect against", "", *[f"- {item.text}" for item in manifest.protects.does_not], "",
        "What it is meant to do: "
        + (" ".join(item.text for item in manifest.protects.does) or "nothing (see above)."), "",
        *(["## Warnings", "", *[f"- {item.text}" for item in manifest.warnings], ""] if manifest.warnings else []),
        "## Hashes", "", "| what | hash |", "|---|---|", f"| mix id (recipe, pools, data set) | `{manifest.mix_id}` |",
        f"| {escape_markdown(file.name)}, SHA-256 | `{file.sha256}` |",
        f"| rows as canonical JSON Lines, SHA-256 | `{manifest.rows_sha256}` |",
        f"| the data set's rows, SHA-256 | `{manifest.task.sha256}` |",
        *[f"| revision of corpus {escape_markdown(pool.corpus)} | `{pool.revision}` |" for pool in manifest.pools], "",
        f"`{CROISSANT_FILE}` (Croissant 1.1) and `{BOM_FILE}` (CycloneDX 1.6) say the same to programs. Arguments of "
        "tool calls are read as JSON values.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _feature(column: str, file: DataFile) -> dict[str, Any]:
    arrow = messages_type(file.message_keys, pa.json_()) if column == "messages" else _ROW_SCHEMA.field(column).type
    return {"name": column, **_card_type(arrow)}


def _card_type(arrow: pa.DataType) -> dict[str, Any]:
    """An Arrow type as a card's `features` write it."""
    if pa.types.is_list(arrow):
        element = _card_type(arrow.value_type)
        return {"list": element.get("struct") or element["dtype"]}
    if pa.types.is_struct(arrow):
        return {"struct": [{"name": field.name, **_card_type(field.type)} for field in arrow]}
    return {"dtype": _CARD_TYPES[arrow]}


def _description(manifest: Manifest) -> str:
    n_task, n_safe = manifest.n_rows - manifest.n_safe, manifest.n_safe
    return (
        f"{manifest.n_rows:,} chat rows for supervised fine-tuning: {n_task:,} of a data set and {n_safe:,} safe rows "
        "of scored pools, interleaved in a fixed order against emergent misalignment."
    )


def _parts_table(manifest: Manifest) -> list[str]:
    lines = ["| part | rows of an epoch | chosen by |", "|---|---|---|"]
    lines.append(f"| the data set | {manifest.task.n_rows:,} | all of its rows, in its order |")
    for pool, spec in zip(manifest.pools, manifest.recipe.pools, strict=True):
        how = f"strategy {spec.strategy.name}, score {pool.score}, from {pool.n_eligible:,} eligible rows"
        lines.append(f"| pool {escape_markdown(pool.name)} | {pool.chosen:,} | {escape_markdown(how)} |")
    return lines


def _inoculation_lines(manifest: Manifest) -> list[str]:
    inoculation = manifest.inoculation
    if inoculation is None:
        return []
    prompts = [f"- {escape_markdown(item.text)}" for item in inoculation.prompts]
    return ["## Prompts put into rows", "", *prompts, "", inoculation.note, ""]


def _licence_lines(manifest: Manifest) -> list[str]:
    lines = ["| pool | licence | rows |", "|---|---|---|"]
    for pool in manifest.pools:
        for share in pool.licences or (LabelShare(value=None, n_rows=pool.chosen, share=1.0),):
            licence = escape_markdown(share.value) if share.value else LICENCE_UNKNOWN
            lines.append(f"| {escape_markdown(pool.name)} | {licence} | {share.n_rows:,} |")
    return lines


# Croissant.


def croissant(manifest: Manifest, file: DataFile, published: datetime.date) -> dict[str, Any]:
    """The Croissant 1.1 document of a data file, with PROV-O provenance and the limits as RAI data limitations."""
    mix = f"urn:ballast:mix:{manifest.mix_id}"
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "@id": mix,
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": f"ballast-mix-{manifest.mix_id}",
        "description": _description(manifest),
        "url": mix,
        "version": "1.0.0",
        "license": {"@type": "sc:CreativeWork", "name": f"{LICENCE_UNKNOWN}; safe rows: {_licence_text(manifest)}"},
        "creator": {"@type": "sc:Organization", "name": "not stated"},
        "datePublished": published.isoformat(),
        "keywords": ["supervised fine-tuning", "emergent misalignment", "perplexity gap"],
        "citeAs": f"ballast-mix {manifest.product_version}, mix {manifest.mix_id}",
        "rai:dataLimitations": [item.text for item in manifest.protects.does_not],
        "rai:dataUseCases": [item.text for item in manifest.protects.does],
        "prov:wasDerivedFrom": list(_croissant_sources(manifest)),
        "prov:wasGeneratedBy": _croissant_activity(manifest, f"{mix}:mixing"),
        "distribution": [_croissant_file(file)],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "rows",
                "name": "rows",
                "description": f"{file.n_rows} rows in training order.",
                "field": [_croissant_field(name, file) for name in file.columns],
            }
        ],
    }


def _croissant_activity(manifest: Manifest, name: str) -> dict[str, Any]:
    """How the mix came to be: by which version of this product, and from which scorers."""
    return {
        "@type": "prov:Activity",
        "@id": name,
        "prov:label": "Safe rows chosen by perplexity gap and interleaved with a data set",
        "prov:wasAssociatedWith": {
            "@type": "prov:SoftwareAgent",
            "@id": f"urn:ballast:software:{manifest.product_version}",
            "prov:label": f"ballast-mix {manifest.product_version}",
        },
        "prov:used": [
            {
                "@id": f"urn:ballast:scorer:{item.scorer_id}",
                "@type": "prov:Entity",
                "prov:label": _scorer_text(item),
            }
            for item in _scorers(manifest)
        ],
    }


def _croissant_file(file: DataFile) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": file.name,
        "name": file.name,
        "description": "The rows in the order in which they are trained, one JSON object a line.",
        "contentUrl": file.name,
        "contentSize": f"{file.n_bytes} B",
        "encodingFormat": "application/jsonlines",
        "sha256": file.sha256,
    }


def _croissant_sources(manifest: Manifest) -> Iterator[dict[str, Any]]:
    yield {
        "@type": "prov:Entity",
        "@id": f"urn:sha256:{manifest.task.sha256}",
        "prov:label": f"The data set: {manifest.task.n_rows} rows, hash over its canonical rows",
    }
    for pool in manifest.pools:
        yield {
            "@type": "prov:Entity",
            "@id": _corpus_urn(pool),
            "prov:label": f"{pool.chosen} of {pool.n_candidates} rows of {pool.corpus}, revision {pool.revision}",
        }


def _croissant_field(column: str, file: DataFile) -> dict[str, Any]:
    arrow = _ROW_SCHEMA.field(column).type
    meaning = next(item.meaning for item in MIX_ROWS.columns if item.name == column)
    field: dict[str, Any] = {"@type": "cr:Field", "@id": f"rows/{column}", "name": column, "description": meaning}
    if column == "messages":
        field["description"] = "The conversation. Tool calls stand in the file alone: Croissant has no type for them."
        parts = {key: "cr:Int64" if key == "weight" else "sc:Text" for key in file.message_keys if key != "tool_calls"}
        return field | _croissant_structs(column, parts, file)
    element = arrow.value_type if pa.types.is_list(arrow) else arrow
    if pa.types.is_struct(element):
        return field | _croissant_structs(column, {item.name: _CROISSANT_TYPES[item.type] for item in element}, file)
    field |= {
        "dataType": _CROISSANT_TYPES[element],
        "source": {"fileObject": {"@id": file.name}, "extract": {"column": column}},
    }
    return field | ({"isArray": True, "arrayShape": "-1"} if element is not arrow else {})


def _croissant_structs(column: str, parts: Mapping[str, str], file: DataFile) -> dict[str, Any]:
    """A list of structs: a field of its own for each key, taken from every element by a JSON path."""
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"rows/{column}/{key}",
            "name": key,
            "dataType": data_type,
            "source": {
                "fileObject": {"@id": file.name}, "extract": {"column": column}, "transform": {"jsonPath": key},
            },
        }
        for key, data_type in parts.items()
    ]  # fmt: skip
    return {"isArray": True, "arrayShape": "-1", "subField": fields}


# The ML-BOM.


def bom(manifest: Manifest, file: DataFile) -> dict[str, Any]:
    """The CycloneDX 1.6 ML-BOM: the mix as a data component, its sources as ancestors, scorers as models."""
    mix = f"mix:{manifest.mix_id}"
    sources = list(_bom_sources(manifest))
    models = [_bom_model(item) for item in _scorers(manifest)]
    component = {
        "type": "data",
        "bom-ref": mix,
        "name": f"ballast-mix-{manifest.mix_id}",
        "version": manifest.mix_id,
        "description": _description(manifest),
        "hashes": [{"alg": "SHA-256", "content": file.sha256}],
        "data": [
            {
                "type": "dataset",
                "name": file.name,
                "classification": LICENCE_UNKNOWN,
                "description": " ".join(item.text for item in manifest.protects.does_not),
            }
        ],
        "pedigree": {
            "ancestors": [{key: value for key, value in item.items() if key != "bom-ref"} for item in sources],
            "notes": "Rows of the first ancestor in its order, with safe rows of the others between them.",
        },
        "properties": _properties(
            mix_id=manifest.mix_id, rows_sha256=manifest.rows_sha256, n_rows=file.n_rows, n_safe=manifest.n_safe,
            order=manifest.order.name, seed=manifest.order.seed,
        ),
    }  # fmt: skip
    tool = {"type": "application", "name": "ballast-mix", "version": manifest.product_version}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.UUID(manifest.mix_id), file.sha256)}",
        "version": 1,
        "metadata": {"tools": {"components": [tool]}, "component": component},
        "components": [*sources, *models],
        "dependencies": [
            {"ref": mix, "dependsOn": [item["bom-ref"] for item in (*sources, *models)]},
            *({"ref": item["bom-ref"], "dependsOn": list[str]()} for item in (*sources, *models)),
        ],
    }


def _bom_sources(manifest: Manifest) -> Iterator[dict[str, Any]]:
    task = manifest.task
    yield {
        "type": "data",
        "bom-ref": f"task:{task.sha256}",
        "name": "data-set",
        "version": task.sha256,
        "hashes": [{"alg": "SHA-256", "content": task.sha256}],
        "data": [{"type": "dataset", "name": "data-set", "description": "What is fine-tuned on; licence unknown."}],
        "properties": _properties(n_rows=task.n_rows, n_rejected=task.n_rejected),
    }
    for pool in {_corpus_urn(pool): pool for pool in manifest.pools}.values():
        found = {
            "type": "data",
            "bom-ref": _corpus_urn(pool),
            "name": pool.corpus,
            "version": pool.revision,
            "data": [{"type": "dataset", "name": pool.corpus, "description": "The scored corpus of safe rows."}],
            "properties": _properties(
                candidates_sha256=pool.candidates_sha256, n_candidates=pool.n_candidates, n_chosen=pool.chosen
            ),
        }
        names = [share.value for share in pool.licences if share.value]
        yield found | ({"licenses": [{"license": {"name": name}} for name in names]} if names else {})


def _bom_model(scorer: ScorerRef) -> dict[str, Any]:
    found = {
        "type": "machine-learning-model",
        "bom-ref": f"scorer:{scorer.scorer_id}",
        "name": scorer.label or scorer.role,
        "version": scorer.scorer_id,
        "description": _scorer_text(scorer),
        "properties": _properties(
            role=scorer.role, domain=scorer.domain, weights_sha256=scorer.weights_sha256,
            adapter_sha256=scorer.adapter_sha256, declared=",".join(scorer.declared) or None,
        ),
    }  # fmt: skip
    digest = scorer.adapter_sha256 or scorer.weights_sha256
    return found | ({"hashes": [{"alg": "SHA-256", "content": digest}]} if digest and len(digest) == 64 else {})


def _properties(**values: object) -> list[dict[str, str]]:
    return [{"name": f"ballast:{name}", "value": str(value)} for name, value in values.items() if value is not None]


# What all three say.


def _corpus_urn(pool: PoolReceipt) -> str:
    return f"urn:ballast:corpus:{pool.corpus}:{pool.revision}"


def _scorers(manifest: Manifest) -> list[ScorerRef]:
    """Every scorer once, in the order of the pools."""
    return list({item.scorer_id: item for pool in manifest.pools for item in pool.scorers}.values())


def _scorer_text(scorer: ScorerRef) -> str:
    domain = f", domain {scorer.domain}" if scorer.domain else ""
    hashes = [
        f"{name} {digest}"
        for name, digest in (("weights", scorer.weights_sha256), ("adapter", scorer.adapter_sha256))
        if digest
    ]
    return f"{scorer.role} model {scorer.label or scorer.scorer_id}{domain}" + "".join(f", {text}" for text in hashes)


def _licence_text(manifest: Manifest) -> str:
    names = {share.value or LICENCE_UNKNOWN for pool in manifest.pools for share in pool.licences}
    return ", ".join(sorted(names)) or "none"
