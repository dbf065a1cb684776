"""The handler of `train` jobs: `trainer.sft` in a process of its own, over the mix that a job names.

The run's folder lies in the store, so that the next worker goes on from the newest checkpoint of one that died. For a
store in a bucket it lies beside the worker, and its figures and newest checkpoint are copied to the bucket. The process
ends with its worker: no two ever train the same job. What is learnt goes to the folder of the job's models under its
model id, checkpoints under `<model id>:ckpt-step-<step>`; a checkpoint is there once its marker is, which comes last.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import orjson

from api.jobs.control import Control, StoppedError
from api.jobs.models import TrainedModel
from curator.console import flags
from curator.errors import BadInputError, BallastError, MissingDependencyError, StoreError
from curator.mix.identity import read_manifest
from curator.render.model_source import locate_model
from curator.scoring.identity import check_model_dir
from curator.store.scratch import Scratch
from curator.store.store import Store

METRICS, CONFIG, CHECKPOINTS = "metrics.jsonl", "config.json", "checkpoints"  # of a run's folder (trainer.sft)
RESULT = "result.json"  # of a run's folder: what its job gave, which stays when the job is removed
MARKER = "complete.json"  # of a checkpoint
LOOK_S = 0.5
_CHECKPOINT = "checkpoint-"  # a checkpoint's folder, before its step
STOP_S = 20.0  # for a checkpoint, when the worker is stopped
_STATE = ("optimizer.pt", "scheduler.pt", "scaler.pt", "trainer_state.json", "training_args.bin")  # to go on
_STATES = ("rng_state",)  # names begin so
_MEASURED = ("device", "dtype", "max_length", "mask_rule", "template_date", "accept_dropped")  # as it was trained
_PR_SET_PDEATHSIG = 1


class TrainingFailedError(BallastError, RuntimeError):
    """`trainer.sft` ended without a model."""

    code = "training_failed"


@dataclass(frozen=True)
class TrainHandler:
    """Trains the models of one worker."""

    models: Mapping[str, TrainedModel]

    def check(self) -> None:
        """Raise MissingDependencyError where nothing can be trained or `trainer.sft` does not start, BadInputError for
        folders that hold no model and options that it does not have."""
        if find_spec("trl") is None or find_spec("trainer") is None:
            raise MissingDependencyError("training needs the extra `train`: pip install 'ballast-mix[train]'")
        helped = subprocess.run(
            [sys.executable, "-m", "trainer.sft", "--help-all"], capture_output=True, text=True, check=False
        )
        if helped.returncode:
            last = helped.stderr.strip().rpartition("\n")[2]
            raise MissingDependencyError(f"`python -m trainer.sft --help-all` fails: {last}")
        known = set(helped.stdout.replace(",", " ").replace("[", " ").split())
        for name, model in self.models.items():
            check_model_dir(locate_model(model.model))
            unknown = [word for word in flags(model.options) if str(word).startswith("--") and word not in known]
            if unknown:
                raise BadInputError(
                    f"unknown option {unknown[0]} of model {name}: see `python -m trainer.sft --help-all`"
                )

    def __call__(self, store: Store, rows: Path, control: Control) -> dict[str, Any]:
        """Train as a job asks; returns the model's id, steps, trained tokens and hash.

        Raises TrainingFailedError, MissingError for an absent mix, CancelledError and StoppedError.
        """
        request = control.job.request
        model = self.models.get(request["model"])
        if model is None:
            raise TrainingFailedError(f"the worker that took the job trains no model {request['model']}")
        manifest = read_manifest(store, control.job.tenant, request["mix_id"])
        local = store.local_path(request["run"])
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(Scratch("job"))
            run = _Run(store, local or scratch / "run", request, control)
            settings = {
                **model.settings(request["hyperparameters"], manifest.n_rows),
                "seed": request["seed"],
                "store": store.url(""),
                "tenant": control.job.tenant,
                "mix_id": request["mix_id"],
                "out": str(run.folder),
            }
            run.begin()
            report = run.finished("trainer.sft", settings, scratch, model.model)
            run.keep(run.folder / ("model" if model.options.get("full") else "adapter"))
            validation = {} if request["validation"] is None else run.validation(scratch, model)
        result = {
            **validation,
            "mix_id": request["mix_id"],
            "model_id": request["model_id"],
            "steps": report["steps"],
            "tokens": report["tokens"],
            "sha256": report.get("adapter_sha256") or report.get("weights_sha256"),
        }
        store.write_json(f"{request['run']}/{RESULT}", result)
        return result


@dataclass
class _Run:
    """One run of `trainer.sft` and the processes for it, and what of it is brought to the store while it goes on."""

    store: Store
    folder: Path
    request: Mapping[str, Any]
    control: Control
    n_lines: int = 0
    brought: set[str] = field(default_factory=set)
    is_staged: bool = False

    def begin(self) -> None:
        """Fetch what an earlier attempt left in a bucket to go on from; with nothing left remove its checkpoints."""
        whole = self._kept_steps() if self._is_remote else []
        if whole:
            checkpoint = f"{CHECKPOINTS}/{_CHECKPOINT}{whole[-1]}"
            names = [f"{checkpoint}/{name}" for name in self.store.list(f"{self.request['run']}/{checkpoint}")]
            for name in (CONFIG, METRICS, *names):
                self._fetch(f"{self.request['run']}/{name}", self.folder / name)
        if not self._markers():
            self._drop(self._stored())

    def finished(self, module: str, options: Mapping[str, Any], scratch: Path, model: str) -> dict[str, Any]:
        """What a module prints at its end with --json; raises TrainingFailedError, CancelledError and StoppedError."""
        out, log = scratch / "stdout", scratch / "stderr"
        with out.open("wb") as stdout, log.open("wb") as stderr:
            process = _start(module, flags({**options, "json": True}), stdout, stderr)
            try:
                while _runs(process):
                    self.control.check()
                    self.look()
            except StoppedError:
                process.send_signal(signal.SIGINT)  # it writes a checkpoint
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_S)
                try:
                    self._bring()
                except StoreError as error:  # the job goes back to the queue all the same
                    sys.stderr.write(f"error: the newest checkpoint of a training is not in the store: {error}\n")
                raise
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # of its own session: those that it started go with it
                process.wait()
        self.look()
        printed = _document(out)
        if process.returncode == 0 and printed:
            return printed
        hidden = {str(locate_model(model)): Path(model).name, str(scratch): "(scratch)", str(self.folder): "(run)"}
        raise failure(process.returncode, printed, log, {**hidden, self.store.url("").rstrip("/"): "(store)"})

    def look(self) -> None:
        """Tell the job's progress, and bring checkpoints and figures to where the service finds them."""
        config = self.folder / CONFIG
        if not config.exists():
            return
        if not self.is_staged:
            self.is_staged = True
            self.control.stage("training", int(_document(config)["resolved"]["steps"]), "steps")
        if self._bring():
            self.control.advance(self.n_lines)

    def _bring(self) -> bool:
        """Bring figures and checkpoints to the store; returns whether steps were finished since the last time."""
        found = self._markers()  # each time: a checkpoint is whole a while after its step is reported
        config, metrics = self.folder / CONFIG, self.folder / METRICS
        n_lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        is_new, self.n_lines = n_lines != self.n_lines, n_lines
        if is_new and self._is_remote:  # before checkpoints of these steps
            for path in (config, metrics):
                self.store.write_bytes(f"{self.request['run']}/{path.name}", path.read_bytes())
        if found.keys() != self.brought:
            self._bring_checkpoints(found)
        return is_new

    def _bring_checkpoints(self, found: Mapping[str, Path]) -> None:
        """Copy the checkpoints with these markers that are new, and remove those that the run keeps no longer."""
        for snapshot, marker in found.items():
            with contextlib.suppress(FileNotFoundError):  # removed in this moment
                self._put_whole(marker, f"{self.request['models']}/{snapshot}", is_state)
        self._drop(self._stored() - found.keys())
        if self._is_remote and found:
            self._keep_state(max(found.values(), key=_step_of))
        self.brought = set(found)

    def _keep_state(self, marker: Path) -> None:
        """Keep a checkpoint in the bucket with all that it takes to go on from it, and none of earlier steps, whole or
        not."""
        folder, step = f"{self.request['run']}/{CHECKPOINTS}", _step_of(marker)
        with contextlib.suppress(FileNotFoundError):
            self._put_whole(marker, f"{folder}/{marker.parent.name}", lambda _: False)
            for earlier in self._stored_steps():
                if earlier < step:
                    self.store.delete(f"{folder}/{_CHECKPOINT}{earlier}/{MARKER}")
                    self.store.delete(f"{folder}/{_CHECKPOINT}{earlier}")

    def _kept_steps(self) -> list[int]:
        """The steps of whole checkpoints in the run's folder in the store, in order."""
        folder = f"{self.request['run']}/{CHECKPOINTS}"
        return [step for step in self._stored_steps() if self.store.exists(f"{folder}/{_CHECKPOINT}{step}/{MARKER}")]

    def _stored_steps(self) -> list[int]:
        """The steps of checkpoints there, whole or not, in order."""
        names = self.store.list(f"{self.request['run']}/{CHECKPOINTS}", f"{_CHECKPOINT}*")
        return sorted(int(name.removeprefix(_CHECKPOINT)) for name in names)

    @property
    def _is_remote(self) -> bool:
        return self.store.local_path("") is None

    def _markers(self) -> dict[str, Path]:
        """The markers of the run's whole checkpoints, by the names that they have among the models."""
        markers = (self.folder / CHECKPOINTS).glob(f"{_CHECKPOINT}*/{MARKER}")
        return {checkpoint_id(self.request["model_id"], _step_of(marker)): marker for marker in markers}

    def _stored(self) -> set[str]:
        """Names of the model's checkpoints in the store, whole or not."""
        return set(self.store.list(self.request["models"], checkpoint_id(self.request["model_id"], "*")))

    def _drop(self, snapshots: set[str]) -> None:
        folder = self.request["models"]
        for snapshot in snapshots:
            self.store.delete(f"{folder}/{snapshot}/{MARKER}")
            self.store.delete(f"{folder}/{snapshot}")

    def validation(self, scratch: Path, model: TrainedModel) -> dict[str, Any]:
        """The loss on the job's validation rows, in nats per response token, or why there is none."""
        rows = scratch / "validation.jsonl"
        self._fetch(self.request["validation"], rows)
        full = bool(model.options.get("full"))
        options = {name: value for name, value in model.options.items() if name in _MEASURED}
        options |= {"data": str(rows), "model": str(self.folder / "model") if full else model.model}
        options |= {} if full else {"adapter": str(self.folder / "adapter")}
        try:
            found = self.finished("trainer.evaluate.nll", options, scratch, model.model)
        except TrainingFailedError as error:
            return {"validation_error": error.message}
        return {"validation_loss": found["mean_nll_base" if full else "mean_nll_adapter"]}

    def keep(self, part: Path) -> None:
        """Put what was trained under the model's id."""
        self._put(part, f"{self.request['models']}/{self.request['model_id']}", is_state)

    def _put_whole(self, marker: Path, target: str, leave_out: Callable[[str], bool]) -> None:
        """Copy a checkpoint's folder to the store, unless it is there: its marker last."""
        if not self.store.exists(f"{target}/{MARKER}"):
            self._put(marker.parent, target, leave_out)
            self.store.write_bytes(f"{target}/{MARKER}", marker.read_bytes())

    def _put(self, source: Path, target: str, leave_out: Callable[[str], bool]) -> None:
        """Copy a folder's files to the store, but for markers and those whose names are to be left out."""
        for item in sorted(source.iterdir()):
            if item.is_file() and item.name != MARKER and not leave_out(item.name):
                self.store.put_file(f"{target}/{item.name}", item)

    def _fetch(self, path: str, target: Path) -> None:
        """Copy a file of the store to this machine."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.store.open_file(path) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)


def is_state(name: str) -> bool:
    """Whether a file of a checkpoint serves only to go on with the training from it."""
    return name in _STATE or name.startswith(_STATES)


def _step_of(marker: Path) -> int:
    return int(marker.parent.name.removeprefix(_CHECKPOINT))


def checkpoint_id(model_id: str, step: int | str) -> str:
    """The name of a checkpoint, and of its folder among the models; for a `step` of "*" the pattern of all."""
    return f"{model_id}:ckpt-step-{step}"


def step_lines(store: Store, run: str, last_bytes: int | None = None) -> Iterator[dict[str, Any]]:
    """The steps that a run has finished so far, from its folder in the store; those in the last bytes of the file."""
    path = f"{run}/{METRICS}"
    if store.exists(path):
        n_read = None if last_bytes is None else last_bytes + 1
        data = store.read_bytes(path, n_read)
        lines = data.splitlines(keepends=True)
        for line in lines[1:] if len(data) == n_read else lines:  # the first one is cut, or the end of the one before
            if line.endswith(b"\n"):
                yield orjson.loads(line)


def _runs(process: "subprocess.Popen[bytes]") -> bool:
    """Whether a process still runs in a while."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LOOK_S)
    return process.returncode is None


def _start(module: str, words: Sequence[object], stdout: IO[bytes], stderr: IO[bytes]) -> "subprocess.Popen[bytes]":
    worker, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def end_with_worker() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a worker in a shell's background inherits that it is ignored
        if os.getppid() != worker:  # it died before
            os._exit(1)

    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,  # Ctrl-C on the worker ends it when the worker says so
        preexec_fn=end_with_worker,
    )


def _document(path: Path) -> dict[str, Any]:
    try:
        document = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def failure(code: int, printed: Mapping[str, Any], log: Path, hidden: Mapping[str, str]) -> TrainingFailedError:
    """Why a process failed, without the worker's own paths: `hidden` has the word for each."""
    if "error" in printed:
        text = str(printed["error"]["message"])
    else:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if "error: " in line]
        text = errors[-1].partition("error: ")[2] if errors else f"training ended with exit code {code}"
        sys.stderr.write(f"error: a training ended with exit code {code}\n")
    for path in sorted(hidden, key=len, reverse=True):  # the store's after those within it
        text = text.replace(path, hidden[path])
    return TrainingFailedError(text)
