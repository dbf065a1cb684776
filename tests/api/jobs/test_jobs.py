"""Jobs without HTTP: the board, the queue, and the outcome of a job when its worker stops, fails or dies."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from api.__main__ import main
from api.jobs.board import ACTIVE_FOLDER, GRACE_S, Board
from api.jobs.control import Control
from api.jobs.queue import JobQueue, open_queue
from api.jobs.record import MAX_EVENTS, new_job, now
from api.jobs.worker import MAX_ATTEMPTS, Worker
from curator.errors import BadInputError, MissingError, StoreError
from curator.store.store import Store
from tests import queue_servers

Result = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


@pytest.fixture
def queue(store: Store) -> Iterator[JobQueue]:
    found = open_queue(store, None)
    yield found
    found.close()


def worker_with(store: Store, queue: JobQueue, work: Callable[[Store, Path, Control], Result]) -> Worker:
    return Worker(store, queue, {"mix": work})


def put(store: Store, queue: JobQueue, tmp_path: Path, tenant: str = "anna") -> str:
    rows = tmp_path / "rows"
    rows.write_bytes(b"user data")
    job = Board(store).create(tenant, "mix", {"a": 1}, rows)
    queue.put("mix", tenant, job.job_id)
    return job.job_id


def test_a_job_is_done_and_its_data_removed(store: Store, queue: JobQueue, tmp_path: Path) -> None:
    seen: list[bytes] = []

    def work(at: Store, rows: Path, control: Control) -> Result:
        seen.append(rows.read_bytes())
        control.stage("building", 10, "rows")
        assert Board(at).read("anna", job_id).progress == control.job.progress
        return {"mix_id": "m"}

    job_id = put(store, queue, tmp_path)
    worker_with(store, queue, work).run(until_idle=True)
    job = Board(store).read("anna", job_id)
    assert (job.state, job.result, job.n_attempts, job.progress) == ("done", {"mix_id": "m"}, 1, None)
    assert [event.kind for event in job.events] == ["queued", "started", "stage", "done"]
    assert [event.number for event in job.events] == [1, 2, 3, 4]
    assert seen == [b"user data"]
    assert set(store.list(f"jobs/anna/{job_id}")) == {"job.json"}
    assert store.list(ACTIVE_FOLDER) == []


def test_a_lost_message_and_a_foreign_one_harm_nothing(store: Store, queue: JobQueue, tmp_path: Path) -> None:
    job_id = put(store, queue, tmp_path)
    assert queue.take("mix") == ("anna", job_id)
    for message in (("anna", "0" * 32), ("../../etc", job_id), ("anna", "..")):
        queue.put("mix", *message)
    worker_with(store, queue, lambda *_: {}).run(until_idle=True)
    assert Board(store).read("anna", job_id).state == "done"


@pytest.mark.parametrize(
    ("error", "code", "reported"),
    [(BadInputError("no such thing"), "bad_input", "no such thing"), (KeyError("SECRET"), "internal", "job's id")],
)
def test_a_failure_is_told_by_its_code(
    store: Store, queue: JobQueue, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    error: Exception, code: str, reported: str,
) -> None:  # fmt: skip
    def work(*_: object) -> Result:
        raise error

    job_id = put(store, queue, tmp_path)
    worker_with(store, queue, work).run(until_idle=True)
    job = Board(store).read("anna", job_id)
    assert job.error is not None
    assert (job.state, job.error.code) == ("failed", code)
    assert reported in job.error.message
    assert "SECRET" not in job.model_dump_json() + capsys.readouterr().err


def test_a_store_that_fails_is_tried_again_until_the_last_attempt(
    store: Store, queue: JobQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> Result:
        raise StoreError("no space left on /secret/place")

    monkeypatch.setattr("api.jobs.worker.PAUSE_S", 0.0)
    job_id = put(store, queue, tmp_path)
    worker_with(store, queue, work).run(until_idle=True)
    job = Board(store).read("anna", job_id)
    assert (job.state, job.n_attempts) == ("failed", MAX_ATTEMPTS)
    assert "secret" not in job.model_dump_json()


def test_a_job_whose_worker_died_begins_again_and_not_for_ever(store: Store, queue: JobQueue, tmp_path: Path) -> None:
    board, job_id = Board(store), put(store, queue, tmp_path)
    abandoned = board.read("anna", job_id).model_copy(update={"state": "running", "n_attempts": 1})
    board.write(abandoned)
    queue.take("mix")
    worker_with(store, queue, lambda *_: {}).run(until_idle=True)
    job = board.read("anna", job_id)
    assert (job.state, job.n_attempts) == ("done", 2)
    assert "retried" in [event.kind for event in job.events]
    last_id = put(store, queue, tmp_path)
    board.write(board.read("anna", last_id).model_copy(update={"state": "running", "n_attempts": MAX_ATTEMPTS}))
    worker_with(store, queue, lambda *_: {}).run(until_idle=True)
    error = board.read("anna", last_id).error
    assert error is not None
    assert error.code == "worker_died"


def test_a_held_job_is_left_to_its_worker(store: Store, queue: JobQueue, tmp_path: Path) -> None:
    board, job_id = Board(store), put(store, queue, tmp_path)
    other = worker_with(store, queue, lambda *_: {})
    with board.held("anna", job_id) as job:
        assert job is not None
        assert not other.do("anna", job_id)
        assert board.ask_to_cancel("anna", job_id).state == "queued", "its worker has the word"
    assert other.do("anna", job_id)
    assert board.read("anna", job_id).state == "cancelled"


def test_cancel_while_it_waits_and_while_it_runs(store: Store, queue: JobQueue, tmp_path: Path) -> None:
    board = Board(store)
    waiting = put(store, queue, tmp_path)
    assert board.ask_to_cancel("anna", waiting).state == "cancelled"
    assert store.list(ACTIVE_FOLDER) == []
    running = put(store, queue, tmp_path)

    def work(at: Store, rows: Path, control: Control) -> Result:
        assert board.ask_to_cancel("anna", running).state == "running"
        control.stage("building", None, "rows")
        raise AssertionError("it went on")

    worker_with(store, queue, work).run(until_idle=True)
    assert board.read("anna", running).state == "cancelled"
    assert board.ask_to_cancel("anna", running).state == "cancelled", "asking again changes nothing"
    with pytest.raises(MissingError, match="there is no job"):
        board.ask_to_cancel("bert", running)


def test_a_worker_that_is_told_to_stop_hands_its_job_back(store: Store, queue: JobQueue, tmp_path: Path) -> None:
    job_id = put(store, queue, tmp_path)

    def work(at: Store, rows: Path, control: Control) -> Result:
        worker.stopping = True
        control.stage("building", 1, "rows")
        raise AssertionError("it went on")

    worker = worker_with(store, queue, work)
    worker.run()
    job = Board(store).read("anna", job_id)
    assert (job.state, job.n_attempts) == ("queued", 0)
    worker_with(store, queue, lambda *_: {"a": 1}).run(until_idle=True)
    assert Board(store).read("anna", job_id).state == "done"


def test_old_jobs_are_swept_and_active_ones_stay(store: Store, queue: JobQueue, tmp_path: Path) -> None:
    board = Board(store)
    done, waiting = put(store, queue, tmp_path), put(store, queue, tmp_path, "bert")
    worker_with(store, queue, lambda *_: {}).do("anna", done)
    assert board.sweep(3600.0) == 0
    assert board.sweep(0.0) == 1
    assert (list(board.ids("anna")), list(board.ids("bert"))) == ([], [waiting])
    assert board.active(tenant="bert") == [("bert", waiting)]


def test_what_a_worker_left_at_a_jobs_end_is_swept(store: Store, queue: JobQueue, tmp_path: Path) -> None:
    board, job_id = Board(store), put(store, queue, tmp_path)
    board.write(board.read("anna", job_id).ended("done", "done"))  # killed before it removed the user's data
    assert store.exists(f"jobs/anna/{job_id}/input.parquet")
    board.sweep(3600.0)
    assert store.list(f"jobs/anna/{job_id}") == ["job.json"]
    assert store.list(ACTIVE_FOLDER) == []


def grow_old(store: Store, *paths: str) -> None:
    then = time.time() - GRACE_S - 60
    for root in (Path(store.url(path)) for path in paths):
        for path in (*root.rglob("*"), root):
            os.utime(path, (then, then))


def test_what_a_kill_left_of_a_new_or_removed_job_is_swept(store: Store, queue: JobQueue, tmp_path: Path) -> None:
    board = Board(store)
    unmade, removed, young, unreadable = (put(store, queue, tmp_path) for _ in range(4))
    store.delete(f"jobs/anna/{unmade}/job.json")  # killed in `create`: mark and rows are there
    store.delete(f"jobs/anna/{young}/job.json")
    board.end(board.read("anna", removed).ended("done", "done"))
    store.write_bytes(f"jobs/anna/{removed}/rows.parquet", b"what an audit found")
    store.delete(f"jobs/anna/{removed}/job.json")  # killed in `remove`
    store.write_bytes(f"jobs/anna/{unreadable}/job.json", b"{")
    store.write_bytes(f"{ACTIVE_FOLDER}/anna~mix~{'0' * 32}", b"")  # killed before the rows
    store.write_bytes(f"{ACTIVE_FOLDER}/not~ours", b"")
    store.write_bytes("jobs/No tenant/file", b"")
    old = (unmade, removed, unreadable)
    marks = [f"{ACTIVE_FOLDER}/anna~mix~{name}" for name in (unmade, unreadable, "0" * 32)]
    grow_old(store, *(f"jobs/anna/{name}" for name in old), *marks)
    assert board.sweep(None) == 3
    assert store.list("jobs/anna") == [young]
    assert board.active() == [("anna", young)], "it may be in the making"
    worker_with(store, queue, lambda *_: {}).run(until_idle=True)  # ends: a mark alone is no waiting job


def test_a_damaged_record_ends_as_failed_and_holds_up_no_other(
    store: Store, queue: JobQueue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, sound = put(store, queue, tmp_path), put(store, queue, tmp_path)
    for _ in range(2):
        queue.take("mix")
    store.write_bytes(f"jobs/anna/{damaged}/job.json", b'{"job_id": ')
    worker_with(store, queue, lambda *_: {}).run(until_idle=True)
    assert Board(store).read("anna", sound).state == "done"
    job = Board(store).read("anna", damaged)
    assert (job.state, job.error and job.error.code) == ("failed", "internal")
    assert abs(job.created_at.timestamp() - Board(store).read("anna", sound).created_at.timestamp()) < 60
    assert store.list(f"jobs/anna/{damaged}") == ["job.json"], "the user's rows went"
    assert "IntegrityError" in capsys.readouterr().err


def test_a_lock_that_cannot_be_taken_is_no_other_process(store: Store, queue: JobQueue, tmp_path: Path) -> None:
    first, second = put(store, queue, tmp_path), put(store, queue, tmp_path)
    for _ in range(2):
        queue.take("mix")
    Path(store.url(f"jobs/anna/{first}/.lock")).mkdir()  # a file that cannot be opened for writing
    with pytest.raises(StoreError, match="cannot write"), Board(store).held("anna", first):
        pass
    worker = worker_with(store, queue, lambda *_: {})
    assert worker.step()
    with pytest.raises(StoreError, match="cannot write"):
        worker.step()
    assert Board(store).read("anna", second).state == "done", "the others had their turn"


def test_a_worker_without_a_model_tells_of_the_audits_that_wait(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        Board(store).create("anna", "audit", {})
    assert main(["worker", "--store", store.base, "--until-idle"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("2 audits wait for a worker with --model") == 2, "at the start and at the end"


def test_events_are_bounded() -> None:
    job = new_job("anna", "mix", {})
    for number in range(MAX_EVENTS + 50):
        job = job.with_event("stage", str(number))
    assert len(job.events) == MAX_EVENTS
    assert job.events[-1].number == MAX_EVENTS + 51


def test_ids_sort_by_time() -> None:
    first = new_job("anna", "mix", {}).job_id
    time.sleep(0.002)
    assert first < new_job("anna", "mix", {}).job_id


def test_a_store_in_a_bucket_keeps_jobs_as_well(tmp_path: Path) -> None:
    """The lock is then a lease, and the rows are fetched for the length of the work."""
    store = Store("memory://jobs-in-a-bucket").open()
    queue = open_queue(store, str(tmp_path / "queue.sqlite"))
    seen: list[bytes] = []

    def work(at: Store, rows: Path, control: Control) -> Result:
        seen.append(rows.read_bytes())
        assert not other.do("anna", job_id), "another worker finds it held"
        return {}

    other = worker_with(store, queue, lambda *_: {})
    job_id = put(store, queue, tmp_path)
    worker_with(store, queue, work).run(until_idle=True)
    assert seen == [b"user data"]
    assert Board(store).read("anna", job_id).state == "done"
    assert store.list(f"jobs/anna/{job_id}") == ["job.json"]
    Board(store).sweep(0.0)
    assert store.list("jobs/anna") == []
    queue.close()


def test_addresses_of_queues(store: Store) -> None:
    with pytest.raises(BadInputError, match=r"mysql:// is neither"):
        open_queue(store, "mysql://host")
    with pytest.raises(BadInputError, match="no job queue of its own"):
        open_queue(Store("memory://bucket"), None)
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        open_queue(store, "redis://:PASSWORD@127.0.0.1:1/0").put("mix", "anna", "0" * 32)
    assert "PASSWORD" not in str(caught.value)


@pytest.mark.parametrize("server", [queue_servers.redis, queue_servers.postgresql])
def test_a_server_holds_the_queue_as_well(
    store: Store, tmp_path: Path, server: Callable[[], AbstractContextManager[str]]
) -> None:
    with server() as url:
        queue = open_queue(store, url)
        first, second = put(store, queue, tmp_path), put(store, queue, tmp_path)
        assert [queue.take("mix"), queue.take("audit"), queue.take("mix")] == [("anna", first), None, ("anna", second)]
        worker_with(store, queue, lambda *_: {}).run(until_idle=True)
        assert [Board(store).read("anna", job_id).state for job_id in (first, second)] == ["done", "done"]
        queue.close()


def test_tenants_jobs_are_done_in_turn(store: Store, queue: JobQueue, tmp_path: Path) -> None:
    tenants = ["anna", "anna", "anna", "bert", "carl", "bert"]
    for tenant in tenants:
        put(store, queue, tmp_path, tenant)
    done: list[str] = []

    def work(_store: Store, _rows: Path, control: Control) -> Result:
        done.append(control.job.tenant)
        return {}

    worker_with(store, queue, work).run(until_idle=True)
    assert sorted(done) == sorted(tenants)
    assert done == ["anna", "bert", "carl", "anna", "bert", "anna"]
    assert queue.take("mix") is None


def test_a_jobs_start_is_when_a_worker_began_and_not_when_it_was_queued(
    store: Store, queue: JobQueue, tmp_path: Path
) -> None:
    job_id = put(store, queue, tmp_path)
    begun = now()
    worker_with(store, queue, lambda *_: {}).run(until_idle=True)
    job = Board(store).read("anna", job_id)
    assert job.started_at is not None
    assert job.created_at < begun <= job.started_at <= next(event.at for event in job.events if event.kind == "started")
