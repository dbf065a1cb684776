"""Signing a mix's manifest with Ed25519, and checking the signature.

What is signed is the manifest as JSON with sorted keys, so its bytes on disk or on the wire do not matter; since the
manifest lists the hashes of rows and files, the signature covers the whole mix. It stands beside the manifest in
`manifest.sig.json` and can be made at any time, by the command line or by a service with a key. Keys are PEM files:

    openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out key.pub.pem
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import ValidationError

from curator.errors import (
    BadInputError,
    IntegrityError,
    MissingDependencyError,
    MissingError,
)
from curator.mix.files import MANIFEST_FILE, mix_path
from curator.mix.identity import read_manifest
from curator.recipe.base import Strict
from curator.store.store import Store

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_FILE = "manifest.sig.json"
_CONTEXT = b"ballast manifest 1\n"  # a signature of something else is never one of a manifest


class Signature(Strict):
    """A signature as stored: raw public key and signature in base64, and what was signed as SHA-256 in hex."""

    algorithm: str
    public_key: str
    signed_sha256: str
    signature: str


@dataclass(frozen=True)
class Signer:
    """A private key that signs manifests."""

    key: "Ed25519PrivateKey"

    @classmethod
    def load(cls, path: Path) -> "Signer":
        """The key of a PEM file; raises MissingError without it, BadInputError when it is not an Ed25519 key."""
        return cls(_private_key(path))

    def sign(self, store: Store, tenant: str, mix: str) -> Signature:
        """Sign a mix's manifest and store the signature, replacing an earlier one; raises MissingError without it."""
        content = signed_bytes(_manifest_document(store, tenant, mix))
        signature = Signature(
            algorithm="ed25519",
            public_key=_base64(self.key.public_key().public_bytes_raw()),
            signed_sha256=hashlib.sha256(content).hexdigest(),
            signature=_base64(self.key.sign(content)),
        )
        store.write_json(_signature_path(tenant, mix), signature.model_dump())
        return signature


def signed_bytes(manifest: Mapping[str, Any]) -> bytes:
    """What a signature of a manifest's document is over."""
    return _CONTEXT + orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS)


def sign_mix(store: Store, tenant: str, mix: str, key: Path) -> Signature:
    """Sign a mix's manifest with a private key (PEM) and store the signature, replacing an earlier one.

    Raises MissingError without the mix or the key, BadInputError when the file holds no Ed25519 private key.
    """
    return Signer.load(key).sign(store, tenant, mix)


def read_signature(store: Store, tenant: str, mix: str) -> Signature | None:
    """The signature that lies beside a mix's manifest; None without one. Raises IntegrityError for a damaged one."""
    path = _signature_path(tenant, mix)
    try:
        return Signature.model_validate(store.read_json(path))
    except MissingError:
        return None
    except ValidationError as error:
        raise IntegrityError(f"{path} is not a signature") from error


def check_signature(store: Store, tenant: str, mix: str, key: Path) -> Signature:
    """A mix's signature, when it is that of the public key (PEM) over the manifest as it is now.

    Raises MissingError without the mix, the key or a signature, IntegrityError when the signature is another's or
    the manifest was changed.
    """
    document = _manifest_document(store, tenant, mix)
    found = read_signature(store, tenant, mix)
    if found is None:
        _public_key(key)
        raise MissingError(f"mix {mix} has no signature: `python -m curator mix ... --sign-key KEY` makes one")
    verify_signature(document, found, key)
    return found


def verify_signature(manifest: Mapping[str, Any], signature: Signature, key: Path) -> None:
    """Check that a signature is that of the public key (PEM) over a manifest's document, wherever both came from.

    Raises MissingError without the key, IntegrityError when the signature is another's or the manifest was changed.
    """
    from cryptography.exceptions import InvalidSignature

    public = _public_key(key)
    shown = manifest.get("mix_id", "?")
    try:
        public.verify(base64.b64decode(signature.signature, validate=True), signed_bytes(manifest))
    except binascii.Error as error:
        raise IntegrityError(f"the signature of mix {shown} is not base64") from error
    except InvalidSignature as error:
        raise IntegrityError(
            f"the signature of mix {shown} is not that of {key.name} over its manifest: another key signed it, or the "
            "manifest was changed"
        ) from error


def _manifest_document(store: Store, tenant: str, mix: str) -> dict[str, Any]:
    """A mix's manifest as stored: one that this version would write otherwise keeps its signature."""
    read_manifest(store, tenant, mix)
    return store.read_json(f"{mix_path(tenant, mix)}/{MANIFEST_FILE}")


def _signature_path(tenant: str, mix: str) -> str:
    return f"{mix_path(tenant, mix)}/{SIGNATURE_FILE}"


def _private_key(path: Path) -> "Ed25519PrivateKey":
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise _no_cryptography() from error
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError) as error:
        raise BadInputError(f"{path.name} holds no private key in PEM without a password: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInputError(
            f"{path.name} holds another kind of key: make one with `openssl genpkey -algorithm ed25519`"
        )
    return key


def _public_key(path: Path) -> "Ed25519PublicKey":
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise _no_cryptography() from error
    try:
        key = load_pem_public_key(_read(path))
    except ValueError as error:
        raise BadInputError(f"{path.name} holds no public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadInputError(f"{path.name} holds another kind of key than Ed25519")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingError(f"no key can be read from {path}: {error.strerror}") from error


def _no_cryptography() -> MissingDependencyError:
    return MissingDependencyError('signatures need the package cryptography: pip install "ballast-mix[sign]"')


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
