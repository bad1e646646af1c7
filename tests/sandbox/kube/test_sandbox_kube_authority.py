"""The certificates of a cluster, as a strict client looks at them."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from raynest_pipeline.sandbox.kube.authority import ADMINS, Authority
from raynest_pipeline.sandbox.kube.kubeconfig import admin_kubeconfig


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, name="c1")


def test_the_ca_is_one(authority: Authority) -> None:
    certificate = authority.certificate
    assert certificate.subject == certificate.issuer
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, True)
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    certificate.verify_directly_issued_by(certificate)


def test_a_client_certificate_says_who_and_how_long(authority: Authority) -> None:
    pem, _, expires = authority.issue_certificate("someone", (ADMINS, "others"), minutes=30)
    certificate = x509.load_pem_x509_certificate(pem)
    certificate.verify_directly_issued_by(authority.certificate)
    groups = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    assert [group.value for group in groups] == [ADMINS, "others"]
    assert certificate.not_valid_after_utc == expires
    assert abs(expires - datetime.now(UTC) - timedelta(minutes=30)) < timedelta(seconds=5)
    purpose = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purpose) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_server_certificate_is_for_loopback(authority: Authority, tmp_path: Path) -> None:
    context = authority.server_context()
    assert context.verify_mode is ssl.CERT_OPTIONAL
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    certificate = x509.load_pem_x509_certificate((tmp_path / "apiserver.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    purpose = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purpose) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_identities_are_read_back(authority: Authority) -> None:
    pem, _, _ = authority.issue_certificate("someone", (ADMINS,), minutes=5)
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    identity = authority.by_certificate(der)
    assert identity is not None
    assert (identity.user, identity.groups, identity.is_admin) == (
        "someone",
        (ADMINS, "system:authenticated"),
        True,
    )
    authority.revoke_issued()
    assert authority.by_certificate(der) is None


def test_serial_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    serials = []
    for _ in range(3):
        pem, _, _ = Authority(tmp_path, name="c1").issue_certificate("x", (), minutes=5)
        serials.append(x509.load_pem_x509_certificate(pem).serial_number)
    assert serials == sorted(set(serials))


def test_every_kubeconfig_has_its_own_key(authority: Authority) -> None:
    users = []
    for _ in range(2):
        text, _ = admin_kubeconfig(authority, "c1", "https://127.0.0.1:1", 15)
        users.append(yaml.safe_load(text)["users"][0]["user"])
    assert users[0]["client-key-data"] != users[1]["client-key-data"]


def test_a_wrong_kind_of_key_is_noticed(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    Authority(tmp_path, name="c1")
    key = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "ca.key").write_bytes(key)
    with pytest.raises(ValueError, match="is not an EC key"):
        Authority(tmp_path, name="c1")
