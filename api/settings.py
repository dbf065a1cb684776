"""Settings of the service: one model, read from a file, then the environment (BALLAST_*), then flags.

Each option is described once, in its field; `python -m api --help` is rendered from here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from curator.errors import BadInputError
from curator.recipe.base import Strict
from curator.recipe.problems import problems_of

ENVIRONMENT_PREFIX = "BALLAST_"
MIB = 2**20

LogLevel = Literal["debug", "info", "warning", "error"]


class Settings(Strict):
    """What the service needs to know; frozen, unknown names refused, ranges checked."""

    store: str = Field(default="./store", min_length=1, description="folder or URL of the store to serve")
    host: str = Field(
        default="127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for every interface"
    )
    port: int = Field(default=8765, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    log_level: LogLevel = Field(
        default="info", description="least level written to stderr: debug, info, warning or error"
    )
    max_upload_bytes: int = Field(default=1024 * MIB, ge=1, description="bytes of one multipart upload")
    max_unpacked_bytes: int = Field(
        default=8 * 1024 * MIB, ge=1, description="bytes that a packed upload (.gz, .zst) may unpack to"
    )
    max_json_bytes: int = Field(default=16 * MIB, ge=1, description="bytes of one JSON body, which is held in memory")
    max_task_rows: int = Field(default=1_000_000, ge=1, description="rows of one user data set")
    max_bad_rows: int = Field(default=100, ge=1, le=10_000, description="bad rows listed in one error body")
    max_page_rows: int = Field(default=1_000, ge=1, le=100_000, description="rows of one page")
    max_builds: int = Field(default=2, ge=1, le=64, description="mixes built at the same time")
    max_waiting_builds: int = Field(
        default=64, ge=0, description="uploads that may wait for a build; beyond it the answer is 503"
    )
    async_rows: int = Field(
        default=100_000, ge=0, description="rows of a data set above which a mix becomes a job (202) for a worker"
    )
    async_bytes: int = Field(
        default=256 * MIB, ge=0, description="bytes of an upload above which a mix becomes a job (202) for a worker"
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
    policy: str | None = Field(default=None, description="file with the provider's policy, which recipes must fit")
    demo: bool = Field(default=False, description="serve demo/store, which `make demo` writes")
    open: bool = Field(
        default=False,
        description="serve without any key on an address that others reach; `python -m api keys` is safer",
    )
    tenant_requests_per_minute: int | None = Field(default=6_000, ge=1, description="requests of one tenant a minute")
    tenant_rows_per_hour: int | None = Field(default=None, ge=1, description="task rows of one tenant an hour")
    tenant_bytes_per_hour: int | None = Field(default=None, ge=1, description="uploaded bytes of one tenant an hour")
    tenant_builds: int = Field(
        default=8, ge=1, description="uploads of one tenant that are sent, wait or are built at once"
    )
    max_sql: int = Field(
        default=2, ge=1, le=64, description="SQL statements run at the same time, each its own process"
    )
    tenant_sql: int = Field(default=1, ge=1, description="SQL statements of one tenant running or waiting at once")
    sql_timeout_s: float = Field(default=10.0, gt=0, le=600, description="seconds of one SQL statement")
    sql_memory_bytes: int = Field(default=512 * MIB, ge=64 * MIB, description="memory of one SQL statement, in bytes")
    sql_max_rows: int = Field(default=10_000, ge=1, le=1_000_000, description="rows of one SQL answer")
    sql_max_bytes: int = Field(default=16 * MIB, ge=1024, description="bytes of one SQL answer's values")
    download_cache_bytes: int = Field(
        default=4 * 1024 * MIB,
        ge=0,
        description="bytes of finished downloads of large mixes kept on this machine's disk; 0 keeps none",
    )
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


CONFIG_VARIABLE = ENVIRONMENT_PREFIX + "CONFIG"


def read_settings_file(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML or JSON file, by name; raises BadInputError when it is none, or names unknown ones."""
    import yaml

    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is neither YAML nor JSON"
        raise BadInputError(f"settings file {path} cannot be read: {reason}") from error
    if not isinstance(document, dict):
        raise BadInputError(f"settings file {path} must map names of settings to values")
    unknown = sorted(str(name) for name in document if name not in Settings.model_fields)
    if unknown:
        raise BadInputError(f"settings file {path} has no setting {unknown[0]!r}; `python -m api --help` lists them")
    return {name: value for name, value in document.items() if value is not None}


def load_settings(
    environment: Mapping[str, str], flags: Mapping[str, Any], file: Mapping[str, Any] | None = None
) -> Settings:
    """Settings of a file, overridden by BALLAST_* variables, overridden by the flags that are not None.

    Raises BadInputError naming every setting at fault and where it came from.
    """
    found: dict[str, Any] = dict(file or {})
    sources = dict.fromkeys(found, "settings file")
    for name in Settings.model_fields:
        variable = variable_name(name)
        if variable in environment:
            found[name], sources[name] = environment[variable], variable
    given = {name: value for name, value in flags.items() if value is not None}
    found |= given
    sources |= {name: flag_name(name) for name in given}
    try:
        return Settings.model_validate(found)
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
    source = sources.get(field, field)
    shown = f"{source}, {field}" if source == "settings file" else source
    return f"{shown}: {problem['message']}"
