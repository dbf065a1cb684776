"""GET /v1/policy: what a tenant's recipes must fit, and what it may use."""

from typing import Any

from fastapi import APIRouter, Request

from api.auth import GUARDED, MixTenant
from api.schemas import TenantPolicy
from api.service import service_of
from curator.recipe.policy import policy_sha256

router = APIRouter(prefix="/v1/policy", tags=["mixes"], responses=GUARDED)


@router.get("", response_model=TenantPolicy)
def get_policy(request: Request, tenant: MixTenant) -> dict[str, Any]:
    """The policy that the asking tenant's recipes must fit (null: none), and its quotas (null: no bound)."""
    tenants = service_of(request).tenants
    policy = tenants.policy(tenant)
    return {
        "tenant": tenant,
        "policy": policy,
        "policy_sha256": None if policy is None else policy_sha256(policy),
        "quotas": tenants.quotas(tenant),
    }
