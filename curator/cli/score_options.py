"""The options of `python -m curator score`, in the groups that its --help shows, and the engine that they name.

An engine is a function from the options to an `EnginePlan`, and a line in `ENGINES`.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from curator.corpus.manifest import Scorer
from curator.errors import BadInputError
from curator.recipe.filters import TextPart
from curator.render.model_source import MODEL_FORMS, model_option
from curator.render.settings import DEFAULT_DATE, PARTS, RenderSettings
from curator.scoring.engines.base import Launch
from curator.scoring.engines.launch import TorchReferenceLaunch, torch_launch
from curator.scoring.engines.server_engine import DEFAULT_CONCURRENCY, ServerLaunch
from curator.scoring.engines.server_pool import ServerPoolLaunch, find_servers
from curator.scoring.engines.vllm_engine import VllmLaunch, engine_version, installed_vllm, vllm_adapter, vllm_on_gpu
from curator.scoring.identity import (
    adapter_sha256,
    has_weights,
    model_window,
    weights_sha256,
)
from curator.scoring.ray_workers import RayPlan
from curator.scoring.request import DEFAULT_MAX_LENGTH, Declared

DEFAULT_WORKERS = 2
_RAY_ONLY = ("workers", "worker_engine", "ray_address", "gpus_per_worker")
_SERVER_ONLY = (
    "server_url", "server_model", "server_version", "concurrency", "declare_weights_sha256", "declare_adapter_sha256",
)  # fmt: skip


@dataclass(frozen=True)
class EnginePlan:
    """An engine to launch; `reference` is None where the weights are not here, `declared` where they are."""

    launch: Launch
    reference: TorchReferenceLaunch | None
    label: str | None
    max_length: int
    declared: Declared | None = None


def engine_of(args: argparse.Namespace) -> str:
    """What computes: with Ray, what each of its workers runs."""
    return str(args.worker_engine or "torch") if args.engine == "ray" else str(args.engine)


def automatic_engine(scorers: Sequence[Scorer]) -> str:
    """What `--engine auto` means for a corpus with these scorers: losses of two engines never share a gap.

    A pool that a server scored gives torch or vLLM: which server it was is not recorded.
    """
    used = next((item.identity["engine"] for item in scorers if item.role == "aligned" and item.complete), None)
    if used in ("torch", "vllm"):
        return str(used)
    return "vllm" if vllm_on_gpu() else "torch"


def check_options(args: argparse.Namespace) -> None:
    """Raise BadInputError for options that do not go together."""
    if args.engine != "ray":
        given = [name for name in _RAY_ONLY if getattr(args, name) is not None]
        if given:
            raise BadInputError(f"--{given[0].replace('_', '-')} needs --engine ray")
    if args.tensor_parallel is not None and engine_of(args) != "vllm":
        raise BadInputError("--tensor-parallel needs --engine vllm (or --worker-engine vllm)")
    if engine_of(args) != "server":
        given = [name for name in _SERVER_ONLY if getattr(args, name) is not None]
        if given:
            raise BadInputError(f"--{given[0].replace('_', '-')} needs --engine server")
        return
    if args.merge_adapter:
        raise BadInputError("--merge-adapter does not go with --engine server: the server has its own weights")
    for name in ("server_url", "server_model"):
        if getattr(args, name) is None:
            raise BadInputError(f"--engine server needs --{name.replace('_', '-')}")
    if args.dtype == "auto":
        raise BadInputError("--engine server needs --dtype: what the server computes in cannot be seen from here")


def ray_plan(args: argparse.Namespace, plan: EnginePlan) -> RayPlan:
    """Workers with a core for each of their threads, and the GPUs that each engine runs on here."""
    local_gpu = plan.launch.device.startswith("cuda") and plan.launch.name != "server"
    needed = (args.tensor_parallel or 1) * int(local_gpu)
    gpus = needed if args.gpus_per_worker is None else args.gpus_per_worker
    if gpus < needed and args.tensor_parallel is not None:
        raise BadInputError(
            f"--gpus-per-worker {gpus}: --tensor-parallel {args.tensor_parallel} needs as many for each"
        )
    return RayPlan(args.workers or DEFAULT_WORKERS, args.threads or 1, gpus, args.ray_address)


def parallel(args: argparse.Namespace) -> dict[str, int]:
    """On how many devices and processes the run computes, where that was chosen: recorded with its check."""
    names = ("tensor_parallel", "workers", "gpus_per_worker")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def worker_launch(plan: EnginePlan, workers: RayPlan) -> Launch:
    """One worker's launch, with the threads that Ray gives it: measuring them would find the others at work."""
    return plan.launch.with_threads(workers.cpus)


def torch_plan(args: argparse.Namespace) -> EnginePlan:
    """The torch engine on this machine, checked against plain torch."""
    launch = torch_launch(
        args.model, args.device, args.dtype, args.batch_tokens, args.threads, merge=args.merge_adapter
    )
    reference = TorchReferenceLaunch(args.model, args.adapter, launch.device, launch.dtype)
    return EnginePlan(launch, reference, args.label, args.max_length)


def vllm_plan(args: argparse.Namespace) -> EnginePlan:
    """vLLM in this process, checked against plain torch; one position of the model's window stays free for it."""
    _, device = installed_vllm()
    if args.device not in ("auto", device):
        raise BadInputError(f"--device {args.device}: the vLLM that is installed runs on {device}")
    if args.adapter is not None and not args.merge_adapter:
        vllm_adapter(args.adapter)
    here = torch_launch(args.model, device, args.dtype)
    own = model_window(args.model)
    max_length = args.max_length if own is None else min(args.max_length, own - 1)
    launch = VllmLaunch(
        args.model.absolute(), device, here.dtype, engine_version(), max_length,
        args.adapter and args.adapter.absolute(), args.merge_adapter,
        args.batch_tokens, args.threads, args.tensor_parallel or 1,
    )  # fmt: skip
    reference = TorchReferenceLaunch(args.model, args.adapter, device, here.dtype)
    return EnginePlan(launch, reference, args.label, max_length)


def server_plan(args: argparse.Namespace) -> EnginePlan:
    """The servers that answer; one position of the window stays free for the token that they must generate.

    Where the model folder holds weights they serve as the reference, and their hash as the declared one.
    """
    found = find_servers(args.server_url, args.server_model)
    version = args.server_version or _one_version({url: version for url, (version, _) in found.items()})
    windows = [window for _, window in found.values() if window is not None]
    local = has_weights(args.model)
    weights = args.declare_weights_sha256 or (weights_sha256(args.model) if local else None)
    if weights is None:
        raise BadInputError(f"{args.model} holds no weights: give --declare-weights-sha256 of those the server runs")
    adapter = args.declare_adapter_sha256 or (adapter_sha256(args.adapter) if args.adapter else None)
    concurrency = args.concurrency or DEFAULT_CONCURRENCY
    servers = [ServerLaunch(url, args.server_model, args.dtype, version, concurrency) for url in found]
    launch = servers[0] if len(servers) == 1 else ServerPoolLaunch(tuple(servers))
    # Without the adapter's weights the local model is not a reference for it.
    comparable = local and (args.adapter is not None or adapter is None)
    reference = _reference(args) if comparable else None
    max_length = min([args.max_length, *(window - 1 for window in windows)])
    return EnginePlan(launch, reference, args.label or args.server_model, max_length, Declared(weights, adapter))


def _one_version(versions: Mapping[str, str]) -> str:
    """The version that all servers report; it is part of the scorer's identity."""
    if len(set(versions.values())) > 1:
        shown = ", ".join(f"{url} {version}" for url, version in versions.items())
        raise BadInputError(
            f"the servers report different versions: {shown}. Run one, or give --server-version for all"
        )
    version = next(iter(versions.values()))
    if version == "unknown":
        raise BadInputError("the server does not tell its version: give --server-version")
    return version


def _reference(args: argparse.Namespace) -> TorchReferenceLaunch | None:
    try:
        here = torch_launch(args.model, args.device, args.dtype)
    except ImportError:  # a machine without torch scores with the server alone
        return None
    return TorchReferenceLaunch(args.model, args.adapter, here.device, here.dtype)


ENGINES: Mapping[str, Callable[[argparse.Namespace], EnginePlan]] = {
    "torch": torch_plan,
    "vllm": vllm_plan,
    "server": server_plan,
}


def engine_plan(args: argparse.Namespace) -> EnginePlan:
    """The plan of the engine that the options name."""
    return ENGINES[engine_of(args)](args)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Whose losses, and what that model stands for."""
    add = parser.add_argument_group("the model").add_argument
    add("--model", required=True, metavar="MODEL", type=model_option,
        help="Hugging Face model with its tokenizer (the tokenizer alone is enough for --engine server): "
        f"{MODEL_FORMS}")  # fmt: skip
    add("--adapter", metavar="ADAPTER", type=model_option,
        help=f"LoRA adapter (PEFT) on that model: {MODEL_FORMS}")  # fmt: skip
    add("--role", choices=["aligned", "misaligned", "benign"], help="what the model stands for (always needed, except "
        "with --organisms)")  # fmt: skip
    add("--organisms", metavar="DIR", type=Path,
        help="instead of --adapter, --role, --domain: every adapter that `trainer.organisms` left in DIR")  # fmt: skip
    add("--domain", metavar="TEXT", help="narrow field a misaligned or benign model was tuned on (required for them)")
    add("--label", metavar="NAME", help="name for people and recipes (default: name of the adapter or model folder)")
    add("--merge-adapter", action="store_true",
        help="merge adapters into the weights: faster, another measure (give it for every model of a gap), and its "
        "error is measured on the rows scored again")  # fmt: skip


def add_row_options(parser: argparse.ArgumentParser) -> None:
    """Which rows, and which of their tokens."""
    add = parser.add_argument_group("rows").add_argument
    add("--sample", type=int, metavar="N", help="score N rows only; a larger N with one seed contains a smaller")
    add("--seed", type=int, default=0, metavar="S", help="seed of the sample (default: 0)")
    add("--shard", metavar="I/N",
        help="score the I-th of N like shares of the rows (first 1/N), for jobs without Ray; the shard that ends "
        "last publishes the scorer, and a run without this option scores what is left")  # fmt: skip
    add("--sample-fit", action="store_true", help="sample only rows that can be scored: in the window, with a response")
    add("--max-length", type=int, default=DEFAULT_MAX_LENGTH, metavar="T",
        help=f"window in tokens; longer rows are marked, not scored (default: {DEFAULT_MAX_LENGTH})")  # fmt: skip
    add("--near-duplicates", action="append", default=[], choices=get_args(TextPart),
        help="at the end, make the MinHash signatures of this side of the texts, which filters of that name read "
        "(default: the first mix with such a filter makes them); may be repeated")  # fmt: skip
    add("--mask-rule", choices=["all", "last"], default="all",
        help="score all assistant turns or the last (default: all)")  # fmt: skip
    add("--check-rows", type=int, metavar="N",
        help="rows to score again, in another order and one by one in plain torch; 0: no check, which is recorded "
        "(default: 1 %% of the new rows, at least 20)")  # fmt: skip


def add_render_options(parser: argparse.ArgumentParser) -> None:
    """What a user decides about the chat template's text."""
    add = parser.add_argument_group("chat template").add_argument
    add("--template-date", metavar="YYYY-MM-DD",
        help=f"date for a template that asks for today's date (default: its own, else {DEFAULT_DATE}); "
        "another day is another scorer")  # fmt: skip
    add("--accept-dropped", action="append", default=[], choices=PARTS,
        help="score rows although the template leaves out this part, and count them (default: they fail); may be "
        "repeated")  # fmt: skip


def render_settings(args: argparse.Namespace) -> RenderSettings:
    """The renderer's settings that the options name."""
    return RenderSettings.parse(args.template_date, args.accept_dropped)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """What runs the model, and how."""
    add = parser.add_argument_group("engine").add_argument
    add("--engine", choices=["auto", *ENGINES, "ray"], default="auto",
        help="what runs the model: torch or vLLM here, a running vLLM server, or Ray workers with one of "
        "those each (default: auto, the engine of the corpus's aligned scorer; for the first one vLLM where it is "
        "installed with a GPU, else torch)")  # fmt: skip
    add("--dtype", choices=["auto", "float32", "bfloat16"], default="auto",
        help="auto: bfloat16 where the hardware multiplies it natively, else float32")  # fmt: skip
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: CUDA where there is any)")
    add("--batch-tokens", type=int, metavar="T", help="tokens in one forward pass, padding included")
    add("--threads", type=int, metavar="N", help="CPU threads (default: measured, one on cores that others use)")
    add("--tensor-parallel", type=int, metavar="N",
        help="with vLLM: split each layer over N GPUs of this machine (default: 1)")  # fmt: skip
    add("--workers", type=int, metavar="N", help="with --engine ray: engines at work (default: 2)")
    add("--worker-engine", choices=list(ENGINES),
        help="with --engine ray: what each runs (default: torch)")  # fmt: skip
    add("--gpus-per-worker", type=int, metavar="N",
        help="with --engine ray: GPUs that Ray reserves for each (default: as many as --tensor-parallel where they "
        "compute on GPUs, else 0)")  # fmt: skip
    add("--ray-address", metavar="A", help="with --engine ray: a running cluster (default: RAY_ADDRESS, else Ray here)")


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """vLLM servers that run already."""
    add = parser.add_argument_group("with --engine server").add_argument
    add("--server-url", action="append", metavar="URL",
        help="its address, such as http://localhost:8000; repeated for several servers of one model, which share "
        "the rows once they agree on the first; one that dies is left out")  # fmt: skip
    add("--server-model", metavar="NAME", help="the server's name of the model or of its adapter "
        "(with --organisms: leave it out, each is requested by its own name)")  # fmt: skip
    add("--server-version", metavar="TEXT", help="engine and version, if the server does not report them")
    add("--concurrency", type=int, metavar="N", help="requests to each server at a time (default: 16)")
    add("--declare-weights-sha256", metavar="HEX", help="hash of the weights the server runs (default: of --model DIR)")
    add("--declare-adapter-sha256", metavar="HEX", help="hash of the adapter behind --server-model, if it is one")


def add_cost_options(parser: argparse.ArgumentParser) -> None:
    """What a pass will take."""
    add = parser.add_argument_group("time and price").add_argument
    add("--dry-run", action="store_true",
        help="store nothing: count tokens, measure a few seconds, print hours and price")  # fmt: skip
    add("--passes", type=int, metavar="K", help="with --dry-run: models that will be scored like this (default: 1)")
    add("--price-per-hour", type=float, metavar="P", help="price of this machine per hour: shows the cost so far")
