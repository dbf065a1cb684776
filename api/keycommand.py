"""`python -m api keys`: create, list and revoke API keys of a store."""

import argparse
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from api.keys import DAMAGED, SCOPES, Key, create_key, list_keys, revoke_key
from curator.progress import say
from curator.store import Store

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
        key, token = create_key(store, args.tenant, scopes, expires_days=args.expires_days, label=args.label)
        if args.json:
            _say_json({**_shown(key), "token": token})
        else:
            say(f"key {key.key_id} of tenant {key.tenant} ({', '.join(key.scopes)}); this token is shown only now:")
            say(token)
    elif args.action == "list":
        _list(*list_keys(store), as_json=args.json)
    else:
        key = revoke_key(store, args.key_id)
        if args.json:
            _say_json(_shown(key))
        else:
            owner = f" of tenant {key.tenant}" if key.tenant else ", whose file was damaged,"
            say(f"key {key.key_id}{owner} is revoked; running services notice within seconds")
    return 0


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m api keys", description="API keys of a store.", epilog=EPILOG, formatter_class=formatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="make a key and show its token once")
    create.add_argument("--tenant", required=True, help="whose mixes the key opens: a-z, 0-9, - and _")
    create.add_argument("--scopes", default="mix", help=f"comma-separated: {', '.join(SCOPES)} (default: mix)")
    create.add_argument("--expires-days", type=float, default=None, help="days until it is void (default: never)")
    create.add_argument("--label", default="", help="a note for people")
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
        _say_json({"keys": [_shown(key) for key in keys], "damaged": list(damaged)})
    elif not keys and not damaged:
        say("no keys: the service is open to whoever reaches it, on a loopback address or with --open")
    else:
        from curator.tables import text_table

        columns = ["key_id", "tenant", "scopes", "status", "created_at", "expires_at", "label"]
        rows = [{**_shown(key), "scopes": ",".join(key.scopes)} for key in keys]
        rows += [dict.fromkeys(columns) | {"key_id": key_id, "status": DAMAGED} for key_id in damaged]
        say(text_table(columns, rows, 160))


def _shown(key: Key) -> dict[str, Any]:
    """What may be shown of a key: everything but the hash."""
    document = key.model_dump(mode="json", exclude={"sha256", "format_version"})
    return {**document, "status": key.status(datetime.now(UTC))}


def _say_json(document: dict[str, Any]) -> None:
    say(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
