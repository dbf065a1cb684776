"""Who looks: the API key in a cookie that scripts cannot read, and a token in every form.

The cookie holds the key itself, so that no process needs to remember visitors; it is sent to this site alone
(SameSite=Strict), and the key's expiry or revocation ends it. A form carries a token made of a second cookie and the
key: another site's page knows neither.
"""

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.errors import ApiError
from api.service import service_of
from api.telemetry import note
from api.tenancy.auth import Principal
from api.tenancy.keys import Scope
from api.uploads.bodies import bounded
from api.uploads.receive import Upload

KEY_COOKIE = "ballast_key"
FORM_COOKIE = "ballast_form"
FORM_FIELD = "form_token"
MAX_FORM_BYTES = 128 * 1024  # of a form without a file: a statement has at most 50,000 characters
MAX_FORM_FIELDS = 100


class SignInError(Exception):
    """The view needs a key that the visitor has not given, or that opens nothing any more."""


@dataclass(frozen=True)
class Visit:
    """A visitor: the principal (None before signing in), and what forms must carry."""

    principal: Principal | None
    form_cookie: str
    form_token: str
    is_new: bool  # the browser has no form cookie yet
    is_open: bool  # nobody needs a key

    def may(self, *scopes: Scope) -> bool:
        """Whether one of the scopes is held."""
        return self.principal is not None and bool(set(scopes) & set(self.principal.scopes))


def visit_of(request: Request) -> Visit | None:
    """The visitor that a dependency found; None where it came to none."""
    found: Visit | None = getattr(request.state, "visit", None)
    return found


async def anybody(request: Request) -> Visit:
    """A dependency: the visitor before signing in."""
    is_open = await run_in_threadpool(service_of(request).keyring.is_open)
    return _remember(request, None, is_open)


def visiting(*scopes: Scope) -> Callable[..., Awaitable[Visit]]:
    """A dependency: the visitor, if the cookie's key has one of these scopes and its request rate allows.

    Raises SignInError without a valid key, ApiError 403 without such a scope, 429 beyond the rate.
    """

    async def visitor(request: Request) -> Visit:
        service = service_of(request)
        address = request.client.host if request.client is not None else ""
        is_open = await run_in_threadpool(service.keyring.is_open)
        try:
            token = request.cookies.get(KEY_COOKIE)
            principal = await run_in_threadpool(service.keyring.identify, token, address)
        except ApiError as error:
            _remember(request, None, is_open)
            if error.status == 401:
                raise SignInError from error
            raise
        visit = _remember(request, principal, is_open)
        note(tenant=principal.tenant, key_id=principal.key_id)
        service.quotas.count_request(principal.tenant)
        if not visit.may(*scopes):
            named = " or ".join(f"`{scope}`" for scope in scopes)
            raise ApiError(403, "scope_missing", f"this needs a key with the scope {named}")
        return visit

    return visitor


def tenant_of(request: Request) -> str:
    """The tenant of a view behind `visiting`."""
    return principal_of(request).tenant


def principal_of(request: Request) -> Principal:
    """The principal of a view behind `visiting`."""
    visit = visit_of(request)
    assert visit is not None
    assert visit.principal is not None
    return visit.principal


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form without a file, whose token is checked.

    Raises ApiError 415 for another content type, 413 for a long one, 403 for one from elsewhere.
    """
    content_type, _ = parse_options_header(request.headers.get("content-type"))
    if content_type != b"application/x-www-form-urlencoded":
        raise ApiError(415, "unsupported_content_type", "send the form as application/x-www-form-urlencoded")
    body = bytearray()
    async for chunk in bounded(request.stream(), MAX_FORM_BYTES, "send a shorter form"):
        body += chunk
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS)
    except ValueError as error:
        raise ApiError(400, "bad_request", "the form cannot be read") from error
    fields = dict(pairs)
    check_form(request, fields.get(FORM_FIELD))
    return fields


def read_upload_form(request: Request, upload: Upload, names: Iterable[str]) -> dict[str, str]:
    """The fields of these names beside a form's file, whose token is checked; others stay in the upload.

    Raises ApiError 403 for a form from elsewhere, 422 without a file.
    """
    fields = {name: str(upload.fields.pop(name)) for name in names if name in upload.fields}
    check_form(request, fields.pop(FORM_FIELD, None))
    if not upload.n_bytes:
        raise ApiError(422, "no_rows", "choose a file with your fine-tuning rows first; this one is empty or absent")
    return fields


def check_form(request: Request, token: str | None) -> None:
    """Raises ApiError 403 for a form that no page of ours made for this visitor."""
    visit = visit_of(request)
    assert visit is not None
    if visit.is_new or not hmac.compare_digest((token or "").encode(), visit.form_token.encode()):
        raise ApiError(403, "foreign_form", "this form is not from a page of this service, or is too old: reload it")


def keep_form_cookie(request: Request, response: Response, visit: Visit) -> None:
    """Give the browser its form cookie, unless it has one."""
    if visit.is_new:
        set_cookie(request, response, FORM_COOKIE, visit.form_cookie)


def set_cookie(request: Request, response: Response, name: str, value: str) -> None:
    """A cookie of the session that scripts cannot read and other sites cannot send."""
    path = service_of(request).settings.root_path or "/"
    secure = request.url.scheme == "https"
    response.set_cookie(name, value, path=path, secure=secure, httponly=True, samesite="strict")


def drop_key(request: Request, response: Response) -> None:
    """Sign out."""
    response.delete_cookie(KEY_COOKIE, path=service_of(request).settings.root_path or "/", httponly=True)


def _remember(request: Request, principal: Principal | None, is_open: bool) -> Visit:
    given = request.cookies.get(FORM_COOKIE, "")
    cookie = given or secrets.token_hex(16)
    key = "" if is_open else request.cookies.get(KEY_COOKIE, "")
    token = hashlib.sha256(f"ballast form\n{cookie}\n{key}".encode()).hexdigest()
    visit = Visit(principal, cookie, token, not given, is_open)
    request.state.visit = visit
    return visit


Anybody = Annotated[Visit, Depends(anybody)]
MixVisit = Annotated[Visit, Depends(visiting("mix"))]
SqlVisit = Annotated[Visit, Depends(visiting("sql"))]
AnyVisit = Annotated[Visit, Depends(visiting("mix", "sql", "audit"))]
AuditVisit = Annotated[Visit, Depends(visiting("audit"))]
JobVisit = Annotated[Visit, Depends(visiting("mix", "audit", "sql"))]
