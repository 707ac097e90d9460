"""Ed25519 signatures and AES-256-GCM, of the package cryptography; the one file that imports it for models.

Called by the rest of this package and by `dlproxy models`. Not aware of: files, manifests.
"""

from typing import Any

from dlproxy.instance.runtime import ModelError

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16


class KeyFormatError(Exception):
    """What should be a key is none; the message says what it is instead."""


def key_pair() -> tuple[bytes, bytes]:
    """A new private key and its public one, both as PEM."""
    _, serialization, ed25519 = _cryptography()
    private = ed25519.Ed25519PrivateKey.generate()
    encodings = serialization.Encoding.PEM
    return (
        private.private_bytes(encodings, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        private.public_key().public_bytes(encodings, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def private_key(pem: bytes) -> Any:
    """It signs with `sign`, and has its `public_key()`. Raises KeyFormatError."""
    _, serialization, ed25519 = _cryptography()
    if b"PUBLIC KEY" in pem:
        raise KeyFormatError("it is a public key; what signs is the private one beside it")
    try:
        key = serialization.load_pem_private_key(pem, None)
    except TypeError:
        raise KeyFormatError("it is protected by a password, which dlproxy does not ask for") from None
    except Exception:  # ValueError and cryptography's own
        raise KeyFormatError("it is not a private key in PEM") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise KeyFormatError("it is not an Ed25519 key; `dlproxy models keygen` makes one")
    return key


def public_key(pem: bytes) -> bytes:
    """Raw. Raises KeyFormatError."""
    _, serialization, ed25519 = _cryptography()
    if b"PRIVATE KEY" in pem:
        raise KeyFormatError("it is a private key, which does not belong where models are served: give the .pub beside it")
    try:
        key = serialization.load_pem_public_key(pem)
    except Exception:  # ValueError and cryptography's own
        raise KeyFormatError("it is not a public key in PEM") from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise KeyFormatError("it is not an Ed25519 key; `dlproxy models keygen` makes one")
    raw: bytes = key.public_bytes_raw()
    return raw


def is_signed(public: bytes, signed: bytes, data: bytes) -> bool:
    exceptions, _, ed25519 = _cryptography()
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signed, data)
    except (exceptions.InvalidSignature, ValueError):
        return False
    return True


class Aead:
    """AES-256-GCM under one key. The caller never uses a nonce twice."""

    def __init__(self, key: bytes) -> None:
        _cryptography()
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._aes = AESGCM(key)

    def encrypted(self, nonce: bytes, data: bytes, bound: bytes) -> bytes:
        """With its tag behind. `bound`: what must be the same when it is decrypted."""
        return self._aes.encrypt(nonce, data, bound)

    def decrypted(self, nonce: bytes, data: bytes | bytearray, bound: bytes) -> bytes | None:
        """None if a bit of anything has changed."""
        from cryptography.exceptions import InvalidTag

        if len(data) < TAG_BYTES:
            return None
        try:
            return self._aes.decrypt(nonce, data, bound)
        except InvalidTag:
            return None


def _cryptography() -> tuple[Any, Any, Any]:
    try:
        from cryptography import exceptions
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ModelError("signed and encrypted models need cryptography: pip install 'dlproxy[security]'") from None
    return exceptions, serialization, ed25519
