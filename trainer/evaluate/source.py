"""The options that say which model is asked: a folder on this machine, or a server that speaks OpenAI's protocol."""

import argparse
import os
from pathlib import Path

from curator.errors import BadInputError
from curator.scoring.identity import check_adapter_dir, check_model_dir
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


def endpoint_of(args: argparse.Namespace, timeout_s: float = 60.0) -> Endpoint:
    """The server that --url names, with its key from the environment."""
    return Endpoint(args.url, args.served_model, api_key=os.environ.get(MODEL_KEY), timeout_s=timeout_s)
