"""Fine-tuning jobs of the mode `mix`, over the wire."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from api.app import create_app
from api.jobs.board import Board
from api.jobs.record import JobError
from api.openai.records import Records
from api.settings import Settings
from api.tenancy.keys import create_key
from curator.store.store import Store
from tests.api.audited import end_audit
from tests.api.openai_api.steps import ended, error_of, events_of, uploaded, work
from tests.api.serving import RECIPE, json_lines, running, scored_store, task_rows

ABSENT = "ftjob-" + "0" * 24
JOBS = "/fine_tuning/jobs"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openai")
    scored_store(path / "store")
    (path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    settings = Settings(store=str(root / "store"), openai_recipe=str(root / "recipe.yaml"), tenant_jobs=4)
    with running(settings) as address:
        yield f"{address}/v1"


def create(http: httpx.Client, file_id: str, repeat: int = 0, **more: Any) -> httpx.Response:
    body = {"model": "my-model", "training_file": file_id, **more}
    return http.post(JOBS, json=body, headers={"x-stainless-retry-count": str(repeat)})


def test_a_job_succeeds_with_the_mix_its_manifest_and_its_rows(http: httpx.Client, root: Path) -> None:
    file_id = uploaded(http, "whole")
    asked = {"suffix": "kind", "seed": 7, "hyperparameters": {"n_epochs": 3}, "metadata": {"team": "red"}}
    made = create(http, file_id, **asked).json()
    assert (made["object"], made["status"], made["organization_id"]) == ("fine_tuning.job", "queued", "org-local")
    assert (made["result_files"], made["seed"], made["metadata"]) == ([], 7, {"team": "red"})
    assert made["hyperparameters"] == {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": "auto"}
    work(root / "store")
    job = ended(http, made["id"])
    assert (job["status"], job["error"], job["fine_tuned_model"]) == ("succeeded", None, None)
    assert job["finished_at"] >= job["created_at"]
    facts = job["metadata"]
    assert (facts["ballast_task_rows"], facts["ballast_safe_rows"], facts["ballast_ratio"]) == ("20", "2", "0.1")
    mix, manifest, rows = job["result_files"]
    shown = http.get(f"/files/{mix}").json()
    content = http.get(f"/files/{mix}/content").content
    assert (shown["purpose"], shown["bytes"]) == ("fine-tune-results", len(content))
    messages = [json.loads(line) for line in content.splitlines()]
    assert len(messages) == 22
    sent = {json.dumps(row["messages"]) for row in task_rows(20, "whole")}
    assert len([row for row in messages if json.dumps(row["messages"]) in sent]) == 20
    receipt = http.get(f"/files/{manifest}/content").json()
    assert receipt["mix_id"] == facts["ballast_mix_id"]
    origins = [json.loads(line)["origin"] for line in http.get(f"/files/{rows}/content").text.splitlines()]
    assert origins.count("safe") == 2
    assert http.get(f"/mixes/{facts['ballast_mix_id']}").status_code == 200, "the mix is one as any other"
    assert http.delete(f"/mixes/{facts['ballast_mix_id']}").status_code == 204
    assert error_of(http.get(f"/files/{mix}/content"), 404)["param"] == "id"


def test_events_tell_what_was_done_newest_first(http: httpx.Client, root: Path) -> None:
    rows = [*task_rows(20, "told"), *task_rows(2, "told")]
    files = {"file": ("train.jsonl", json_lines(rows))}
    file_id = http.post("/files", files=files, data={"purpose": "fine-tune"}).json()["id"]
    held_out = uploaded(http, "told", 12)
    job_id = create(http, file_id, validation_file=held_out, hyperparameters={"n_epochs": 2}).json()["id"]
    work(root / "store")
    job = ended(http, job_id)
    assert job["validation_file"] == held_out
    assert job["metadata"]["ballast_task_rows"] == "22", "validation rows are never mixed"
    events = http.get(f"{JOBS}/{job_id}/events", params={"limit": 100}).json()["data"]
    messages = [event["message"] for event in events[::-1]]
    assert messages[0] == f"Created fine-tuning job: {job_id}"
    assert messages[1] == f"Validating training file: {file_id} and validation file: {held_out}"
    assert messages[-1] == "The job has successfully completed"
    assert "Files validated, moving job to queued state" in messages
    assert "Fine-tuning job started" in messages
    warned = {event["data"]["code"]: event["data"].get("rows") for event in events if event["level"] == "warn"}
    assert warned.items() >= {"duplicate_rows": 2, "validation_overlap": 12, "hyperparameters_unused": None}.items()
    (mixed,) = [event["data"] for event in events if event["data"].get("code") == "mixed"]
    assert mixed["ballast_mix_id"] == job["metadata"]["ballast_mix_id"]
    page = http.get(f"{JOBS}/{job_id}/events", params={"limit": 2}).json()
    assert (page["data"], page["has_more"]) == (events[:2], True)
    following = http.get(f"{JOBS}/{job_id}/events", params={"limit": 2, "after": page["data"][-1]["id"]}).json()
    assert following["data"] == events[2:4]
    checkpoints = http.get(f"{JOBS}/{job_id}/checkpoints").json()
    assert (checkpoints["object"], checkpoints["data"], checkpoints["has_more"]) == ("list", [], False)


def test_a_repeated_create_finds_its_job(http: httpx.Client, root: Path) -> None:
    file_id = uploaded(http, "repeated")
    first = create(http, file_id).json()
    assert create(http, file_id, repeat=1).json()["id"] == first["id"]
    assert create(http, file_id, hyperparameters={}, method={"type": "supervised"}).json()["id"] == first["id"]
    work(root / "store")
    assert create(http, file_id).json()["status"] == "succeeded"
    other = create(http, file_id, suffix="another").json()
    assert other["id"] != first["id"]
    cancelled = http.post(f"{JOBS}/{other['id']}/cancel").json()
    assert cancelled["status"] == "cancelled"
    assert create(http, file_id, repeat=2, suffix="another").json()["id"] == other["id"]
    anew = create(http, file_id, suffix="another").json()
    assert (anew["id"] != other["id"], anew["status"]) == (True, "queued"), "asked for on purpose it is made again"
    work(root / "store")


def test_a_create_that_was_cut_off_is_made_whole_by_the_next(http: httpx.Client, root: Path) -> None:
    file_id = uploaded(http, "cut")
    made = create(http, file_id).json()
    records, store = Records(Store(root / "store")), Store(root / "store")
    record = records.read("local", made["id"])
    store.delete(f"jobs/local/{record.work_id}")  # as after a kill before the mixing job's record
    store.delete(f"jobs-active/local~mix~{record.work_id}")
    again = create(http, file_id, repeat=1).json()
    assert (again["id"], again["status"]) == (made["id"], "queued")
    assert records.read("local", made["id"]).work_id != record.work_id
    work(root / "store")
    assert ended(http, made["id"])["status"] == "succeeded"


def test_cancel(http: httpx.Client, root: Path) -> None:
    job_id = create(http, uploaded(http, "cancelled")).json()["id"]
    job = http.post(f"{JOBS}/{job_id}/cancel").json()
    assert (job["status"], job["result_files"]) == ("cancelled", [])
    assert http.post(f"{JOBS}/{job_id}/cancel").json() == job, "a repeated cancel is answered alike"
    work(root / "store")
    assert http.get(f"{JOBS}/{job_id}").json() == job
    done = create(http, uploaded(http, "uncancelled")).json()["id"]
    work(root / "store")
    answer = http.post(f"{JOBS}/{done}/cancel")
    assert error_of(answer, 400)["code"] == "invalid_state"
    assert answer.headers["x-should-retry"] == "false"


def _statuses(http: httpx.Client, of: str) -> set[str]:
    return {job["status"] for job in http.get(JOBS, params={"metadata[of]": of}).json()["data"]}


def test_lists_are_newest_first_and_fit_the_metadata(http: httpx.Client, root: Path) -> None:
    made = [create(http, uploaded(http, "listed"), metadata={"n": str(n), "of": "list"}).json()["id"] for n in range(3)]
    first = http.get(JOBS, params={"limit": 2, "metadata[of]": "list"}).json()
    assert ([job["id"] for job in first["data"]], first["has_more"]) == (made[:0:-1], True)
    rest = http.get(JOBS, params={"after": first["data"][-1]["id"], "metadata[of]": "list"}).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (made[:1], False)
    assert [job["id"] for job in http.get(JOBS, params={"metadata[n]": "1"}).json()["data"]] == [made[1]]
    work(root / "store")
    deadline_s = time.monotonic() + 60  # the service may be bringing one up to date, and shows it as it was until then
    while (found := _statuses(http, "list")) != {"succeeded"} and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert found == {"succeeded"}
    bare = http.get(JOBS, params={"metadata": "null", "limit": 100}).json()["data"]
    assert not {job["id"] for job in bare} & set(made)


def test_pause_and_resume_are_refused(http: httpx.Client, root: Path) -> None:
    job_id = create(http, uploaded(http, "paused")).json()["id"]
    for verb in ("pause", "resume"):
        answer = http.post(f"{JOBS}/{job_id}/{verb}")
        assert error_of(answer, 400)["code"] == "pause_not_supported"
        assert answer.headers["x-should-retry"] == "false"
        assert error_of(http.post(f"{JOBS}/{ABSENT}/{verb}"), 404)["code"] == "fine_tune_not_found"
    work(root / "store")


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"training_file": "file-" + "0" * 24}, "invalid_training_file", "training_file"),
        ({"validation_file": "nothing"}, "invalid_validation_file", "validation_file"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}}, "unsupported_method", "method.type"),
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, "unsupported_method", "method.type"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "unsupported_integration", "integrations"),
        ({"hyperparameters": {"n_epochs": 0}}, "invalid_value", "hyperparameters.n_epochs"),
        ({"n_epochs": 3}, "invalid_value", "n_epochs"),
        ({"metadata": {"ballast_mix_id": "x"}}, "invalid_value", "metadata.ballast_mix_id"),
        ({"metadata": {"ballast_recipe": "{"}}, "invalid_recipe", "metadata.ballast_recipe"),
        ({"ballast": {"recipe": {"x": 1}}}, "bad_recipe", "ballast.recipe"),
        ({"ballast": {"recipe": {"interleave_ratio": 0.05}}}, "policy_refused", "ballast.recipe"),
    ],
)
def test_refusals_are_final_and_name_the_parameter(
    http: httpx.Client, more: dict[str, Any], code: str, param: str
) -> None:
    body = {"model": "m", "training_file": uploaded(http, "refused"), **more}
    answer = http.post(JOBS, json=body)
    error = error_of(answer, 400)
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert str(error["param"]).startswith(param)
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("asked", "n_safe"),
    [
        ({"interleave_ratio": 0.2}, 4),
        ({"rows": 5}, 5),
        ({"seed": 3}, 2),
        ({"filters": [{"name": "refusal", "rule": "v2"}]}, 2),
    ],
)
def test_callers_tighten_the_recipe(http: httpx.Client, root: Path, asked: dict[str, Any], n_safe: int) -> None:
    file_id = uploaded(http, f"tight {sorted(asked)}")
    by_body = create(http, file_id, ballast={"recipe": asked}).json()["id"]
    by_metadata = create(http, file_id, metadata={"ballast_recipe": json.dumps(asked)}).json()["id"]
    work(root / "store")
    jobs = [ended(http, job_id) for job_id in (by_body, by_metadata)]
    assert [job["status"] for job in jobs] == ["succeeded", "succeeded"]
    assert {job["metadata"]["ballast_safe_rows"] for job in jobs} == {str(n_safe)}


def test_filters_of_the_recipe_stay_under_the_callers(http: httpx.Client, root: Path) -> None:
    asked = {"filters": [{"name": "refusal", "rule": "v2"}]}
    job_id = create(http, uploaded(http, "filters"), ballast={"recipe": asked}).json()["id"]
    work(root / "store")
    manifest = http.get(f"/mixes/{ended(http, job_id)['metadata']['ballast_mix_id']}").json()
    filters = manifest["recipe"]["pools"][0]["filters"]
    assert {"refusal", "hygiene"} <= {spec["name"] for spec in filters}
    assert [spec["rule"] for spec in filters if spec["name"] == "refusal"] == ["v2"]


@pytest.mark.parametrize(
    "asked",
    [
        {"interleave_ratio": 0.09},
        {"rows": 1},
        {"corpus": "other"},
        {"strategy": "random"},
        {"order": "shuffle"},
        {"score": "gap_abs"},
        {"hold_out": ["finance"]},
        {"misaligned": ["reckless"]},
        {"when_short": "as_many"},
        {"when_short": "cycle", "max_copies": 2},
        {"filters": [{"name": "length", "max_chars": 20}]},
        {"tokens": 100_000},
        {"epochs": 2},
        {"pools": [{"corpus": "chats", "interleave_ratio": 0.1}, {"corpus": "chats", "interleave_ratio": 0.1}]},
        {"inoculation": {"prompts": ["be bad"]}},
    ],
)
def test_callers_cannot_loosen_the_recipe(http: httpx.Client, asked: dict[str, Any]) -> None:
    error = error_of(create(http, uploaded(http, "loose"), ballast={"recipe": asked}), 400)
    assert error["code"] == "policy_refused"


def test_another_tenants_jobs_and_files_are_ones_that_do_not_exist(root: Path, tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    tokens = {name: create_key(store, name, ["mix"])[1] for name in ("anna", "bert")}
    with running(Settings(store=store.base, openai_recipe=str(root / "recipe.yaml"))) as url:
        anna, bert = (
            httpx.Client(base_url=f"{url}/v1", headers={"Authorization": f"Bearer {token}"}, timeout=60)
            for token in tokens.values()
        )
        file_id = uploaded(anna, "hers")
        job_id = create(anna, file_id).json()["id"]
        assert error_of(create(bert, file_id), 400)["code"] == "invalid_training_file"
        for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/events"), ("GET", "/checkpoints")):
            foreign = error_of(bert.request(method, f"{JOBS}/{job_id}{path}"), 404)
            absent = error_of(bert.request(method, f"{JOBS}/{ABSENT}{path}"), 404)
            assert foreign == {**absent, "message": f"Could not find fine tune: {job_id}"}
        assert bert.get(JOBS).json()["data"] == []
        anna.close()
        bert.close()


def test_the_share_of_jobs_and_the_mode_off_are_said(root: Path, tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    settings = Settings(store=store.base, openai_recipe=str(root / "recipe.yaml"), tenant_jobs=1)
    with running(settings) as url, httpx.Client(base_url=f"{url}/v1", timeout=60) as http:
        file_id = uploaded(http, "full")
        assert create(http, file_id).status_code == 200
        answer = create(http, file_id, suffix="two")
        assert error_of(answer, 429)["type"] == "rate_limit_error"
        assert "x-should-retry" not in answer.headers
        assert answer.headers["retry-after"]
        assert len(http.get(JOBS).json()["data"]) == 1, "what was refused leaves no job"
    with running(settings.model_copy(update={"openai_mode": "off"})) as url:
        body = {"model": "m", "training_file": file_id}
        assert error_of(httpx.post(f"{url}/v1{JOBS}", json=body), 403)["code"] == "fine_tuning_off"


def test_without_the_operators_recipe_one_must_be_sent(tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    with running(Settings(store=store.base)) as url, httpx.Client(base_url=f"{url}/v1", timeout=60) as http:
        file_id = uploaded(http, "bare")
        assert error_of(create(http, file_id), 400)["code"] == "no_recipe"
        job_id = create(http, file_id, ballast={"recipe": RECIPE}).json()["id"]
        work(tmp_path)
        assert ended(http, job_id)["status"] == "succeeded"


def test_a_job_that_cannot_be_done_says_why(tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    with running(Settings(store=store.base)) as url, httpx.Client(base_url=f"{url}/v1", timeout=60) as http:
        job_id = create(http, uploaded(http, "lost"), ballast={"recipe": {"corpus": "nowhere"}}).json()["id"]
        work(tmp_path)
        job = ended(http, job_id)
        assert (job["status"], job["error"]["code"]) == ("failed", "not_found")
        assert "nowhere" in job["error"]["message"]
        newest = http.get(f"{JOBS}/{job_id}/events").json()["data"][0]
        assert (newest["level"], "nowhere" in newest["message"]) == ("error", True)


def test_a_tenants_recipe_takes_the_place_of_the_services(root: Path, tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    (tmp_path / "acme.yaml").write_text(yaml.safe_dump({**RECIPE, "interleave_ratio": 0.5}))
    (tmp_path / "tenants.yaml").write_text("local: {recipe: acme.yaml}\n")
    settings = Settings(
        store=store.base, openai_recipe=str(root / "recipe.yaml"), tenants=str(tmp_path / "tenants.yaml")
    )
    with running(settings) as url, httpx.Client(base_url=f"{url}/v1", timeout=60) as http:
        job_id = create(http, uploaded(http, "own")).json()["id"]
        work(store.base)
        assert ended(http, job_id)["metadata"]["ballast_safe_rows"] == "10"


def test_an_audit_is_told_before_the_job_goes_on(root: Path, tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    settings = Settings(store=store.base, openai_recipe=str(root / "recipe.yaml"), openai_audit=True, max_audit_rows=25)
    with running(settings) as url, httpx.Client(base_url=f"{url}/v1", timeout=60) as http:
        job_id = create(http, uploaded(http, "audited")).json()["id"]
        audit_id = Records(store).read("local", job_id).audit_id
        work(tmp_path)
        assert http.get(f"{JOBS}/{job_id}").json()["status"] == "running", "it waits for the audit"
        end_audit(store, "local", audit_id)
        job = ended(http, job_id)
        facts = job["metadata"]
        assert (job["status"], facts["ballast_audit_verdict"]) == ("succeeded", "undecided")
        assert facts["ballast_audit_percentile"] == "0.500 [0.400, 0.600]"
        (event,) = [item for item in events_of(http, job_id) if item["data"].get("code") == "audited"]
        assert event["message"] == "Audit of the training rows: undecided; r"

        failing = create(http, uploaded(http, "unaudited")).json()["id"]
        board, audit_id = Board(store), Records(store).read("local", failing).audit_id
        error = JobError(code="not_found", message="no such scorer here")
        board.end(board.read("local", audit_id).ended("failed", "failed", error=error))
        work(tmp_path)
        assert ended(http, failing)["status"] == "succeeded", "an audit that cannot be done holds up nothing"
        assert "no such scorer here" in str(events_of(http, failing))

        long = create(http, uploaded(http, "long", 26)).json()["id"]
        work(tmp_path)
        assert ended(http, long)["status"] == "succeeded"
        assert "audit_skipped" in {event["data"].get("code") for event in events_of(http, long)}

        waiting = create(http, uploaded(http, "waiting")).json()["id"]
        work(tmp_path)
        assert http.get(f"{JOBS}/{waiting}").json()["status"] == "running"
        assert http.post(f"{JOBS}/{waiting}/cancel").json()["status"] == "cancelled"
        assert board.active() == []


def test_old_jobs_are_swept(root: Path, tmp_path: Path) -> None:
    store = scored_store(tmp_path)
    app = create_app(Settings(store=store.base, openai_recipe=str(root / "recipe.yaml")))
    with running(app) as url, httpx.Client(base_url=f"{url}/v1", timeout=60) as http:
        job_id = create(http, uploaded(http, "old")).json()["id"]
        work(tmp_path)
        results = ended(http, job_id)["result_files"]
        Records(store).sweep(ttl_s=3600, grace_s=3600)
        assert http.get(f"{JOBS}/{job_id}").status_code == 200
        Records(store).sweep(ttl_s=-1, grace_s=3600)
        assert error_of(http.get(f"{JOBS}/{job_id}"), 404)["code"] == "fine_tune_not_found"
        assert {http.get(f"/files/{file_id}").status_code for file_id in results} == {404}
