"""Who may do what."""

from __future__ import annotations

from neve.errors import PermissionDenied
from neve.http_cache.exchange import Exchange
from neve.http_cache.settings import Settings
from neve.http_cache.statuses import Refused
from neve.http_cache.threads import Threads
from neve.http_cache.tokens import PULL, PUSH, Token, TokenFile, presented

_CHALLENGE = [(b"www-authenticate", b'Basic realm="neve"'), (b"www-authenticate", b"Bearer")]
"""Basic comes first: curl sends what a netrc has only for that, and browsers ask for a password."""


class Access:
    """Decides by the settings and by the token that comes with a request."""

    def __init__(self, settings: Settings, threads: Threads) -> None:
        """Raises what reading the file of tokens raises."""
        self._settings = settings
        self._threads = threads
        self._tokens = None if settings.token_file is None else TokenFile(settings.token_file)
        self.is_open = not settings.private
        """Whether everybody may read."""

    async def check_pull(self, exchange: Exchange) -> None:
        """Raises ``Refused`` (401, 403)."""
        if not self.is_open:
            await self._check(exchange, PULL)

    async def check_push(self, exchange: Exchange) -> None:
        """Raises ``Refused`` (401, 403), or ``PermissionDenied`` if nobody may push."""
        if self._settings.read_only:
            raise PermissionDenied("this cache is read-only")
        if self._settings.insecure_allow_upload:
            return
        if self._tokens is None:
            raise PermissionDenied("this cache takes no uploads: it knows no tokens")
        await self._check(exchange, PUSH)

    async def _check(self, exchange: Exchange, right: str) -> None:
        secret = presented(exchange.header(b"authorization"))
        token = None if secret is None else await self._find(exchange, secret)
        if token is None:
            what = "this needs a token" if secret is None else "the token is not known"
            raise Refused(401, what, _CHALLENGE)
        if not token.may(right):
            raise Refused(403, f"the token {token.name} may not {right}")

    async def _find(self, exchange: Exchange, secret: str) -> Token | None:
        if self._tokens is None:
            return None
        if self._tokens.is_current:
            return self._tokens.find(secret)
        with exchange.working():
            return await self._threads.work(self._tokens.find, secret)
