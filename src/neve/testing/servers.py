"""In-process daemons on real sockets, and throw-away certificates for them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from neve.server.app import Binding, Daemon
from neve.server.limits import Limits
from neve.store.services import Services, open_services

T = TypeVar("T")

_VALID_DAYS = 1
_STOP_GRACE_SECONDS = 0.5


@dataclass(frozen=True)
class Certificates:
    """Files, all PEM. Server and client certificate are signed by the same authority."""

    ca: Path
    server_certificate: Path
    """For ``localhost``, ``127.0.0.1`` and ``::1``."""
    server_key: Path
    client_certificate: Path
    client_key: Path

    def server_credentials(self) -> grpc.ServerCredentials:
        """Those of a server that insists on client certificates."""
        pair = (self.server_key.read_bytes(), self.server_certificate.read_bytes())
        return grpc.ssl_server_credentials([pair], self.ca.read_bytes(), require_client_auth=True)

    def channel_credentials(self, *, client: bool = True) -> grpc.ChannelCredentials:
        """Those of a client; without ``client`` it has no certificate to show."""
        if not client:
            return grpc.ssl_channel_credentials(self.ca.read_bytes())
        pair = (self.client_key.read_bytes(), self.client_certificate.read_bytes())
        return grpc.ssl_channel_credentials(self.ca.read_bytes(), *pair)


@dataclass
class RunningDaemon:
    """A daemon that serves in a thread of this process."""

    services: Services
    url: str
    """Its address as a store's: ``grpc+unix:///...``, ``grpc+http://...`` or ``grpc+https://...``."""
    admin_url: str | None
    """That of the socket where it may be administered."""
    target: str
    """Its address as gRPC takes it."""
    admin_target: str | None
    certificates: Certificates | None
    """With TLS: whose client certificate it takes."""
    _thread: _LoopThread
    _daemon: Daemon
    _stopped: bool = False

    def channel(self, *, admin: bool = False) -> grpc.Channel:
        """A synchronous channel; the caller closes it."""
        if admin:
            assert self.admin_target is not None
            return grpc.insecure_channel(self.admin_target)
        if self.certificates is not None:
            return grpc.secure_channel(self.target, self.certificates.channel_credentials())
        return grpc.insecure_channel(self.target)

    def stop(self, grace: float | None = _STOP_GRACE_SECONDS) -> None:
        """Ends it; open calls have ``grace`` seconds. A second time it does nothing."""
        if not self._stopped:
            self._stopped = True
            self._thread.run(self._daemon.stop(grace))


@contextlib.contextmanager
def running_daemon(
    services_or_url: Services | str,
    *,
    address: Literal["unix", "tcp", "tls"] = "unix",
    limits: Limits | None = None,
    read_only: bool = False,
    admin: bool = True,
    folder: Path,
) -> Iterator[RunningDaemon]:
    """Serves a store while the block runs; closes it only if it was given by its address.

    Certificates are made in ``folder``; sockets in one of their own, because their paths must be short.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(services_or_url, Services):
            services = services_or_url
        else:
            services = open_services(services_or_url)
            stack.callback(services.close)
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="neve-"))
        certificates = make_certificates(folder) if address == "tls" else None
        bindings = [_binding(address, sockets, certificates)]
        if admin:
            bindings.append(Binding(f"unix:{sockets}/admin", admin=True))
        thread = stack.enter_context(_loop_thread())
        daemon, ports = thread.run(_started(services, limits, read_only, bindings))
        target = bindings[0].address if address == "unix" else _target(address, ports[0])
        running = RunningDaemon(
            services=services,
            url=_url(address, target),
            admin_url=f"grpc+unix://{sockets}/admin" if admin else None,
            target=target,
            admin_target=f"unix:{sockets}/admin" if admin else None,
            certificates=certificates,
            _thread=thread,
            _daemon=daemon,
        )
        stack.callback(running.stop)
        yield running


async def _started(
    services: Services, limits: Limits | None, read_only: bool, bindings: list[Binding]
) -> tuple[Daemon, list[int]]:
    daemon = Daemon(services, limits, read_only=read_only)
    try:
        return daemon, await daemon.start(bindings)
    except BaseException:
        await daemon.stop(0)
        raise


def _binding(address: str, sockets: str, certificates: Certificates | None) -> Binding:
    if address == "unix":
        return Binding(f"unix:{sockets}/socket")
    if certificates is None:
        return Binding("127.0.0.1:0")
    return Binding("localhost:0", certificates.server_credentials())


def _target(address: str, port: int) -> str:
    return f"localhost:{port}" if address == "tls" else f"127.0.0.1:{port}"


def _url(address: str, target: str) -> str:
    if address == "unix":
        return f"grpc+unix://{target.removeprefix('unix:')}"
    return f"grpc+https://{target}" if address == "tls" else f"grpc+http://{target}"


class _LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the loop and waits for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


@contextlib.contextmanager
def _loop_thread() -> Iterator[_LoopThread]:
    started: list[asyncio.AbstractEventLoop] = []
    ready = threading.Event()
    over = asyncio.Event()

    async def live() -> None:
        started.append(asyncio.get_running_loop())
        ready.set()
        await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(live(),), name="neve-daemon", daemon=True)
    thread.start()
    ready.wait()
    try:
        yield _LoopThread(started[0])
    finally:
        started[0].call_soon_threadsafe(over.set)
        thread.join()


def make_certificates(folder: Path) -> Certificates:
    """Makes an authority, a server's and a client's certificate, valid for a day, in ``folder``."""
    files = Certificates(
        ca=folder / "ca.pem",
        server_certificate=folder / "server.pem",
        server_key=folder / "server.key",
        client_certificate=folder / "client.pem",
        client_key=folder / "client.key",
    )
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = _name(f"neve test CA {x509.random_serial_number()}")
    ca = _certificate(ca_name, ca_name, ca_key, ca_key, x509.BasicConstraints(ca=True, path_length=0))
    files.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    alternatives = x509.SubjectAlternativeName([x509.DNSName("localhost"), *addresses])
    for certificate_file, key_file, name, extension in (
        (files.server_certificate, files.server_key, "localhost", alternatives),
        (files.client_certificate, files.client_key, "client", None),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(_name(name), ca_name, key, ca_key, extension)
        certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(_encoded(key))
        key_file.chmod(0o600)
    return files


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _encoded(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType | None,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(issuer_key, hashes.SHA256())
