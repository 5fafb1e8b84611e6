"""The certificates of a server, read and checked before anything listens, and again when they change.

Whoever renews certificates writes files, every month or two, and expects servers to see it. Connections that
are open keep the certificate that they began with.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any

from neve.errors import InvalidRequest, NotFound, PermissionDenied, Unavailable
from neve.serving.renewed import Renewed
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    import ssl

    import grpc
    from cryptography import x509


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """The options that name files, all PEM."""

    certificate: str | None = None
    """With the chain that leads to an authority, the server's own first."""
    key: str | None = None
    client_ca: str | None = None
    """The authorities whose certificates clients may show."""
    admin_ca: str | None = None
    """The same for those who administer."""

    def absolute(self) -> TlsFiles:
        """The same from whichever folder they are opened."""
        return TlsFiles(**{name: path and os.path.abspath(path) for name, path in vars(self).items()})

    def named(self) -> list[str]:
        """Those that are named."""
        return [path for path in astuple(self) if path is not None]


@dataclass(frozen=True, kw_only=True)
class Tls:
    """What the files hold."""

    certificate: str
    key: str = field(repr=False)
    client_ca: str | None = None
    admin_ca: str | None = None
    files: TlsFiles = TlsFiles()
    """Where it comes from."""

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Tls:
        """The inverse of ``asdict``."""
        return cls(**{**document, "files": TlsFiles(**document["files"])})

    def authority(self, *, admin: bool) -> str | None:
        """Whose certificates clients must show, if they must."""
        return self.admin_ca if admin else self.client_ca

    def context(self) -> ssl.SSLContext:
        """That of new connections. Raises ``InvalidRequest`` if the library does not take the
        certificates: it has its own opinion on what is strong enough."""
        import ssl

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            with _as_file(self.certificate) as certificate, _as_file(self.key) as key:
                context.load_cert_chain(certificate, key)
            if self.client_ca is not None:
                with _as_file(self.client_ca) as authorities:
                    context.load_verify_locations(authorities)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ValueError) as error:
            path = self.files.certificate
            raise InvalidRequest(f"the certificate {path} cannot be used: {error}") from error
        return context


@contextlib.contextmanager
def _as_file(text: str) -> Iterator[str]:
    """A path under which the library finds what we have read, and nothing that was written since."""
    descriptor = os.memfd_create("neve-tls")
    with open(descriptor, "wb") as file:
        file.write(text.encode())
        file.flush()
        yield f"/proc/self/fd/{descriptor}"


def renewed_context(tls: Tls) -> Renewed[ssl.SSLContext]:
    """``tls.context()``, and another one when the files have changed. Raises the same."""
    return Renewed(tls.files.named(), tls.context, lambda: _again(tls).context(), seen=False)


def renewed_credentials(tls: Tls, *, admin: bool) -> grpc.ServerCredentials:
    """Those of a listening socket, of which each connection sees what the files hold then. With an
    authority, it insists on certificates of clients."""
    import grpc

    def made(tls: Tls) -> grpc.ServerCertificateConfiguration:
        authority = tls.authority(admin=admin)
        return grpc.ssl_server_certificate_configuration(
            [(tls.key.encode(), tls.certificate.encode())],
            root_certificates=None if authority is None else authority.encode(),
        )

    first = last = made(tls)
    renewed = Renewed(tls.files.named(), lambda: first, lambda: made(_again(tls)), seen=False)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Is called in a thread of the library for each connection; None: nothing is new."""
        nonlocal last
        found = renewed.get()
        if found is last:
            return None
        last = found
        return found

    required = tls.authority(admin=admin) is not None
    # The stubs forget that it may return None.
    return grpc.dynamic_ssl_server_credentials(first, fetch, required)  # type: ignore[arg-type]


def _again(tls: Tls) -> Tls:
    """What the files of ``tls`` hold now."""
    found = read_tls(tls.files)
    assert found is not None
    if found != tls:  # Else it is what was read at the start.
        LOGGER.info("read the renewed certificate %s", tls.files.certificate)
    return found


def read_tls(files: TlsFiles) -> Tls | None:
    """Reads the files, if any are named, and checks that they belong together.

    Raises ``InvalidRequest`` and ``NotFound``, ``PermissionDenied``, ``Unavailable`` with the option
    and the file.
    """
    if files == TlsFiles():
        return None
    if files.certificate is None or files.key is None:
        missing = "--tls-cert" if files.certificate is None else "--tls-key"
        raise InvalidRequest(f"TLS needs a certificate and its key: {missing} is missing")
    tls = Tls(
        certificate=_read("--tls-cert", files.certificate),
        key=_read("--tls-key", files.key),
        client_ca=None if files.client_ca is None else _read("--tls-client-ca", files.client_ca),
        admin_ca=None if files.admin_ca is None else _read("--tls-admin-ca", files.admin_ca),
        files=files.absolute(),
    )
    certificate = _certificates("--tls-cert", files.certificate, tls.certificate)[0]
    _check_key(files, tls, certificate)
    _warn_of_dates(files.certificate, certificate)
    for option, path, text in (
        ("--tls-client-ca", files.client_ca, tls.client_ca),
        ("--tls-admin-ca", files.admin_ca, tls.admin_ca),
    ):
        if path is not None and text is not None:
            _certificates(option, path, text)
    return tls


def _read(option: str, path: str) -> str:
    try:
        # Comments may be in any encoding.
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as error:
        kind = {FileNotFoundError: NotFound, PermissionError: PermissionDenied}.get(type(error), Unavailable)
        raise kind(f"{option} {path}: {error.strerror}") from error


def _certificates(option: str, path: str, text: str) -> list[x509.Certificate]:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(text.encode())
    except ValueError as error:
        raise InvalidRequest(f"{option} {path}: holds no certificate in PEM form") from error


def _check_key(files: TlsFiles, tls: Tls, certificate: x509.Certificate) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(tls.key.encode(), password=None)
    except TypeError as error:
        raise InvalidRequest(f"--tls-key {files.key}: is encrypted; there is nobody to ask") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidRequest(f"--tls-key {files.key}: holds no private key in PEM form") from error
    if key.public_key() != certificate.public_key():
        raise InvalidRequest(f"--tls-key {files.key}: does not belong to the certificate {files.certificate}")


def _warn_of_dates(path: str, certificate: x509.Certificate) -> None:
    now = datetime.datetime.now(datetime.UTC)
    if now > certificate.not_valid_after_utc:
        LOGGER.warning("--tls-cert %s: expired on %s", path, certificate.not_valid_after_utc.date())
    elif now < certificate.not_valid_before_utc:
        LOGGER.warning("--tls-cert %s: not valid before %s", path, certificate.not_valid_before_utc.date())
