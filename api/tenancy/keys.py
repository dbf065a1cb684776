"""API keys: one JSON file for each key under `keys/` of the store, and the command `python -m api keys`.

A token is `ballast_KEYID_SECRET`; the file holds only a hash of the secret. The secret has 256 random bits, so a plain
SHA-256 of it cannot be searched. Revoking keeps the file with its date: a store that ever had a key never falls back to
serving without one.
"""

import argparse
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from pydantic import ValidationError

from curator.console import CommandParser, add_renamed, say, say_json
from curator.errors import BadInputError, IntegrityError, MissingError
from curator.mix.files import tenant_path
from curator.recipe.base import Strict
from curator.store.store import Store
from curator.store.usage import UsageLog

Scope = Literal["mix", "sql", "audit", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
FOLDER = "keys"
MAX_LABEL_CHARS = 200
DAMAGED = "damaged"

_TOKEN = re.compile(r"ballast_([0-9a-f]{16})_([0-9a-f]{64})")
_KEY_ID = re.compile(r"[0-9a-f]{16}")
_NO_HASH = "0" * 64  # compared with when there is no such key, so that both answers take the same steps


class Key(Strict):
    """One key as stored. Times are UTC; `sha256` is of the secret; `expires_at` null never expires."""

    format_version: Literal[1] = 1
    key_id: str
    tenant: str
    scopes: tuple[Scope, ...]
    sha256: str
    label: str = ""
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def status(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        """Whether the key is of use at this moment."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


def create_key(
    store: Store, tenant: str, scopes: Sequence[str], *, expires_days: float | None = None, label: str = ""
) -> tuple[Key, str]:
    """Store a new key; returns it and its token, which is not kept anywhere.

    Raises BadInputError for a tenant name, scope, label or time that cannot be.
    """
    tenant_path(tenant)
    unknown = sorted(set(scopes) - set(SCOPES))
    if not scopes:
        raise BadInputError(f"a key needs a scope: name one or more of {', '.join(SCOPES)}, by commas")
    if unknown:
        raise BadInputError(f"scope {unknown[0]!r} is none of {', '.join(SCOPES)}")
    if len(label) > MAX_LABEL_CHARS or (expires_days is not None and not 0 < expires_days <= 36_500):
        raise BadInputError(f"give a label of at most {MAX_LABEL_CHARS} characters and 0 < days <= 36500 to expiry")
    now, key_id, secret = _now(), secrets.token_hex(8), secrets.token_hex(32)
    key = Key(
        key_id=key_id,
        tenant=tenant,
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        sha256=_hash(secret),
        label=label,
        created_at=now,
        expires_at=None if expires_days is None else now + timedelta(days=expires_days),
    )
    store.write_json(_path(key_id), key.model_dump(mode="json"))
    try:
        _log_usage(store, key, "key created")
    except BaseException:
        store.delete(_path(key_id))  # nobody has its token
        raise
    return key, f"ballast_{key_id}_{secret}"


def list_keys(store: Store) -> tuple[list[Key], list[str]]:
    """Every key, revoked ones too, by tenant and date; and the ids of those whose files are damaged."""
    found: list[Key] = []
    damaged: list[str] = []
    for name in store.list(FOLDER, "*.json"):
        key_id = name.removesuffix(".json")
        try:
            found.append(_read(store, key_id))
        except MissingError:  # removed in this moment, or a file that can be no key's
            continue
        except IntegrityError:
            damaged.append(key_id)
    return sorted(found, key=lambda key: (key.tenant, key.created_at, key.key_id)), sorted(damaged)


def revoke_key(store: Store, key_id: str) -> Key:
    """Make a key useless at once; revoking again changes nothing. Raises MissingError without such a key.

    A damaged file is replaced by one of a key that fits no secret: a store keeps a sign of each key it had.
    """
    try:
        key = _read(store, key_id)
    except IntegrityError:
        key = Key(key_id=key_id, tenant="", scopes=(), sha256=_NO_HASH, label=DAMAGED, created_at=_now())
    if key.revoked_at is None:
        key = key.model_copy(update={"revoked_at": _now()})
        store.write_json(_path(key_id), key.model_dump(mode="json"))
        _log_usage(store, key, "key revoked")
    return key


def any_keys(store: Store) -> bool:
    """Whether the store was ever given a key."""
    return bool(store.list(FOLDER, "*.json"))


def split_token(token: str) -> tuple[str, str] | None:
    """Key id and secret of a token; None for what is not a token."""
    match = _TOKEN.fullmatch(token)
    return (match[1], match[2]) if match else None


def find_key(store: Store, key_id: str) -> Key | None:
    """A stored key; None without one."""
    try:
        return _read(store, key_id)
    except MissingError:
        return None


def opens(key: Key | None, secret: str) -> bool:
    """Whether a secret fits a key that is in force; a missing key takes the same comparison, in constant time."""
    fits = hmac.compare_digest(_hash(secret), _NO_HASH if key is None else key.sha256)
    return fits and key is not None and key.status(datetime.now(UTC)) == "active"


def _read(store: Store, key_id: str) -> Key:
    if not _KEY_ID.fullmatch(key_id):
        raise MissingError(f"there is no key {key_id!r}; `python -m api keys list` shows them")
    try:
        return Key.model_validate(store.read_json(_path(key_id)))
    except MissingError as error:
        raise MissingError(f"there is no key {key_id!r}; `python -m api keys list` shows them") from error
    except (ValidationError, IntegrityError) as error:
        remedy = f"`python -m api keys revoke {key_id}`, and make a new one"
        raise IntegrityError(f"the file of key {key_id} is damaged: {remedy}") from error


def _log_usage(store: Store, key: Key, action: str) -> None:
    log = UsageLog(store)
    try:
        log.add(key.tenant, action, key_id=key.key_id)
    finally:
        log.close()


def _path(key_id: str) -> str:
    return f"{FOLDER}/{key_id}.json"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


EPILOG = """\
examples:
  python -m api keys create --store ./store --tenant acme --scopes mix,sql --expires-days 90
  python -m api keys list --store ./store
  python -m api keys revoke --store ./store KEY_ID

A token is shown once, when it is made; the store holds only its hash. From the first key on, the service answers
nobody without one. Scopes: mix (mixes, corpora), sql (statements and named queries), audit, admin (metrics)."""


def run_keys(argv: Sequence[str]) -> int:
    """Carry out one `keys` command; returns the exit code. Raises BallastError on bad input."""
    args = _parser().parse_args(argv)
    store = Store(args.store).open(create=False)
    if args.action == "create":
        scopes = [scope.strip() for scope in args.scopes.split(",") if scope.strip()]
        key, token = create_key(store, args.tenant, scopes, expires_days=args.expires_days, label=args.note)
        if args.json:
            say_json({**_shown(key), "token": token})
        else:
            say(f"key {key.key_id} of tenant {key.tenant} ({', '.join(key.scopes)}); this token is shown only now:")
            say(token)
    elif args.action == "list":
        _list(*list_keys(store), as_json=args.json)
    else:
        key = revoke_key(store, args.key_id)
        if args.json:
            say_json(_shown(key))
        else:
            owner = f" of tenant {key.tenant}" if key.tenant else ", whose file was damaged,"
            say(f"key {key.key_id}{owner} is revoked; running services notice within seconds")
    return 0


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = CommandParser(
        prog="python -m api keys",
        description="API keys of a store.",
        epilog=EPILOG,
        formatter_class=formatter,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="make a key and show its token once")
    create.add_argument("--tenant", required=True, help="whose mixes the key opens: a-z, 0-9, - and _")
    create.add_argument("--scopes", default="mix", help=f"comma-separated: {', '.join(SCOPES)} (default: mix)")
    create.add_argument("--expires-days", type=float, default=None, help="days until it is void (default: never)")
    add_renamed(create, "--note", "--label", default="", help="a note for people")
    listing = actions.add_parser("list", help="show every key with its status")
    revoke = actions.add_parser("revoke", help="make a key useless")
    revoke.add_argument("key_id", metavar="KEY_ID", help="as `list` shows it")
    for action in (create, listing, revoke):
        action.add_argument(
            "--store", default=os.environ.get("BALLAST_STORE", "./store"), help="default: $BALLAST_STORE, then ./store"
        )
        action.add_argument("--json", action="store_true", help="one JSON document instead of text")
    return parser


def _list(keys: Sequence[Key], damaged: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        say_json({"keys": [_shown(key) for key in keys], "damaged": list(damaged)})
    elif not keys and not damaged:
        say("no keys: the service is open to whoever reaches it, on a loopback address or with --open")
    else:
        from curator.console import text_table

        columns = ["key_id", "tenant", "scopes", "status", "created_at", "expires_at", "label"]
        rows = [
            {**_shown(key), "scopes": ",".join(key.scopes), "expires_at": _shown(key)["expires_at"] or "never"}
            for key in keys
        ]
        rows += [dict.fromkeys(columns) | {"key_id": key_id, "status": DAMAGED} for key_id in damaged]
        say(text_table(columns, rows, 160))


def _shown(key: Key) -> dict[str, Any]:
    """What may be shown of a key: everything but the hash."""
    document = key.model_dump(mode="json", exclude={"sha256", "format_version"})
    return {**document, "status": key.status(datetime.now(UTC))}
