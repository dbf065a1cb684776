"""`python -m api worker`: do the jobs of a store's tenants."""

import argparse
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import orjson

from api.jobs.queue import open_queue
from api.jobs.record import JobKind
from api.jobs.worker import Handler, Worker
from curator.audit.models import audit_models
from curator.cli import add_common_options, open_store
from curator.console import CommandParser, say
from curator.errors import BadInputError, MissingDependencyError
from curator.render.model_source import MODEL_FORMS, model_option

PARENT_S = 0.5  # between two looks whether the parent lives
DESCRIPTION = """\
Takes jobs that `python -m api` queues for a store: mixes of data sets that are too large to build while a caller
waits, with --model audits and losses of single tokens, and with --train trainings. One job at a time; run several
workers for more, on any machine that reaches the store and the queue. A worker that is killed loses nothing: the next
one takes its job up again. Ctrl-C and SIGTERM hand a running job back."""

EXAMPLES = """\
  python -m api worker --store ./store
  python -m api worker --store ./store --model models/instruct --adapter runs/finance/adapter \\
      --adapter runs/legal/adapter                       (audits too: the models that scored the corpus)
  python -m api worker --store ./store --train models.yaml           (trainings too: docs/openai.md)
  python -m api worker --store s3://bucket/ballast --job-queue redis://queue:6379/0
  python -m api worker --store ./store --until-idle  (ends when nothing is left to do)"""


def run_worker(argv: Sequence[str], mixes: Handler, warm: Callable[[], None]) -> int:
    """Work until a signal, `mixes` on queued mixes, which `warm` prepares; returns the exit code."""
    return _run(_parser().parse_args(argv), mixes, warm)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m api worker",
        description=DESCRIPTION,
        epilog=f"examples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_options(parser)
    add = parser.add_argument
    add("--job-queue", metavar="ADDRESS", default=os.environ.get("BALLAST_JOB_QUEUE"),
        help="the service's setting job_queue (default: $BALLAST_JOB_QUEUE, then the store's own)")  # fmt: skip
    add("--model", metavar="MODEL", type=model_option,
        help=f"model of the corpus's aligned scorer, {MODEL_FORMS}; without it no audits and token losses")  # fmt: skip
    add("--adapter", metavar="ADAPTER", type=model_option, action="append", default=[],
        help=f"LoRA adapter of one of its misaligned or benign scorers, repeatable: {MODEL_FORMS}")  # fmt: skip
    add("--train", metavar="FILE", help="models that fine-tuning jobs may name, as the service's setting openai_models")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: CUDA where there is any)")
    add("--batch-tokens", type=int, metavar="T", help="tokens in one forward pass, padding included")
    add("--threads", type=int, metavar="N", help="CPU threads (default: measured, one on cores that others use)")
    add("--metrics-port", type=int, metavar="PORT",
        help="offer /metrics (Prometheus) and /healthz there; 0 takes a free port (default: none)")  # fmt: skip
    add("--metrics-host", default="127.0.0.1", metavar="HOST", help="address of --metrics-port (default: 127.0.0.1)")
    add(
        "--parent", metavar="PID", type=int, help=argparse.SUPPRESS
    )  # of the service, with which it ends, and that reads which jobs have ended
    add("--linger", metavar="S", type=float, help=argparse.SUPPRESS)  # ends after so many seconds without work
    add("--until-idle", action="store_true", help="end when no job waits or runs any more")
    return parser


def _run(args: argparse.Namespace, mixes: Handler, warm: Callable[[], None]) -> int:
    store = open_store(args)
    queue = open_queue(store, args.job_queue)
    worker = Worker(store, queue, _handlers(args, mixes))
    os.environ.setdefault("BALLAST_PROGRESS", "0")  # jobs tell their progress themselves

    def stop(number: int, frame: object) -> None:
        worker.stopping = True

    if args.parent is not None:
        worker.on_end = lambda job: say(orjson.dumps({"tenant": job.tenant, "job_id": job.job_id}).decode())
        threading.Thread(target=_stop_without, args=(args.parent, worker), daemon=True).start()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        say(f"working on {' and '.join(worker.handlers)} jobs of {args.store} (Ctrl-C stops)")
        _say_what_waits(worker)
        if not args.until_idle:  # there may be nothing to do
            warm()
        with _offered(args, worker):
            worker.run(until_idle=args.until_idle, linger_s=args.linger)
        if args.until_idle:
            _say_what_waits(worker)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        queue.close()
        worker.usage.close()
    say(f"stopped after {worker.n_done} jobs")
    return 0


@contextmanager
def _offered(args: argparse.Namespace, worker: Worker) -> Iterator[None]:
    """Metrics and health at the port that was given, if one was."""
    if args.metrics_port is None:
        yield
        return
    try:
        from api.jobs.metrics import WorkerMetrics, offered
    except ImportError as error:
        raise MissingDependencyError(f"{error.name} is absent: pip install 'ballast-mix[api]'") from error
    worker.metrics = WorkerMetrics(worker.board)
    with offered(worker.metrics, args.metrics_host, args.metrics_port, lambda: worker.stopping) as url:
        say(f"metrics and health at {url}")
        yield


def _stop_without(parent: int, worker: Worker) -> None:
    """Stop the worker once its parent has ended."""
    while os.getppid() == parent:
        time.sleep(PARENT_S)
    worker.stopping = True


def _say_what_waits(worker: Worker) -> None:
    """Report the jobs that wait for a worker that can do them."""
    others: tuple[tuple[JobKind, str, str], ...] = (
        ("audit", "audit", "--model"),
        ("tokens", "token-loss job", "--model"),
        ("train", "training", "--train"),
    )
    for kind, name, option in others:
        n_waiting = worker.n_left_to_others(kind)
        if n_waiting:
            say(f"{n_waiting} {name}{'s wait' if n_waiting > 1 else ' waits'} for a worker with {option}")


def _handlers(args: argparse.Namespace, mixes: Handler) -> dict[JobKind, Handler]:
    handlers: dict[JobKind, Handler] = {"mix": mixes}
    if args.train is not None:
        from api.jobs.models import read_models
        from api.jobs.training import TrainHandler

        trainings = TrainHandler(read_models(args.train))
        trainings.check()
        handlers["train"] = trainings
    if args.model is None:
        if args.adapter:
            raise BadInputError("--adapter needs --model: the base model that the adapters belong to")
        return handlers
    from api.jobs.handlers import AuditHandler, TokensHandler

    models = audit_models(args.model, args.adapter, args.device, args.batch_tokens, args.threads)
    return {**handlers, "audit": AuditHandler(models), "tokens": TokensHandler(models)}
