"""`/v1/models`: the models that a tenant's jobs made."""

from typing import Any

from fastapi import APIRouter, Request

from api.errors import ApiError
from api.openai.errors import refused
from api.openai.records import JobRecord, Records
from api.openai.training import remove_models
from api.openai.upload_routes import LOCK_WAIT_S
from api.openai.upstream import UpstreamDownError, UpstreamRefusedError, quoted
from api.service import RETRY_AFTER_S, service_of
from api.tenancy.auth import MixTenant

router = APIRouter(prefix="/v1/models", include_in_schema=False)


@router.get("")
def list_models(request: Request, tenant: MixTenant) -> dict[str, Any]:
    """Models of jobs that succeeded, newest first; none where nothing is trained."""
    found = [_view(record) for record in Records(service_of(request).store).all(tenant) if _has_model(record)]
    return {"object": "list", "data": found}


@router.get("/{model:path}")
def get_model(request: Request, tenant: MixTenant, model: str) -> dict[str, Any]:
    """One model that a job made."""
    return _view(_find(Records(service_of(request).store), tenant, model))


@router.delete("/{model:path}")
def delete_model(request: Request, tenant: MixTenant, model: str) -> dict[str, Any]:
    """Delete a model with its checkpoints here, or at the upstream that trained it."""
    records = Records(service_of(request).store)
    ft_id = _find(records, tenant, model).id
    with records.held(tenant, ft_id, LOCK_WAIT_S) as is_ours:
        if not is_ours:
            raise _later("busy", "the job that made this model is at work: try again")
        record = _find(records, tenant, model)  # as it is now that nobody else changes it
        if record.training is not None:
            remove_models(records, record)
        else:
            _delete_upstream(request, model)
        records.write(record.model_copy(update={"model_deleted": True}))
    return {"id": model, "object": "model", "deleted": True}


def _delete_upstream(request: Request, model: str) -> None:
    forwarder = request.app.state.openai.forwarder
    if forwarder is None:
        raise refused(400, "no_upstream", "the upstream that made this model is not set up any more", "model")
    try:
        forwarder.client.call("DELETE", f"/models/{quoted(model)}")
    except UpstreamRefusedError as error:
        if error.status != 404:  # gone already: what a repeated delete finds
            raise refused(400, error.code, error.message, "model") from error
    except UpstreamDownError as error:
        raise _later("unavailable", "the upstream gives no answer: try again") from error


def _later(code: str, message: str) -> ApiError:
    return ApiError(503, code, message, headers={"Retry-After": str(RETRY_AFTER_S)})


def _has_model(record: JobRecord) -> bool:
    return record.model is not None and not record.model_deleted


def _find(records: Records, tenant: str, model: str) -> JobRecord:
    for record in records.all(tenant):
        if _has_model(record) and record.model == model:
            return record
    raise _missing(model)


def _missing(model: str) -> ApiError:
    message = f"The model '{model[:256]}' does not exist, or no job of yours made it"
    return refused(404, "model_not_found", message, "model")


def _view(record: JobRecord) -> dict[str, Any]:
    return {
        "id": record.model,
        "object": "model",
        "created": int(record.finished_s or record.created_s),
        "owned_by": f"org-{record.tenant}",
    }
