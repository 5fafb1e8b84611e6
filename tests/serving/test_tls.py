"""The certificates of a server."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from neve.errors import InvalidRequest, NeveError, NotFound, PermissionDenied, Unavailable
from neve.serving.addresses import (
    SUN_PATH_BYTES,
)
from neve.serving.sockets import Host
from neve.serving.tls import Tls, TlsFiles, read_tls
from neve.testing.servers import Certificates, make_certificates

IPV4 = Host(socket.AF_INET, "127.0.0.1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with a short path, as sockets need it."""
    assert len(str(tmp_path)) < SUN_PATH_BYTES - 20, "use a shorter --basetemp"
    return tmp_path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def connects(path: Path | str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def tls(certificates: Certificates, **files: Path) -> Tls:
    found = read_tls(
        TlsFiles(
            certificate=str(certificates.server_certificate),
            key=str(certificates.server_key),
            **{name: str(path) for name, path in files.items()},
        )
    )
    assert found is not None
    return found


# Certificates.


def test_certificates_are_read(certificates: Certificates) -> None:
    assert read_tls(TlsFiles()) is None
    found = tls(certificates, client_ca=certificates.ca, admin_ca=certificates.ca)
    assert found.certificate == certificates.server_certificate.read_text()
    assert found.key == certificates.server_key.read_text()
    assert found.client_ca == found.admin_ca == certificates.ca.read_text()


def test_certificates_that_cannot_be_used(certificates: Certificates, tmp_path: Path) -> None:
    good, key, ca = (
        str(p) for p in (certificates.server_certificate, certificates.server_key, certificates.ca)
    )
    other = str(certificates.client_key)
    junk = tmp_path / "junk"
    junk.write_bytes(b"\xff no certificate")
    locked = tmp_path / "locked"
    loaded = serialization.load_pem_private_key(certificates.server_key.read_bytes(), None)
    locked.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    cases: list[tuple[type[NeveError], str, TlsFiles]] = [
        (InvalidRequest, "--tls-key is missing", TlsFiles(certificate=good)),
        (InvalidRequest, "--tls-cert is missing", TlsFiles(key=key)),
        (InvalidRequest, "--tls-cert is missing", TlsFiles(client_ca=ca)),
        (InvalidRequest, "--tls-cert is missing", TlsFiles(admin_ca=ca)),
        (NotFound, "--tls-cert /none: No such file", TlsFiles(certificate="/none", key=key)),
        (Unavailable, "--tls-key /: Is a directory", TlsFiles(certificate=good, key="/")),
        (InvalidRequest, f"--tls-cert {junk}: holds no cert", TlsFiles(certificate=str(junk), key=key)),
        (InvalidRequest, f"--tls-key {junk}: holds no private", TlsFiles(certificate=good, key=str(junk))),
        (InvalidRequest, f"--tls-key {locked}: is encrypted", TlsFiles(certificate=good, key=str(locked))),
        (InvalidRequest, f"--tls-key {other}: does not belong", TlsFiles(certificate=good, key=other)),
        (
            InvalidRequest,
            f"--tls-client-ca {junk}: holds",
            TlsFiles(certificate=good, key=key, client_ca=str(junk)),
        ),
        (InvalidRequest, f"--tls-admin-ca {key}: holds", TlsFiles(certificate=good, key=key, admin_ca=key)),
    ]
    for kind, complaint, files in cases:
        with pytest.raises(kind, match=complaint):
            read_tls(files)


def test_certificates_that_may_not_be_read(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.touch(0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server.pem").write_bytes(certificates.server_certificate.read_bytes())
    files = TlsFiles(certificate="server.pem", key="secret")
    root = os.geteuid() == 0
    if root:
        # Root may read everything; relative paths, because nobody else may enter the test's folders.
        tmp_path.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionDenied, match="--tls-key secret: Permission denied"):
            read_tls(files)
    finally:
        if root:
            os.seteuid(0)
