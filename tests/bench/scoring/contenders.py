"""The contenders of one benchmark run: the engine in three ways, its peers, and what an engine pass is made of."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from curator.errors import MissingDependencyError
from curator.messages import dump_messages, example_id, load_messages
from curator.render import Renderer
from curator.scoring import RowLoss
from curator.scoring.engines.torch_engine import TorchEngine
from curator.scoring.engines.torch_model import load_model, torch, transformers
from curator.scoring.engines.vllm_engine import VllmEngine, VllmLaunch, engine_version
from curator.scoring.parts import scored_row, write_part
from curator.store.store import Store
from tests.bench.scoring.peers import LmEval, per_row
from tests.bench.scoring.request import BenchRequest
from tests.bench.scoring.rows import BenchRow

LORA_RANK = 32  # method.md, "Training recipe"


class Contenders:
    """Everything loaded once; `tasks` are timed, `losses` are what each task's last call gave."""

    def __init__(self, request: BenchRequest, renderer: Renderer, rows: Sequence[BenchRow], scratch: Path) -> None:
        transformers.utils.logging.disable_progress_bar()
        self.rows, self.renderer, self.scratch = rows, renderer, scratch
        self.whole = [row.whole for row in rows]
        self.last = [row.last for row in rows]
        self.engine = TorchEngine(request.model_dir, device=request.device, dtype=request.dtype)
        self.device, self.dtype = self.engine.device, self.engine.dtype
        self.model = load_model(request.model_dir, self.device, self.dtype)
        self.adapter = request.adapter_dir or random_adapter(request.model_dir, scratch / "adapter")
        self.merged = TorchEngine(request.model_dir, device=self.device, dtype=self.dtype, merge=True)
        self.merged.use_adapter(self.adapter)
        self.lm_eval, self.lm_eval_missing = self._lm_eval(request)
        self.vllm, self.vllm_missing = self._vllm(request)
        self.losses: dict[str, list[RowLoss]] = {}
        self.model_seconds: list[float] = []  # of each `engine` call, inside the model
        self._counting = False
        self.clock: Callable[[], float] = time.perf_counter
        self._count_model_time()

    def tasks(self) -> dict[str, Callable[[], None]]:
        """What is timed, by name."""
        tasks: dict[str, Callable[[], list[RowLoss]]] = {
            "engine": self._engine,
            "per_row": lambda: per_row(self.model, self.device, self.whole),
            "adapter": self._adapter,
            "merged": lambda: self.merged.score(self.whole),
            "engine_last_answer": lambda: self.engine.score(self.last),
        }
        harness = self.lm_eval
        if harness is not None:
            tasks["lm_eval_last_answer"] = lambda: harness.score(self.last)
        vllm = self.vllm
        if vllm is not None:
            tasks["vllm"] = lambda: vllm.score(self.whole)
        timed = {name: self._kept(name, task) for name, task in tasks.items()}
        return {**timed, "render_and_write": self._around_the_engine}

    def warm_up(self) -> dict[int, float]:
        """Each once on two rows; returns lm-eval's seconds by batch size on all rows."""
        few = self.whole[:2]
        for engine in (self.engine, self.merged):
            engine.score(few)
        self.engine.use_adapter(self.adapter)
        self.engine.score(few)
        self.engine.use_adapter(None)
        per_row(self.model, self.device, few)
        self._around_the_engine()
        if self.vllm is not None:
            self.vllm.score(few)
        return self.lm_eval.settle(self.last) if self.lm_eval is not None else {}

    def _engine(self) -> list[RowLoss]:
        self.model_seconds.append(0.0)
        self._counting = True
        try:
            return self.engine.score(self.whole)
        finally:
            self._counting = False

    def _adapter(self) -> list[RowLoss]:
        self.engine.use_adapter(self.adapter)
        try:
            return self.engine.score(self.whole)
        finally:
            self.engine.use_adapter(None)

    def _around_the_engine(self) -> None:
        """What a scoring run does for each row beside the engine: parse, render, and write its part."""
        texts = [dump_messages(row.messages) for row in self.rows]
        rendered = [self.renderer.render(load_messages(text)) for text in texts]
        pairs = zip(texts, rendered, strict=True)
        scored = [scored_row(example_id(text), row, RowLoss(1.0, row.n_response_tokens)) for text, row in pairs]
        write_part(Store(self.scratch / "store"), "scores", list({row.example_id: row for row in scored}.values()))

    def _kept(self, name: str, task: Callable[[], list[RowLoss]]) -> Callable[[], None]:
        def run() -> None:
            self.losses[name] = task()

        return run

    def _count_model_time(self) -> None:
        """Add up the time inside the model, head and loss, call by call (a GPU is waited for)."""
        inner = self.engine._nll

        def timed(*tensors: Any) -> Any:
            started = self.clock()
            result = inner(*tensors)
            if self._counting and self.device.startswith("cuda"):
                torch.cuda.synchronize()
            if self._counting:
                self.model_seconds[-1] += self.clock() - started
            return result

        setattr(self.engine, "_nll", timed)  # noqa: B010 - mypy refuses to assign to a method

    def _lm_eval(self, request: BenchRequest) -> tuple[LmEval | None, str | None]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(request.model_dir, local_files_only=True, trust_remote_code=False)
        try:
            return LmEval(self.model, tokenizer, self.device, request.max_length), None
        except MissingDependencyError as error:
            return None, error.message

    def _vllm(self, request: BenchRequest) -> tuple[VllmEngine | None, str | None]:
        if self.device != "cpu":
            return None, "measured on a CPU only, for on a GPU it takes the memory that the others need"
        try:
            launch = VllmLaunch(
                request.model_dir, "cpu", self.dtype, engine_version(), request.max_length, threads=request.threads
            )
            return launch(), None
        except MissingDependencyError as error:
            return None, error.message


def random_adapter(model_dir: Path, target: Path) -> Path:
    """A seeded random LoRA on every linear layer but the head, with B != 0."""
    import peft

    model = load_model(model_dir, "cpu", "float32")
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=LORA_RANK, lora_alpha=2 * LORA_RANK, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    wrapped = peft.get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=1e-3)
    wrapped.save_pretrained(target)
    return target
