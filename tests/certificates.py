"""Certificates of 127.0.0.1, and an authority that signs them, for tests of TLS."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


class Authority:
    """Signs certificates, which are files in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._signed(name, self._key, authority=True)
        self.path = folder / f"{name}.ca.pem"
        self.path.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def own(self) -> Path:
        """Its own certificate with its key, in one file."""
        return self._written(self._name, self._key, self.certificate)

    def issue(self, name: str, *, file: str = "", days: float = 1.0, from_days: float = -2.0) -> Path:
        """A certificate with its key, in one file, which holds between these days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._written(file or name, key, self._signed(name, key, days=days, from_days=from_days))

    def _written(self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Path:
        path = self._folder / f"{name}.pem"
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
        path.with_suffix(".new").write_bytes(pem)
        path.with_suffix(".new").replace(path)
        return path

    def _signed(
        self, name: str, key: ec.EllipticCurvePrivateKey, *, authority: bool = False, days: float = 1.0, from_days: float = -2.0
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self._name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + from_days * DAY)
            .not_valid_after(now + days * DAY)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        return made.sign(self._key, hashes.SHA256())


def make_certificate(folder: Path) -> Path:
    """One that nobody has signed, with its key, in one file."""
    return Authority(folder, "test").own()


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def trusting() -> ssl.SSLContext:
    """Of a client: anybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
