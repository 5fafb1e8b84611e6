"""The application: every request of one process comes here, and goes to what answers it.

Requests of Nix are told apart by ``routes`` and answered without any framework in between: narinfos are
asked for by the thousand. What they do not know belongs to the pages for people, which are Starlette's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from neve.castore.digest import DIGEST_SIZE
from neve.errors import Corrupt, InvalidRequest, NeveError, Unavailable
from neve.http_cache import routes
from neve.http_cache.access import Access
from neve.http_cache.exchange import TEXT, ClientGoneError, Exchange, Held
from neve.http_cache.metrics import ACTIVE, METHODS, RECEIVED, ROUTES, UPLOADS, Counters
from neve.http_cache.nar import Nars
from neve.http_cache.narinfo import NarInfos
from neve.http_cache.narinfo_put import NarInfoUploads
from neve.http_cache.settings import Settings
from neve.http_cache.small import DEBUG_INFO, LOG, REALISATION, KeptFiles, Listings
from neve.http_cache.statuses import Header, Refused, kind_of, line_of, status_of
from neve.http_cache.threads import Threads
from neve.http_cache.tracing import traced
from neve.http_cache.upload import Uploads
from neve.nix.cache_info import CacheInfo
from neve.nix.store_path import DIGEST_SIZE as PATH_DIGEST_SIZE
from neve.serving.metrics import CONTENT_TYPE
from neve.store.services import Services
from neve.store.small_files import small_files_beside
from neve.telemetry import LOGGER

if TYPE_CHECKING:
    from starlette.routing import BaseRoute
    from starlette.types import Receive, Scope, Send

Handler = Callable[[Exchange, str], Awaitable[None]]

_CACHE_INFO: list[Header] = [(b"content-type", b"text/x-nix-cache-info")]
_NARINFO: list[Header] = [(b"content-type", b"text/x-nix-narinfo")]
_METRICS: list[Header] = [(b"content-type", CONTENT_TYPE)]

_PROBE_SECONDS = 5.0
"""How long a store may take to say that it is there."""

_PLACES = {
    kind: ROUTES.index(name)
    for kind, name in (
        (routes.CACHE_INFO, "nix-cache-info"),
        (routes.NARINFO, "narinfo"),
        (routes.LISTING, "ls"),
        (routes.NODE, "nar"),
        (routes.NAR, "nar"),
        (routes.LOG, "log"),
        (routes.REALISATION, "realisation"),
        (routes.DEBUG_INFO, "debuginfo"),
        (routes.METRICS, "metrics"),
        (routes.READY, "healthz"),
        (routes.ALIVE, "healthz"),
    )
}
_PAGE = ROUTES.index("page")
_READ, _WRITE = map(METHODS.index, ("read", "write"))


class CacheApp:
    """An ASGI application. Belongs to one event loop; to be closed when it is asked nothing any more."""

    def __init__(
        self, services: Services, settings: Settings, counters: Counters, pages: Sequence[BaseRoute] = ()
    ) -> None:
        """``services`` stay the caller's; ``pages`` are the routes of the pages for people. Raises what
        reading the file of tokens raises."""
        limits = settings.limits
        self.exchanges: set[Exchange] = set()
        """Those under way."""
        self.is_stopping = False
        self._services = services
        self._counters = counters
        self._held = Held(limits.max_held_bytes)
        self._threads = threads = Threads(limits.max_uploads, limits.max_fetches, counters.queued)
        self.pulse = threads.pulse
        self._access = Access(settings, threads)
        self._narinfos = NarInfos(services, settings, threads)
        self._nars = Nars(services, settings, threads)
        self._uploads = Uploads(services, limits, threads)
        self._cache_info_text = CacheInfo(want_mass_query=True, priority=settings.priority).render().encode()
        self._pages = Starlette(routes=list(pages))
        self._probe: asyncio.Future[None] | None = None
        self._reads, self._writes = self._handlers(settings)

    def _handlers(self, settings: Settings) -> tuple[dict[str, Handler], dict[str, Handler]]:
        """What answers which kind of route, for those who read and for those who upload."""
        services, threads, most = self._services, self._threads, settings.limits.max_small_file_bytes
        files = small_files_beside(services.nar_nodes)
        listings = Listings(services, threads, most)
        kept = {
            route: KeptFiles(kind, files, threads, most)
            for route, kind in (
                (routes.LOG, LOG),
                (routes.REALISATION, REALISATION),
                (routes.DEBUG_INFO, DEBUG_INFO),
            )
        }
        reads: dict[str, Handler] = {
            routes.CACHE_INFO: self._cache_info,
            routes.NARINFO: self._narinfo,
            routes.LISTING: listings.get,
            routes.NODE: self._nars.by_node,
            routes.NAR: self._nars.by_hash,
            **{route: files.get for route, files in kept.items()},
            routes.METRICS: self._metrics,
            routes.READY: self._ready,
            routes.ALIVE: self._alive,
        }
        writes: dict[str, Handler] = {
            routes.NARINFO: NarInfoUploads(services, settings, threads, files).put,
            routes.LISTING: listings.put,
            routes.NAR: self._upload,
            **{route: files.put for route, files in kept.items()},
        }
        return reads, writes

    def close(self) -> None:
        """Waits for what is still being done. Not to be called in the event loop's thread."""
        self._threads.close()
        self._nars.close()

    # The way of a request.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._held)
        route = routes.route_of(exchange.path)
        self.exchanges.add(exchange)
        self._counters.add(ACTIVE)
        place = _PAGE if route is None else _PLACES[route.kind]
        try:
            with traced(exchange, ROUTES[place]):
                await self._guarded(exchange, route)
        finally:
            self.exchanges.discard(exchange)
            exchange.end()
            self._count(exchange, place)

    async def _guarded(self, exchange: Exchange, route: routes.Route | None) -> None:
        """Answers, whatever happens."""
        try:
            await self._answer(exchange, route)
        except ClientGoneError:
            pass
        except NeveError as error:
            await self._refuse(exchange, error)
        except Exception as error:
            LOGGER.exception("%s %.200r failed", exchange.method, exchange.path)
            await self._refuse(exchange, NeveError(f"internal error: {type(error).__name__}"))
        except BaseException:  # It takes longer than there is time.
            exchange.break_off()
            raise

    async def _answer(self, exchange: Exchange, route: routes.Route | None) -> None:
        if exchange.is_write:
            await self._write(exchange, route)
            return
        if exchange.has_body:
            raise InvalidRequest(f"a {exchange.method} has no body")
        if route is None:
            await self._access.check_pull(exchange)
            await exchange.pass_on(self._pages, exchange.scope)
            return
        if route.kind not in (routes.READY, routes.ALIVE):
            await self._access.check_pull(exchange)
        await self._reads[route.kind](exchange, route.name)

    async def _write(self, exchange: Exchange, route: routes.Route | None) -> None:
        handler = None if route is None else self._writes.get(route.kind)
        if route is None or handler is None or exchange.method != "PUT":
            allowed = b"GET, HEAD" if handler is None else b"GET, HEAD, PUT"
            raise Refused(405, f"{exchange.method[:20]} is not possible here", [(b"allow", allowed)])
        await self._access.check_push(exchange)
        exchange.check_transfer()
        await handler(exchange, route.name)

    async def _refuse(self, exchange: Exchange, error: NeveError) -> None:
        status = status_of(error)
        self._counters.error(kind_of(error))
        if isinstance(error, Corrupt):
            LOGGER.error("%s %.200r: %s", exchange.method, exchange.path, error)
        elif status >= 500:
            LOGGER.warning("%s %.200r: %s", exchange.method, exchange.path, error)
        else:
            LOGGER.debug("%s %.200r: %d, %s", exchange.method, exchange.path, status, error)
        if exchange.status:
            if not exchange.is_answered:
                exchange.break_off()
            return
        headers = error.headers if isinstance(error, Refused) else ()
        try:
            await exchange.answer(status, line_of(error), [TEXT, *headers])
        except ClientGoneError:
            return

    def _count(self, exchange: Exchange, place: int) -> None:
        self._counters.add(ACTIVE, -1)
        if exchange.received:
            self._counters.add(RECEIVED, exchange.received)
        self._counters.request(
            place,
            _WRITE if exchange.is_write else _READ,
            exchange.status,
            time.perf_counter() - exchange.began,
            exchange.sent,
        )

    # Short answers.

    async def _cache_info(self, exchange: Exchange, _: str) -> None:
        await exchange.answer(200, self._cache_info_text, _CACHE_INFO)

    async def _narinfo(self, exchange: Exchange, name: str) -> None:
        text = await self._narinfos.get(exchange, name)
        if text is None:  # No error that would be logged: this is most of what a cache is asked.
            await exchange.answer_line(404, "there is no such path")
        else:
            await exchange.answer(200, text, _NARINFO)

    async def _metrics(self, exchange: Exchange, _: str) -> None:
        with exchange.working():
            text = await self._threads.work(self._counters.text)
        await exchange.answer(200, text, _METRICS)

    async def _alive(self, exchange: Exchange, _: str) -> None:
        await exchange.answer_line(200, "alive")

    async def _ready(self, exchange: Exchange, _: str) -> None:
        if self.is_stopping:
            raise Unavailable("stopping")
        with exchange.working():
            await self._check_store()
        await exchange.answer_line(200, "ready")

    async def _check_store(self) -> None:
        """Raises ``Unavailable`` and others if the store does not answer. One question is under way at a
        time, whoever asks."""
        if self._services.path_infos.looks_up_at_once:
            self._services.path_infos.version(bytes(PATH_DIGEST_SIZE))
            return
        if self._probe is None or self._probe.done():
            asked = self._threads.ask(self._ask_store)
            self._probe = asyncio.ensure_future(asked)
            self._probe.add_done_callback(_seen)
        done, _ = await asyncio.wait([self._probe], timeout=_PROBE_SECONDS)
        if not done:
            raise Unavailable("the store does not answer")
        self._probe.result()

    def _ask_store(self) -> None:
        """Contents and path infos may lie in different places."""
        self._services.blobs.has(bytes(DIGEST_SIZE))
        if not self._services.path_infos.may_fetch:
            self._services.path_infos.version(bytes(PATH_DIGEST_SIZE))

    async def _upload(self, exchange: Exchange, name: str) -> None:
        await self._uploads.put(exchange, name, lambda change: self._counters.add(UPLOADS, change))


def _seen(future: asyncio.Future[None]) -> None:
    """Whatever came of it: nobody may be waiting any more."""
    if not future.cancelled():
        future.exception()
