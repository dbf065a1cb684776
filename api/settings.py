"""Settings of the service, read by pydantic-settings.

A flag overrides its environment variable (`BALLAST_NAME`), and that the settings file. Each option is described once,
in its field; `python -m api --help` is rendered from here.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from curator.corpus.formats.budget import MAX_ROW_BYTES
from curator.errors import BadInputError
from curator.recipe.problems import problems_of

ENVIRONMENT_PREFIX = "BALLAST_"
# Variables that other parts of the product read.
OTHER_VARIABLES = frozenset(
    ENVIRONMENT_PREFIX + name
    for name in ("PROGRESS", "API_KEY", "MODEL_KEY", "JUDGE_KEY", "SERVER_KEY", "INSPECT_PYTHON")
)
MIB = 2**20

LogLevel = Literal["debug", "info", "warning", "error"]


class Settings(BaseSettings):
    """What the service needs to know; frozen, unknown names refused, ranges checked.

    A value that is not passed comes from its environment variable, then from the file named by `config`.
    """

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        env_prefix=ENVIRONMENT_PREFIX,
        cli_kebab_case=True,
        cli_implicit_flags="toggle",
        cli_show_env_vars=True,
        cli_hide_none_type=True,
    )

    config: str | None = Field(
        default=None, description="YAML or JSON file of settings by their names, such as max_builds"
    )
    store: str = Field(default="./store", min_length=1, description="folder or URL of the store to serve")
    host: str = Field(
        default="127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for every interface"
    )
    port: int = Field(default=8765, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    root_path: str = Field(
        default="",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="prefix under which a proxy offers the service, such as /ballast: links begin with it",
    )
    tls_cert: str | None = Field(
        default=None, description="PEM file with the certificate chain: with it the service speaks HTTPS"
    )
    tls_key: str | None = Field(
        default=None, validate_default=True, description="PEM file with the private key of tls_cert, without a password"
    )
    log_level: LogLevel = Field(
        default="info", description="least level written to stderr: debug, info, warning or error"
    )
    max_connections: int = Field(
        default=1_000,
        ge=4,
        description="connections at once; fewer where the limit of open files (ulimit -Hn) allows no more",
    )
    max_address_connections: int | None = Field(
        default=None,
        ge=1,
        description="connections of one client address at once; half of max_connections by default. Behind a proxy, "
        "which is one address, give it the value of max_connections",
    )
    head_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=600,
        description="seconds for the head of a request, and before it for the handshake of TLS",
    )
    body_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=3_600,
        description="seconds within which 16 KiB of a body must come, or the client fetch something of its answer",
    )
    max_upload_bytes: int = Field(default=1024 * MIB, ge=1, description="bytes of one multipart upload")
    max_unpacked_bytes: int = Field(
        default=8 * 1024 * MIB, ge=1, description="bytes that a packed upload (.gz, .zst) may unpack to"
    )
    max_json_bytes: int = Field(default=16 * MIB, ge=1, description="bytes of one JSON body, which is held in memory")
    max_row_bytes: int = Field(
        default=MAX_ROW_BYTES, ge=1024, description="bytes of one record of a data set; a larger one is a bad row"
    )
    max_task_rows: int = Field(default=1_000_000, ge=1, description="rows of one user data set")
    max_bad_rows: int = Field(default=100, ge=1, le=10_000, description="bad rows listed in one error body")
    max_page_rows: int = Field(default=1_000, ge=1, le=100_000, description="rows of one page")
    max_builds: int = Field(default=2, ge=1, le=64, description="mixes built at the same time")
    build_timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="seconds of reading one data set, and of building one mix or private offer",
    )
    build_memory_bytes: int = Field(
        default=2048 * MIB, ge=256 * MIB, description="memory of reading one data set or building one mix, in bytes"
    )
    max_waiting_builds: int = Field(
        default=64, ge=0, description="uploads that may wait for a build; beyond it the answer is 503"
    )
    async_rows: int = Field(
        default=5_000, ge=0, description="rows of a data set above which a mix becomes a job (202) for a worker"
    )
    async_bytes: int = Field(
        default=256 * MIB, ge=0, description="bytes of an upload above which a mix becomes a job (202) for a worker"
    )
    workers: int = Field(
        default=1,
        ge=0,
        le=16,
        description="worker processes that the service runs itself while mixes are queued; 0 leaves all jobs to "
        "`python -m api worker`",
    )
    job_queue: str | None = Field(
        default=None,
        description="queue of jobs: a SQLite file, or a redis:// or postgresql:// URL; a local store has its own file",
    )
    job_ttl_s: float = Field(default=604_800.0, gt=0, description="seconds that a job is kept after its end")
    tenant_jobs: int = Field(default=8, ge=1, description="jobs of one tenant that wait or run at once")
    max_audit_rows: int = Field(default=10_000, ge=1, description="rows of one audit")
    tenant_audits_per_hour: int | None = Field(default=30, ge=1, description="audits of one tenant an hour")
    mix_ttl_s: float | None = Field(default=None, gt=0, description="seconds that a mix is kept after it was built")
    idempotency_ttl_s: float = Field(
        default=86_400.0, gt=0, description="seconds that an Idempotency-Key is remembered"
    )
    allowed_hosts: str = Field(
        default="",
        description="names (host or host:port, by comma) that a service without keys answers to besides localhost, "
        "such as those of a reverse proxy before it",
    )
    openai_mode: Literal["off", "mix", "forward", "train"] = Field(
        default="mix",
        description="what fine-tuning jobs of the OpenAI form do: off refuses them, mix gives the mix as a file, "
        "train has a worker train on it, forward starts the job at openai_upstream",
    )
    openai_recipe: str | None = Field(
        default=None, description="file with the recipe of fine-tuning jobs, which callers may only tighten"
    )
    openai_audit: bool = Field(
        default=False,
        description="audit the training rows of each fine-tuning job; a worker with --model must run, or jobs wait",
    )
    openai_models: str | None = Field(
        default=None,
        validate_default=True,
        description="YAML or JSON file of the models that jobs of openai_mode train may name",
    )
    openai_upstream: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/]+(/\S*)?$",
        description="base URL of the fine-tuning endpoint of openai_mode forward, such as https://host/v1",
    )
    openai_key_file: str | None = Field(
        default=None,
        validate_default=True,
        description="file with the operator's API key for openai_upstream, read when the service starts",
    )
    policy: str | None = Field(default=None, description="file with the provider's policy, which recipes must fit")
    tenants: str | None = Field(
        default=None,
        description="YAML or JSON file of what single tenants have of their own: policy, recipe, quotas, weight, tier, "
        "webhook",
    )
    sign_key: str | None = Field(
        default=None, description="PEM file with the Ed25519 private key that signs the manifests of mixes"
    )
    usage_ttl_s: float | None = Field(
        default=7_776_000.0, ge=86_400, description="seconds that events of the usage log are kept, by whole days"
    )
    reports: str | None = Field(
        default=None,
        description="folder of reports that trainer commands write, Markdown with JSON and PNG beside it; every key "
        "with a scope other than admin alone reads them",
    )
    demo: bool = Field(default=False, description="serve demo/store, which `make demo` writes")
    open: bool = Field(
        default=False,
        description="serve without any key on an address that others reach; `python -m api keys` is safer",
    )
    address_keys_per_minute: int | None = Field(
        default=120, ge=1, description="unknown keys that one client address may try a minute; then the answer is 429"
    )
    tenant_requests_per_minute: int | None = Field(default=6_000, ge=1, description="requests of one tenant a minute")
    tenant_rows_per_hour: int | None = Field(default=None, ge=1, description="task rows of one tenant an hour")
    tenant_bytes_per_hour: int | None = Field(default=None, ge=1, description="uploaded bytes of one tenant an hour")
    tenant_builds: int = Field(
        default=8, ge=1, description="uploads of one tenant that are sent, wait or are built at once"
    )
    tenant_stored_bytes: int | None = Field(
        default=None,
        ge=1,
        description="bytes that mixes, jobs, files, models and parts of uploads of one tenant may take in the store",
    )
    max_sql: int = Field(
        default=2, ge=1, le=64, description="SQL statements run at the same time, each its own process"
    )
    tenant_sql: int = Field(default=1, ge=1, description="SQL statements of one tenant running or waiting at once")
    sql_timeout_s: float = Field(default=10.0, gt=0, le=600, description="seconds of one SQL statement")
    sql_memory_bytes: int = Field(
        default=512 * MIB, ge=320 * MIB, description="memory of one SQL statement's process, in bytes"
    )
    sql_max_rows: int = Field(default=10_000, ge=1, le=1_000_000, description="rows of one SQL answer")
    sql_max_bytes: int = Field(default=16 * MIB, ge=1024, description="bytes of one SQL answer's values")
    shutdown_delay_s: float = Field(
        default=0.0,
        ge=0,
        le=600,
        description="seconds after Ctrl-C or SIGTERM during which requests are still taken while /readyz says 503, "
        "so that a load balancer looks elsewhere",
    )
    shutdown_timeout_s: int = Field(
        default=30, ge=1, description="seconds that running requests get after Ctrl-C or SIGTERM"
    )
    temp_dir: str | None = Field(default=None, description="folder for uploads in flight; the system's own by default")

    @field_validator("tls_key")
    @classmethod
    def _check_pair(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is None) != (info.data.get("tls_cert") is None):
            raise ValueError("tls_cert and tls_key belong together: give both, or neither")
        return value

    @field_validator("openai_models")
    @classmethod
    def _check_models(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("openai_mode") == "train" and value is None:
            raise ValueError("openai_mode train needs openai_models")
        return value

    @field_validator("openai_key_file")
    @classmethod
    def _check_upstream(cls, value: str | None, info: ValidationInfo) -> str | None:
        upstream = info.data.get("openai_upstream")
        if info.data.get("openai_mode") == "forward" and (value is None or upstream is None):
            raise ValueError("openai_mode forward needs openai_upstream and openai_key_file")
        return value

    @field_validator("temp_dir")
    @classmethod
    def _check_folder(cls, value: str | None) -> str | None:
        if value is not None and not (Path(value).is_dir() and os.access(value, os.W_OK | os.X_OK)):
            raise ValueError(f"no writable folder at {value}")
        return value

    @field_validator("reports")
    @classmethod
    def _check_reports(cls, value: str | None) -> str | None:
        if value is not None and not Path(value).is_dir():
            raise ValueError(f"no folder at {value}")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Passed values, then the environment, then the file that one of them names."""
        path = (env_settings() | init_settings()).get("config")
        file = read_settings_file(path) if path else {}
        return init_settings, env_settings, InitSettingsSource(settings_cls, file)


def read_settings_file(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML or JSON file, by name; nulls count as not given.

    Raises BadInputError when the file cannot be read, or names unknown settings.
    """
    import yaml

    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is neither YAML nor JSON"
        raise BadInputError(f"settings file {path} cannot be read: {reason}") from error
    if not isinstance(document, dict):
        raise BadInputError(f"settings file {path} must map names of settings to values")
    unknown = sorted(str(name) for name in document if name == "config" or name not in Settings.model_fields)
    if unknown:
        raise BadInputError(f"settings file {path} has no setting {unknown[0]!r}; `python -m api --help` lists them")
    return {name: value for name, value in document.items() if value is not None}


def load_settings(flags: Mapping[str, Any]) -> Settings:
    """Settings of the flags given, the environment and the settings file.

    Raises BadInputError naming every setting at fault and where it came from, and for a BALLAST_* variable that is none
    of the product's.
    """
    names = {variable_name(name): name for name in Settings.model_fields}
    variables = {name.upper() for name in os.environ if name.upper().startswith(ENVIRONMENT_PREFIX)}
    for variable in sorted(variables - set(names) - OTHER_VARIABLES):
        (nearest,) = difflib.get_close_matches(variable, names, 1, 0.0)
        raise BadInputError(f"{variable} is not a setting; the nearest is {nearest} (`python -m api --help` lists all)")
    sources = {names[variable]: variable for variable in variables & set(names)}
    sources |= {name: flag_name(name) for name in flags}
    try:
        return Settings(**flags)
    except ValidationError as error:
        problems = [_problem(item, sources) for item in problems_of(error)]
        raise BadInputError("; ".join(problems), details=problems) from error


def variable_name(field: str) -> str:
    """The environment variable of a setting."""
    return ENVIRONMENT_PREFIX + field.upper()


def flag_name(field: str) -> str:
    """The command-line flag of a setting."""
    return "--" + field.replace("_", "-")


def _problem(problem: Mapping[str, str], sources: Mapping[str, str]) -> str:
    field = problem["pointer"].split("/")[1] or "settings"
    return f"{sources.get(field, f'settings file, {field}')}: {problem['message']}"
