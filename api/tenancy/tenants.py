"""What single tenants have of their own, from the file of the setting `tenants`.

A policy, a recipe of fine-tuning jobs, quotas, a weight, a tier and a webhook. A tenant that the file does not name
has the service's `policy`, `openai_recipe` and `tenant_*` settings, weight 1, tier `default` and no webhook.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, create_model, field_validator

from api.jobs.metrics import DEFAULT_TIER
from api.settings import Settings
from curator.errors import BadInputError, RecipeError
from curator.mix.files import tenant_path
from curator.recipe import parse_recipe
from curator.recipe.base import Strict
from curator.recipe.document import read_document
from curator.recipe.policy import Policy, load_policy
from curator.recipe.problems import problem_line, problems_of

MAX_TIERS = 16  # each is a label of metrics
MAX_WEIGHT = 100
QUOTAS = tuple(name for name in Settings.model_fields if name.startswith("tenant_"))


class Webhook(Strict):
    """Where the ends of a tenant's jobs are reported, and the file with the secret that signs the reports."""

    url: str = Field(pattern=r"^https?://[^\s/]+(/\S*)?$", max_length=2000)
    secret_file: str = Field(min_length=1)


class _Entry(Strict):
    """One tenant's entry; quotas are added below, declared as in Settings. Files are relative to the tenants' file."""

    policy: str | None = None
    recipe: str | None = None
    tier: str = Field(default=DEFAULT_TIER, pattern=r"^[a-z0-9_-]{1,32}$")
    weight: int = Field(default=1, ge=1, le=MAX_WEIGHT)
    webhook: Webhook | None = None

    @field_validator("webhook", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("give url and secret_file")
        return value


_QuotaFields: Any = {name: (Settings.model_fields[name].annotation, Settings.model_fields[name]) for name in QUOTAS}
Entry: type[_Entry] = create_model("Entry", __base__=_Entry, **_QuotaFields)


@dataclass(frozen=True)
class Tenants:
    """All tenants of a service: `entries` by name, and the policies that were read for them."""

    settings: Settings
    default_policy: Policy | None = None
    entries: Mapping[str, _Entry] = field(default_factory=dict)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    folder: Path = Path()
    default_recipe: dict[str, Any] | None = None
    recipes: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def policy(self, tenant: str) -> Policy | None:
        """The policy that a tenant's recipes must fit: its own, or else the service's."""
        return self.policies.get(tenant, self.default_policy)

    def recipe(self, tenant: str) -> dict[str, Any] | None:
        """The recipe (a checked document) of a tenant's fine-tuning jobs: its own, or else `openai_recipe`."""
        return self.recipes.get(tenant, self.default_recipe)

    def quota(self, tenant: str, name: str) -> Any:
        """A `tenant_*` setting as it holds for a tenant."""
        entry = self.entries.get(tenant)
        return getattr(self.settings if entry is None or name not in entry.model_fields_set else entry, name)

    def quotas(self, tenant: str) -> dict[str, Any]:
        """Every `tenant_*` setting as it holds for a tenant; None: no bound."""
        return {name: self.quota(tenant, name) for name in QUOTAS}

    def tier(self, tenant: str) -> str:
        """The class that a tenant is counted in by metrics."""
        entry = self.entries.get(tenant)
        return DEFAULT_TIER if entry is None else entry.tier

    def weight(self, tenant: str) -> int:
        """Turns of a tenant at builds and statements for each one of another."""
        entry = self.entries.get(tenant)
        return 1 if entry is None else entry.weight

    def tiers(self) -> list[str]:
        """Every class, the default one too."""
        return sorted({DEFAULT_TIER} | {entry.tier for entry in self.entries.values()})

    def webhook(self, tenant: str) -> Webhook | None:
        """Where a tenant wants to hear of its jobs; the secret's path is made whole."""
        entry = self.entries.get(tenant)
        if entry is None or entry.webhook is None:
            return None
        return entry.webhook.model_copy(update={"secret_file": str(self.folder / entry.webhook.secret_file)})


def load_tenants(settings: Settings) -> Tenants:
    """The tenants of a service, with every policy read.

    Raises BadInputError for a file that cannot be read or an entry that cannot be, MissingError for an absent policy.
    """
    default = load_policy(settings.policy) if settings.policy else None
    default_recipe = _recipe(Path(settings.openai_recipe)) if settings.openai_recipe else None
    if settings.tenants is None:
        return Tenants(settings, default, default_recipe=default_recipe)
    path = Path(settings.tenants)
    entries = {str(name): _entry(path, str(name), value) for name, value in _read(path).items()}
    policies = {name: load_policy(path.parent / entry.policy) for name, entry in entries.items() if entry.policy}
    recipes = {name: _recipe(path.parent / entry.recipe) for name, entry in entries.items() if entry.recipe}
    tenants = Tenants(settings, default, entries, policies, path.parent, default_recipe, recipes)
    if len(tenants.tiers()) > MAX_TIERS:
        raise BadInputError(f"{path} has {len(tenants.tiers())} tiers, {MAX_TIERS} at most: metrics count by tier")
    return tenants


def _read(path: Path) -> dict[Any, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is neither YAML nor JSON"
        raise BadInputError(f"tenants file {path} cannot be read: {reason}") from error
    if not isinstance(document, dict):
        raise BadInputError(f"tenants file {path} must map names of tenants to what they have")
    return document


def _recipe(path: Path) -> dict[str, Any]:
    document = read_document(path, "recipe", RecipeError)
    parse_recipe(document, f"recipe {path}")
    assert isinstance(document, dict)  # or it was refused
    return document


def _entry(path: Path, name: str, value: Any) -> _Entry:
    tenant_path(name)  # refuses what can be no tenant's name
    try:
        return Entry.model_validate(value)
    except ValidationError as error:
        problems = problems_of(error)
        raise BadInputError(f"tenants file {path}, {name}: {problem_line(problems)}", details=problems) from error
