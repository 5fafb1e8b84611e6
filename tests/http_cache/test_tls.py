"""TLS before a cache: handshakes that do not end, and certificates that are renewed."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from neve.errors import InvalidRequest
from neve.http_cache import handshakes as module
from neve.serving.tls import Tls, TlsFiles, read_tls
from neve.store.services import Services
from neve.testing.servers import Certificates, make_certificates
from tests.http_cache.serving import SECONDS, all_of, process, serving, until
from tests.logged import logged
from tests.store.helpers import memory_services

GET = b"GET /nix-cache-info HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    opened = memory_services()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def tls_of(certificates: Certificates) -> Tls:
    files = TlsFiles(certificate=str(certificates.server_certificate), key=str(certificates.server_key))
    found = read_tls(files)
    assert found is not None
    return found


def context_of(certificates: Certificates) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificates.ca)


def answer(port: int, certificates: Certificates) -> bytes:
    """What comes back. Raises ``OSError`` if the server has another certificate, or nobody is let in."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection,
        context_of(certificates).wrap_socket(connection, server_hostname="localhost") as encrypted,
    ):
        encrypted.sendall(GET)
        return all_of(encrypted)


def is_let_in(port: int, certificates: Certificates) -> bool:
    try:
        return answer(port, certificates).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


def test_handshakes_are_connections(services: Services, certificates: Certificates) -> None:
    """A crowd that does not even begin to speak takes no more places than one that does."""
    limits = {"max_connections": 5}
    with serving(services, limits=limits, tls=tls_of(certificates)) as cache:
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(cache.connect())
            assert cache.raw(b"") == b""
            assert not is_let_in(cache.port, certificates)
        until(lambda: is_let_in(cache.port, certificates))


@pytest.mark.parametrize("beginning", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_handshakes_that_do_not_end(
    services: Services, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    """They have less time than a connection that has come to speak HTTP."""
    assert module.LONGEST_SECONDS == 10
    monkeypatch.setattr(module, "LONGEST_SECONDS", 0.5)
    with serving(services, limits={"idle_seconds": 600.0}, tls=tls_of(certificates)) as cache:
        with cache.connect() as connection:
            connection.sendall(beginning)
            all_of(connection)  # Or it fails: nothing comes before the time of the test is up.
        until(lambda: is_let_in(cache.port, certificates))


def test_impatience_is_for_handshakes_too(services: Services, certificates: Certificates) -> None:
    with (
        serving(services, limits={"idle_seconds": 0.2}, tls=tls_of(certificates)) as cache,
        cache.connect() as connection,
    ):
        all_of(connection)


class Spoken:
    """A client that has its bytes in its own hands."""

    def __init__(self, connection: socket.socket, certificates: Certificates) -> None:
        self._connection = connection
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context_of(certificates).wrap_bio(self._in, self._out, server_hostname="localhost")

    def shake_and_send(self, data: bytes) -> None:
        """The end of the handshake and what follows it go in one piece."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._connection.sendall(self._out.read())
                self._receive()
        self._tls.write(data)
        self._connection.sendall(self._out.read())

    def read(self) -> bytes:
        """The answer to ``GET``."""
        answer = b""
        while not answer.endswith(b"\nPriority: 39\n"):
            try:
                answer += self._tls.read(65536)
            except ssl.SSLWantReadError:
                self._receive()
        return answer

    def _receive(self) -> None:
        data = self._connection.recv(65536)
        assert data, "it ended"
        self._in.write(data)


def test_a_request_right_behind_the_handshake(services: Services, certificates: Certificates) -> None:
    with serving(services, tls=tls_of(certificates)) as cache:
        for _ in range(20):
            with cache.connect() as connection:
                client = Spoken(connection, certificates)
                client.shake_and_send(GET)
                assert client.read().startswith(b"HTTP/1.1 200 ")


def test_one_who_leaves_during_the_handshake(services: Services, certificates: Certificates) -> None:
    with serving(services, limits={"max_connections": 3}, tls=tls_of(certificates)) as cache:
        for beginning in (b"", b"\x16", b"GET / HTTP/1.1\r\n\r\n", bytes(100_000)) * 3:
            with cache.connect() as connection, contextlib.suppress(ConnectionError):
                connection.sendall(beginning)
        until(lambda: is_let_in(cache.port, certificates))


def test_it_ends_during_a_handshake(services: Services, certificates: Certificates) -> None:
    with contextlib.ExitStack() as stack:
        with serving(services, tls=tls_of(certificates)) as cache:
            connection = stack.enter_context(cache.connect())
            assert is_let_in(cache.port, certificates)
        assert all_of(connection) == b""


# Renewal.


@pytest.fixture
def renew(tmp_path: Path) -> Callable[[Certificates], None]:
    """Puts certificates where the server has its own, as the programs do that renew them."""
    (tmp_path / "live").mkdir()

    def put(certificates: Certificates) -> None:
        for file in (certificates.server_certificate, certificates.server_key):
            new = tmp_path / "new"
            shutil.copy(file, new)
            new.rename(tmp_path / "live" / file.name)

    return put


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("others"))


def live(folder: Path) -> Tls:
    files = TlsFiles(certificate=str(folder / "live/server.pem"), key=str(folder / "live/server.key"))
    found = read_tls(files)
    assert found is not None
    return found


def test_certificates_are_renewed(
    services: Services,
    certificates: Certificates,
    others: Certificates,
    tmp_path: Path,
    renew: Callable[[Certificates], None],
) -> None:
    renew(certificates)
    with serving(services, tls=live(tmp_path)) as cache, cache.connect() as connection:
        client = Spoken(connection, certificates)
        client.shake_and_send(GET.replace(b"close", b"keep-alive"))
        assert client.read().startswith(b"HTTP/1.1 200 ")
        assert is_let_in(cache.port, certificates)
        renew(others)
        assert is_let_in(cache.port, others)
        assert not is_let_in(cache.port, certificates)
        # Whoever is in, stays in.
        client.shake_and_send(GET)
        assert client.read().startswith(b"HTTP/1.1 200 ")


def test_what_cannot_be_used_changes_nothing(
    services: Services,
    certificates: Certificates,
    others: Certificates,
    tmp_path: Path,
    renew: Callable[[Certificates], None],
) -> None:
    renew(certificates)
    certificate, key = tmp_path / "live/server.pem", tmp_path / "live/server.key"
    with serving(services, tls=live(tmp_path)) as cache, logged() as messages:
        assert is_let_in(cache.port, certificates)
        messages.clear()
        for spoil, complaint in (
            (lambda: certificate.write_bytes(b"\xff rubbish"), "holds no certificate"),
            # Half a renewal: the key is to follow.
            (lambda: shutil.copy(others.server_certificate, certificate), "does not belong to"),
            (lambda: certificate.unlink(), "No such file"),
        ):
            spoil()
            assert is_let_in(cache.port, certificates)
            assert is_let_in(cache.port, certificates)
            (message,) = messages
            assert complaint in message
            assert message.endswith("; what was known before stays")
            messages.clear()
        shutil.copy(others.server_certificate, certificate)
        shutil.copy(others.server_key, key)
        assert is_let_in(cache.port, others)


def test_a_key_that_is_too_weak_is_told_at_the_start(services: Services, tmp_path: Path) -> None:
    """The files are fine; it is the library that does not take them."""
    weak = make_certificates(tmp_path)
    key = rsa.generate_private_key(65537, 1024)
    _sign_anew(weak, key)
    with pytest.raises(InvalidRequest, match=r"the certificate .*server\.pem cannot be used: .*TOO_SMALL"):
        tls_of(weak).context()
    with pytest.raises(InvalidRequest), serving(services, tls=tls_of(weak)):
        raise AssertionError("it serves")


def _sign_anew(certificates: Certificates, key: rsa.RSAPrivateKey) -> None:
    old = x509.load_pem_x509_certificate(certificates.server_certificate.read_bytes())
    new = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.subject)
        .public_key(key.public_key())
        .serial_number(old.serial_number)
        .not_valid_before(old.not_valid_before_utc)
        .not_valid_after(old.not_valid_after_utc)
        .sign(key, hashes.SHA256())
    )
    certificates.server_certificate.write_bytes(new.public_bytes(serialization.Encoding.PEM))
    certificates.server_key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def test_workers_renew_theirs(
    certificates: Certificates, others: Certificates, tmp_path: Path, renew: Callable[[Certificates], None]
) -> None:
    renew(certificates)
    files = (f"--tls-cert={tmp_path}/live/server.pem", f"--tls-key={tmp_path}/live/server.key")
    with process(tmp_path / "store", *files, "--workers", "2") as cache:
        port = int(cache.address.rpartition(":")[2])
        assert is_let_in(port, certificates)
        renew(others)
        assert all(is_let_in(port, others) for _ in range(10))
        assert cache.end() == 0
