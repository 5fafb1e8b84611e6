"""From templates to answers: escaping, security headers, pages for errors.

Every value is escaped by the templates (autoescape, without exception). Should one slip through, the
Content-Security-Policy lets a page run no script, load nothing from elsewhere, and send forms only here.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import Response

from neve.errors import (
    Corrupt,
    InvalidRequest,
    NeveError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from neve.http_cache.negotiation import GZIP, IDENTITY, ZSTD, chosen_encoding
from neve.http_cache.pages.locations import links_from
from neve.http_cache.pages.lookup import Missing
from neve.http_cache.pages.text import exact_size, short_size
from neve.http_cache.pages.threads import Busy
from neve.http_cache.site import Site
from neve.http_cache.statuses import Refused, line_of
from neve.http_cache.zstd_frames import compressed
from neve.telemetry import LOGGER

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # An address tells what somebody looks at; links to other hosts there are none.
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-cache",
}

_STATIC_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    # Its name has a digest of the contents.
    "Cache-Control": "public, max-age=31536000, immutable",
}
_SMALL_BYTES = 1024
"""Of an answer that is not worth compressing: it fits a packet anyway."""
_GZIP_LEVEL = 5
_HTML = "text/html; charset=utf-8"
_TYPES = {"css": "text/css; charset=utf-8", "svg": "image/svg+xml"}

_RETRY_SECONDS = 5

# Heading, and what to say instead of the error's message where that is nothing for strangers.
_ERRORS: tuple[tuple[type[NeveError], int, str, str | None], ...] = (
    (Missing, 404, "Not here", None),
    (Busy, 503, "Busy", None),
    (Refused, 502, "Not available", None),  # By a store further away.
    (Unavailable, 503, "Not available", "The store behind this cache does not answer right now."),
    (PermissionDenied, 502, "Not available", "The store behind this cache refuses access."),
    (Corrupt, 500, "Damaged data", None),
    (NotFound, 500, "Incomplete data", None),
    (InvalidRequest, 400, "Not understood", None),
    (NeveError, 500, "Something went wrong", None),
)


class Renderer:
    """Makes pages of one site. Thread-safe."""

    def __init__(self, site: Site) -> None:
        self._static: dict[str, dict[str, Response]] = {}
        names = {suffix: self._keep(name, suffix) for name, suffix in (("style", "css"), ("icon", "svg"))}
        self._environment = Environment(
            loader=PackageLoader("neve.http_cache.pages"),
            autoescape=True,
            undefined=StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(site=site, style=names["css"], icon=names["svg"])
        self._environment.filters.update(exact_size=exact_size, short_size=short_size, number="{:,}".format)
        for name in self._environment.list_templates():
            # Now, and never again: pages for errors are made in the event loop's thread, too.
            self._environment.get_template(name)

    def _keep(self, name: str, suffix: str) -> str:
        """Reads a file that comes with the pages; the name that it is served by."""
        contents = (resources.files("neve.http_cache.pages") / "static" / f"{name}.{suffix}").read_bytes()
        served = f"{name}.{hashlib.sha256(contents).hexdigest()[:16]}.{suffix}"
        self._static[served] = {
            encoding: _response(contents, encoding, _TYPES[suffix], _STATIC_HEADERS)
            for encoding in (IDENTITY, GZIP, ZSTD)
        }
        return served

    def static(self, request: Request, name: str) -> Response:
        """A file that comes with the pages. Raises ``Missing``."""
        if name not in self._static:
            raise Missing("there is no such file")
        return self._static[name][_encoding(request)]

    def page(
        self, request: Request, template: str, values: Mapping[str, object], status: int = 200
    ) -> Response:
        """The page that a template makes of ``values``."""
        text = self._environment.get_template(template).render(values, links=links_from(request.scope))
        return _response(text.encode(), _encoding(request), _HTML, PAGE_HEADERS, status)

    def error(self, request: Request, error: NeveError) -> Response:
        """The page for what went wrong."""
        status, heading, message = next(row[1:] for row in _ERRORS if isinstance(error, row[0]))
        if status >= 500:
            LOGGER.warning("%r cannot be shown: %s", request.scope["path"], error)
        values = {"status": status, "heading": heading, "message": message or line_of(error).decode().strip()}
        response = self.page(request, "error.html", values, status)
        if status == 503:
            response.headers["Retry-After"] = str(_RETRY_SECONDS)
        return response


def _encoding(request: Request) -> str:
    return chosen_encoding(request.headers.get("accept-encoding"))


def _response(
    body: bytes, encoding: str, media_type: str, headers: Mapping[str, str], status: int = 200
) -> Response:
    """The answer with ``body``, compressed if that is worth it: a long listing shrinks to a tenth."""
    headers = {**headers, "Vary": "Accept-Encoding"}
    if len(body) > _SMALL_BYTES and encoding != IDENTITY:
        body = compressed(body) if encoding == ZSTD else gzip.compress(body, _GZIP_LEVEL, mtime=0)
        headers["Content-Encoding"] = encoding
    return Response(body, status, headers, media_type)
