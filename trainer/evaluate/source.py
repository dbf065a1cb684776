"""The options that say which model is asked: a folder on this machine, or a server that speaks OpenAI's protocol."""

import argparse
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import orjson

from curator.errors import BadInputError
from curator.scoring.identity import adapter_sha256, check_adapter_dir, check_model_dir, weights_sha256
from trainer.evaluate.endpoint import MODEL_KEY, Endpoint


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """--model with --adapter, or --url with --served-model; and how a folder is loaded."""
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="Hugging Face model folder, run here with transformers")
    add("--adapter", type=Path, metavar="DIR", help="LoRA adapter on it")
    add("--url", help="or: address of an OpenAI-compatible endpoint, up to and with /v1")
    add("--served-model", metavar="NAME", help=f"the model's name there (its key, if any: ${MODEL_KEY})")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="weights in memory")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")


def check_source(args: argparse.Namespace) -> None:
    """Raise BadInputError unless exactly one source is named and its folders hold what they should."""
    if args.url:
        if args.model or args.adapter or not args.served_model:
            raise BadInputError("with --url give --served-model, and neither --model nor --adapter")
        return
    if args.model is None:
        raise BadInputError("give --model DIR, or --url with --served-model")
    check_model_dir(args.model)
    if args.adapter is not None:
        check_adapter_dir(args.adapter)


def source_identity(args: argparse.Namespace) -> dict[str, str | None]:
    """What decides a source's answers: hashes of the weights and the precision asked for, or a server's address and
    the model's name there (what runs behind them cannot be known). Null where there is no such part."""
    local = {"model": None, "adapter": None, "dtype": None} if args.url else {
        "model": weights_sha256(args.model), "dtype": str(args.dtype),
        "adapter": None if args.adapter is None else adapter_sha256(args.adapter),
    }  # fmt: skip
    return {**local, "url": args.url, "served_model": args.served_model if args.url else None}


def short_hash(document: Mapping[str, object] | list[object]) -> str:
    """Twelve hex digits over plain values."""
    return hashlib.blake2b(orjson.dumps(document, option=orjson.OPT_SORT_KEYS), digest_size=6).hexdigest()


def endpoint_of(args: argparse.Namespace, timeout_s: float = 60.0) -> Endpoint:
    """The server that --url names, with its key from the environment."""
    return Endpoint(args.url, args.served_model, api_key=os.environ.get(MODEL_KEY), timeout_s=timeout_s)
