"""A binary cache on a server, over HTTP.

What can go wrong on the way is sorted here: what may be over in a moment is ``Transient`` and tried
again by ``repeating``; a redirect is followed a bounded number of times, from https never to http, and
only the cache's own host is told who we are.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import NamedTuple, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import httpcore

from neve import telemetry
from neve.errors import InvalidRequest, NeveError, PermissionDenied, Unavailable
from neve.nix.compression import decompressed
from neve.store.substitute.credentials import Credentials, no_credentials
from neve.store.substitute.files import CacheFile, CacheFiles, InvalidAnswer, Transient, naming, quoted
from neve.store.substitute.pace import MIN_BYTES, PacedBackend
from neve.telemetry import CLIENT, LOGGER, Span

T = TypeVar("T")

DEFAULT_TIMEOUT = 30.0
"""Seconds."""
DEFAULT_ATTEMPTS = 5
"""As many as Nix makes."""
MAX_REDIRECTS = 10
"""Caches that keep NARs elsewhere need one or two."""
MAX_CONNECTIONS = 128
"""To one cache at once; who comes then waits. So many that narinfos find a place beside NARs that come
slowly; how much goes on at once is up to whoever asks."""

_MAX_DELAY = 8.0
_MAX_ASKED_DELAY = 30.0
"""Seconds between attempts: ours, and such as a server asks for."""

_LEFT_OVER_BYTES = 64 * 1024
"""Of the body of an error: what is read so that the connection can be used again."""

_SHOWN = 200
"""Characters of the library's messages, which may repeat what a server has sent."""

_REDIRECTS = (301, 302, 303, 307, 308)
_ABSENT = (403, 404)
"""Some servers do not tell what is not there from what is not allowed."""
_REFUSED = (401, 407)
_BUSY = (408, 429)
"""Servers that gave up waiting for the request, or have too many: as passing as what they call errors."""

_HOST = re.compile(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?", re.ASCII)
_SAFE = "/%?=&+~:@!$'()*,;[]"
"""What stays as it is in names: quoting is for blanks and letters beyond ASCII."""

_ENCODINGS = {"gzip": "gzip", "x-gzip": "gzip", "br": "br", "zstd": "zstd", "bzip2": "bzip2", "xz": "xz"}
"""Encodings of transfers as compressions. We ask for none, but some caches keep narinfos so."""

_ENCODING_SLACK_BYTES = 8 * 1024 * 1024
"""What decoders hold back is less, and no encoding makes anything longer by more than an eighth and this."""

_FAILURES = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
)


class Origin(NamedTuple):
    """Who is told our credentials."""

    scheme: str
    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """How to deal with a server."""

    timeout: float = DEFAULT_TIMEOUT
    """Seconds: to connect in, and for each ``min_bytes`` while an answer is waited for."""
    min_bytes: int = MIN_BYTES
    attempts: int = DEFAULT_ATTEMPTS
    """How often something is tried at most."""
    backoff: float = 0.25
    """Seconds before the second attempt; each further one waits twice as long."""
    ca: str | None = None
    """A file with the authorities to believe, PEM. Default: those of the system."""


class HttpCache(CacheFiles):
    """The files below ``url``: http or https, percent-encoded, without credentials."""

    def __init__(
        self, url: str, *, credentials: Credentials = no_credentials, options: HttpOptions = HttpOptions()
    ) -> None:
        super().__init__()
        self.url = url.rstrip("/")
        self._origin = origin_of(self.url)
        self._credentials = credentials
        self._options = options
        self._pool = httpcore.ConnectionPool(
            # Not the library's, which brings authorities of its own.
            ssl_context=_system_tls() if options.ca is None else _tls(options.ca),
            max_connections=MAX_CONNECTIONS,
            keepalive_expiry=30,
            network_backend=PacedBackend(options.timeout, options.min_bytes, self.closing),
        )

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[CacheFile | None]:
        where = self.where(name)
        with contextlib.ExitStack() as stack:
            response = self._response(f"{self.url}/{quote(name, safe=_SAFE)}", where, stack)
            if response.status in _ABSENT:
                _use_up(response)
                yield None
            else:
                _check_status(response, where)
                framed = any(_header(response, h) for h in ("content-length", "transfer-encoding"))
                yield CacheFile(_contents(response, where), ends_by_itself=framed)

    def _response(self, url: str, where: str, stack: contextlib.ExitStack) -> httpcore.Response:
        """The first answer that is no redirect; ``stack`` closes it."""
        for _ in range(MAX_REDIRECTS + 1):
            span = self._span(url)
            stack.callback(span.end)
            request = self._pool.stream("GET", url, headers=self._headers(url, span))
            try:
                with _failures(where):
                    response = stack.enter_context(request)
            except NeveError as error:
                span.fail(type(error).__name__)
                raise
            span.set("http.response.status_code", response.status)
            if response.status not in _REDIRECTS:
                return response
            url = _redirected(url, _header(response, "location"), where)
            _use_up(response)
            stack.close()
        raise InvalidAnswer(f"{where}: redirected more than {MAX_REDIRECTS} times")

    def _span(self, url: str) -> Span:
        # Without the query: where a cache keeps its files elsewhere, that may be what lets us in.
        attributes = {"http.request.method": "GET", "url.full": url.partition("?")[0]}
        return telemetry.span("GET", attributes, CLIENT)

    def _headers(self, url: str, span: Span) -> list[tuple[str, str]]:
        headers = [("User-Agent", "neve"), ("Accept", "*/*"), ("Accept-Encoding", "identity")]
        # Compared anew for each redirect: a host that leads back to ours learns nothing by that.
        if origin_of(url) == self._origin:
            headers += span.headers()
            if (value := self._authorization()) is not None:
                headers.append(("Authorization", value))
        return headers

    def _authorization(self) -> str | None:
        try:
            return self._credentials()
        except InvalidRequest as error:
            # When the address was opened it was there: whoever asks now is not to blame.
            raise Unavailable(f"{self.url}: {error}") from error

    def _repeat(self, function: Callable[[], T]) -> T:
        for attempt in itertools.count(1):
            try:
                return function()
            except Transient as error:
                if self.closing.is_set():
                    raise self.closed() from error
                if attempt >= self._options.attempts:
                    times = "once" if attempt == 1 else f"{attempt} times"
                    raise Unavailable(f"{error} (tried {times})") from error
                delay = min(self._options.backoff * 2 ** (attempt - 1), _MAX_DELAY)
                delay = max(delay * random.uniform(0.5, 1), min(error.after, _MAX_ASKED_DELAY))
                LOGGER.warning("%s; trying again in %.1f seconds", error, delay)
            if self.closing.wait(delay):
                raise self.closed()
        raise AssertionError("unreachable")

    def close(self) -> None:
        super().close()
        self._pool.close()


def origin_of(url: str) -> Origin:
    """Scheme, host and port. Raises ``InvalidRequest``."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        # Not what it repeats, nor chained: behind the colon a password may be that was not encoded.
        raise InvalidRequest(str(error).partition(" as ")[0][:_SHOWN]) from None
    host = parts.netloc.rpartition("@")[2]
    host = host if port is None else host.removesuffix(f":{host.rpartition(':')[2]}")
    if parts.scheme not in ("http", "https"):
        raise InvalidRequest(f"{quoted(parts.scheme)} is not http or https")
    if not _HOST.fullmatch(host.rstrip(":")):
        raise InvalidRequest(f"{quoted(host)} is no name of a host")
    return Origin(parts.scheme, host.rstrip(":").lower(), port or (443 if parts.scheme == "https" else 80))


@functools.cache
def _system_tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _tls(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise InvalidRequest(f"ca={ca}: {error.strerror or error}") from error


def _redirected(url: str, location: str | None, where: str) -> str:
    """Where a redirect leads. Raises ``InvalidAnswer`` if nobody should follow it."""
    if location is None:
        raise InvalidAnswer(f"{where}: redirected to nowhere")
    try:
        # Quoted once more where needed: servers write all sorts of things there.
        target = urljoin(url, quote(location, safe=_SAFE + "#"))
        origin = origin_of(target)
    except (ValueError, InvalidRequest) as error:
        raise InvalidAnswer(f"{where}: redirected to an address that is none: {error}") from error
    if origin.scheme != "https" and url.startswith("https:"):
        raise InvalidAnswer(f"{where}: redirected from https to {origin.scheme}, which is not followed")
    parts = urlsplit(target)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()


def _header(response: httpcore.Response, name: str) -> str | None:
    for key, value in response.headers:
        if key.lower() == name.encode():
            return value.decode("latin-1").strip()
    return None


def _check_status(response: httpcore.Response, where: str) -> None:
    """Raises unless there is a file in the answer."""
    status = response.status
    if status == 200:
        return
    _use_up(response)
    if status in _BUSY or status >= 500:
        after = _asked_delay(_header(response, "retry-after") or "")
        raise Transient(f"{where}: the server answers with status {status}", after=after)
    if status in _REFUSED:
        raise PermissionDenied(f"{where}: the server answers with status {status}: it wants credentials")
    raise InvalidAnswer(f"{where}: the server answers with status {status}")


def _asked_delay(retry_after: str) -> float:
    """Seconds to wait, by what a server says: a number of them, or a date (RFC 9110, section 10.2.3)."""
    if retry_after.isascii() and retry_after.isdecimal() and len(retry_after) < 9:
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _use_up(response: httpcore.Response) -> None:
    """Reads what is left of a short body, so that the connection is of use for the next request."""
    left = _LEFT_OVER_BYTES
    with contextlib.suppress(*_FAILURES):
        for piece in response.iter_stream():
            left -= len(piece)
            if left < 0:
                return


def _contents(response: httpcore.Response, where: str) -> Iterator[bytes]:
    encoding = (_header(response, "content-encoding") or "identity").lower()
    pieces = _body(response, where)
    if encoding == "identity":
        return pieces
    with naming(where):
        if encoding not in _ENCODINGS:
            raise InvalidRequest(f"sent with the encoding {quoted(encoding)}, which nobody asked for")
        return _decoded(pieces, _ENCODINGS[encoding])


def _decoded(pieces: Iterator[bytes], compression: str) -> Iterator[bytes]:
    """Undoes an encoding. Raises ``InvalidRequest`` when far more comes than it amounts to: whoever reads
    this bounds what it becomes."""
    came = became = 0

    def counted() -> Iterator[bytes]:
        nonlocal came
        for piece in pieces:
            came += len(piece)
            if came > became + became // 8 + _ENCODING_SLACK_BYTES:
                raise InvalidRequest(f"{came} bytes of the encoding {compression} amount to {became} bytes")
            yield piece

    for piece in decompressed(counted(), compression):
        became += len(piece)
        yield piece


def _body(response: httpcore.Response, where: str) -> Iterator[bytes]:
    with _failures(where):
        yield from response.iter_stream()


@contextlib.contextmanager
def _failures(where: str) -> Iterator[None]:
    """Translates what the library raises."""
    try:
        yield
    except _FAILURES as error:
        if isinstance(error.__cause__ or error.__context__, ssl.SSLCertVerificationError):
            raise InvalidAnswer(f"{where}: {error}") from error
        raise Transient(f"{where}: {_reason(error)}") from error
    except (OSError, UnicodeError) as error:
        raise Transient(f"{where}: {error}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, httpcore.ConnectTimeout):
        return "no connection in time"
    return str(error)[:_SHOWN] or type(error).__name__
