"""A cluster's certificate authority and the credentials it has issued."""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from raynest_pipeline.sandbox.state import read_json, write_json, write_private

ADMINS = "system:masters"

# OpenSSL's X509_V_FLAG_NO_CHECK_TIME: an expired client certificate must pass the handshake and then get
# HTTP 401, as from a real API server, rather than a TLS alert.
_NO_CHECK_TIME = 0x200000

_YEARS = timedelta(days=3650)


@dataclass(frozen=True)
class Identity:
    """Who a request comes from."""

    user: str
    groups: tuple[str, ...] = ()

    @property
    def is_admin(self) -> bool:
        """May it do everything?"""
        return ADMINS in self.groups


ANONYMOUS = Identity("system:anonymous", ("system:unauthenticated",))


class Authority:
    """Issues and judges credentials. Kept in its directory: the CA, and what was issued (hashes only).

    Every credential has a serial number, counted up; revoking means remembering the last serial."""

    def __init__(self, directory: Path, *, name: str) -> None:
        self._directory = directory
        self._name = name
        self._key, self.certificate = self._load_or_create()
        self._ledger: dict[str, Any] = read_json(directory / "credentials.json") or {
            "serial": 1,
            "revoked": 0,
            "tokens": {},
        }

    @property
    def ca_pem(self) -> bytes:
        """The CA certificate, for a kubeconfig's certificate-authority-data."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def _load_or_create(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key_path, certificate_path = self._directory / "ca.key", self._directory / "ca.crt"
        if key_path.exists() and certificate_path.exists():
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError(f"{key_path} is not an EC key")
            return key, x509.load_pem_x509_certificate(certificate_path.read_bytes())
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(f"{self._name}-ca")
        usage = _usage(sign_certificates=True)
        certificate = (
            _certificate(subject, subject, key.public_key(), x509.random_serial_number(), _YEARS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_private(key_path, _pem(key).decode())
        write_private(certificate_path, certificate.public_bytes(serialization.Encoding.PEM).decode())
        return key, certificate

    def _sign(
        self,
        subject: x509.Name,
        serial: int,
        life: timedelta,
        purpose: x509.ObjectIdentifier,
        *names: x509.GeneralName,
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            _certificate(subject, self.certificate.subject, key.public_key(), serial, life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(issuer_key, critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256()), key

    def server_context(self) -> ssl.SSLContext:
        """TLS for the API's socket: our own certificate; a client certificate is asked for, not required."""
        loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        certificate, key = self._sign(
            _subject("kube-apiserver"),
            x509.random_serial_number(),
            _YEARS,
            ExtendedKeyUsageOID.SERVER_AUTH,
            loopback,
            x509.DNSName("localhost"),
        )
        chain = self._directory / "apiserver.pem"
        write_private(chain, (_pem(key) + certificate.public_bytes(serialization.Encoding.PEM)).decode())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(chain)
        context.set_alpn_protocols(["http/1.1"])
        context.load_verify_locations(cadata=self.ca_pem.decode())
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
        return context

    def issue_certificate(
        self, user: str, groups: tuple[str, ...], *, minutes: float
    ) -> tuple[bytes, bytes, datetime]:
        """A client certificate: (certificate PEM, key PEM, expiry in UTC)."""
        certificate, key = self._sign(
            _subject(user, groups),
            self._next_serial(),
            timedelta(minutes=minutes),
            ExtendedKeyUsageOID.CLIENT_AUTH,
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        return pem, _pem(key), certificate.not_valid_after_utc

    def issue_token(self, user: str, groups: tuple[str, ...], *, minutes: float) -> str:
        """A bearer token; only its hash is kept."""
        token = secrets.token_urlsafe(32)
        expires = datetime.now(UTC) + timedelta(minutes=minutes)
        serial = self._next_serial()
        self._ledger["tokens"][_hash(token)] = {
            "user": user,
            "groups": list(groups),
            "expires": expires.timestamp(),
            "serial": serial,
        }
        self._save()
        return token

    def revoke_issued(self) -> None:
        """From now on everything issued so far is refused; what is issued later works."""
        self._ledger["revoked"] = self._ledger["serial"]
        self._save()

    def restore_issued(self) -> None:
        """Take a revocation back."""
        self._ledger["revoked"] = 0
        self._save()

    def by_certificate(self, der: bytes) -> Identity | None:
        """Whose client certificate this is (TLS has verified its chain), None if expired or revoked."""
        identity, serial, start, end = _parsed(der)
        valid = start <= datetime.now(UTC) <= end
        return identity if valid and serial > self._ledger["revoked"] else None

    def by_token(self, token: str) -> Identity | None:
        """Whose bearer token this is, None if unknown, expired or revoked."""
        record = self._ledger["tokens"].get(_hash(token))
        if record is None or record["serial"] <= self._ledger["revoked"]:
            return None
        if record["expires"] < datetime.now(UTC).timestamp():
            return None
        return Identity(record["user"], (*record["groups"], "system:authenticated"))

    def _next_serial(self) -> int:
        self._ledger["serial"] += 1
        self._save()
        return int(self._ledger["serial"])

    def _save(self) -> None:
        write_json(self._directory / "credentials.json", self._ledger)


@lru_cache(maxsize=64)
def _parsed(der: bytes) -> tuple[Identity, int, datetime, datetime]:
    certificate = x509.load_der_x509_certificate(der)
    user = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    groups = [part.value for part in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    identity = Identity(str(user), (*map(str, groups), "system:authenticated"))
    return (
        identity,
        certificate.serial_number,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def _subject(user: str, groups: tuple[str, ...] = ()) -> x509.Name:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, serial: int, life: timedelta
) -> x509.CertificateBuilder:
    start = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        # A certificate must not be in the future for a client whose clock is a little behind.
        .not_valid_before(start - timedelta(minutes=5))
        .not_valid_after(start + life)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
