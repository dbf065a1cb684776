from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from curator.errors import BadInputError, IntegrityError, MissingError
from curator.mix.build import build_mix
from curator.mix.sign import check_signature, sign_mix
from curator.store.store import Store
from tests.mix_stores import recipe, scored_store, task_set


def key_files(folder: Path, name: str) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Store, str]:
    store = scored_store(tmp_path / "store")
    return store, build_mix(store, task_set(tmp_path, 20), recipe(rows=2)).mix_id


def test_a_signature_holds_until_the_manifest_changes(mixed: tuple[Store, str], tmp_path: Path) -> None:
    store, mix = mixed
    private, public = key_files(tmp_path, "provider")
    made = sign_mix(store, "local", mix, private)
    assert check_signature(store, "local", mix, public) == made
    # Ed25519 is deterministic: signing again changes nothing.
    assert sign_mix(store, "local", mix, private) == made
    path = f"mixes/local/{mix}/manifest.json"
    document = store.read_json(path)
    store.write_json(path, dict(reversed(document.items())))  # other bytes, the same document
    assert check_signature(store, "local", mix, public) == made
    store.write_json(path, {**document, "n_safe": 3})
    with pytest.raises(IntegrityError, match="the manifest was changed"):
        check_signature(store, "local", mix, public)


def test_anothers_signature_is_refused(mixed: tuple[Store, str], tmp_path: Path) -> None:
    store, mix = mixed
    private, _ = key_files(tmp_path, "one")
    _, other = key_files(tmp_path, "two")
    with pytest.raises(MissingError, match="no signature"):
        check_signature(store, "local", mix, other)
    sign_mix(store, "local", mix, private)
    with pytest.raises(IntegrityError, match=r"not that of two\.pub\.pem"):
        check_signature(store, "local", mix, other)
    store.write_json(f"mixes/local/{mix}/manifest.sig.json", {"signature": "?"})
    with pytest.raises(IntegrityError, match="is not a signature"):
        check_signature(store, "local", mix, other)


def test_what_is_no_key_is_refused(mixed: tuple[Store, str], tmp_path: Path) -> None:
    store, mix = mixed
    with pytest.raises(MissingError, match="no key can be read"):
        sign_mix(store, "local", mix, tmp_path / "none.pem")
    path = tmp_path / "text.pem"
    path.write_text("hello")
    with pytest.raises(BadInputError, match="no private key"):
        sign_mix(store, "local", mix, path)
    with pytest.raises(BadInputError, match="no public key"):
        check_signature(store, "local", mix, path)
    path.write_bytes(
        generate_private_key(SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(BadInputError, match="another kind of key"):
        sign_mix(store, "local", mix, path)
