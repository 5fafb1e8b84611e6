"""The certificates of a server, read and checked before anything listens."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neve.errors import InvalidRequest, NotFound, PermissionDenied, Unavailable
from neve.telemetry import LOGGER

if TYPE_CHECKING:
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


@dataclass(frozen=True, kw_only=True)
class Tls:
    """What the files hold."""

    certificate: str
    key: str
    client_ca: str | None = None
    admin_ca: str | None = None

    def credentials(self, *, admin: bool) -> grpc.ServerCredentials:
        """Those of a listening socket: with an authority, it insists on certificates of clients."""
        import grpc

        authority = self.admin_ca if admin else self.client_ca
        return grpc.ssl_server_credentials(
            [(self.key.encode(), self.certificate.encode())],
            root_certificates=authority.encode() if authority is not None else None,
            require_client_auth=authority is not None,
        )


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
