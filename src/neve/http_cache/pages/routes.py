"""The routes of the pages, from request to page."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from typing import TypeAlias

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from neve.castore.node import FileNode
from neve.errors import InvalidRequest, NeveError
from neve.http_cache.pages import lookup
from neve.http_cache.pages.contents import Place, contents_at, kind_of
from neve.http_cache.pages.locations import asked_for, fields_of, links_from, number_of, public_url
from neve.http_cache.pages.raw import file_response
from neve.http_cache.pages.referrers import KeptReferrers
from neve.http_cache.pages.render import Renderer
from neve.http_cache.pages.search import MAX_QUERY, exact_place, parse_after, search, whole_digest
from neve.http_cache.pages.summary import KeptSummary
from neve.http_cache.pages.text import shown, shown_query
from neve.http_cache.pages.threads import Threads
from neve.http_cache.site import Site
from neve.nix.hashes import HashAlgorithm, NixHash
from neve.nix.store_path import StorePath
from neve.store.path_info import PathDescription, PathInfo
from neve.store.services import Services

_LOOKING = (6, 64)
_SEARCHING = (2, 16)
"""Threads for pages of a path, and for searches; and how many requests may wait for one: no longer than
somebody in front of an empty window does."""

_STEPS = 16
"""Directories above a place that its page links to; further up they lead on."""

View: TypeAlias = Callable[[Request], Response]


class _Anything(Convertor[str]):
    """What is left of a path, also with line ends: names may have them. What it says is read elsewhere."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("neve_anything", _Anything())


def page_routes(services: Services, site: Site) -> list[Route]:
    """The routes of the pages for people, for one event loop; ``services`` stay the caller's."""
    pages = _Pages(services, site)
    looking, searching = Threads(*_LOOKING), Threads(*_SEARCHING)

    def route(path: str, view: View, threads: Threads) -> Route:
        return Route(path, functools.partial(pages.answer, view, threads), methods=["GET"])

    return [
        route("/", pages.start, looking),
        route("/search", pages.search, searching),
        route("/path/{place:neve_anything}", pages.path, looking),
        route("/raw/{place:neve_anything}", pages.raw, looking),
        Route("/static/{name}", pages.static, methods=["GET"]),
        Route("/{other:neve_anything}", pages.nothing, methods=["GET"]),
    ]


class _Pages:
    """The views: each makes the answer to a request, in a thread."""

    def __init__(self, services: Services, site: Site) -> None:
        self._services = services
        self._site = site
        self._renderer = Renderer(site)
        self._summary = KeptSummary(services)
        self._referrers = KeptReferrers(services)

    async def answer(self, view: View, threads: Threads, request: Request) -> Response:
        """What ``view`` answers, or the page for what went wrong."""
        try:
            return await threads.run(self._answered, view, request)
        except NeveError as error:  # No thread was free to say so.
            return self._renderer.error(request, error)

    def _answered(self, view: View, request: Request) -> Response:
        try:
            return view(request)
        except NeveError as error:
            return self._renderer.error(request, error)

    async def static(self, request: Request) -> Response:
        try:
            return self._renderer.static(request, request.path_params["name"])
        except lookup.Missing as error:
            return self._renderer.error(request, error)

    async def nothing(self, request: Request) -> Response:
        return self._renderer.error(request, lookup.Missing("there is no such page"))

    def start(self, request: Request) -> Response:
        values = {"summary": self._summary.get(), "url": public_url(request, self._site.url)}
        return self._renderer.page(request, "start.html", values)

    def search(self, request: Request) -> Response:
        fields = fields_of(request.scope)
        query = fields.get("q", "").strip()
        if len(query) > MAX_QUERY:
            raise InvalidRequest(f"the search has {len(query):,} characters, at most {MAX_QUERY:,} are taken")
        links = links_from(request.scope)
        exact = exact_place(query)
        if exact is not None:
            return RedirectResponse(links.path(*exact), 303)
        digest = whole_digest(query)
        known = None if digest is None else lookup.describe(self._services, digest)
        if known is not None:
            return RedirectResponse(links.path(known.store_path), 303)
        after = parse_after(fields.get("after", ""))
        found = search(self._services.path_infos, query, after)
        values = {
            "query": query,
            "typed": shown_query(query),
            "shown": shown(query.encode("utf-8", "surrogateescape")) if query else "",
            "found": found,
            "first": not after,
        }
        return self._renderer.page(request, "search.html", values)

    def path(self, request: Request) -> Response:
        store_path, components, canonical = asked_for(request.scope)
        place = Place(store_path, components, links_from(request.scope))
        if not canonical:
            return RedirectResponse(place.links.path(store_path, components), 301)
        if components:
            return self._renderer.page(request, "below.html", self._below(request, place))
        return self._renderer.page(request, "path.html", self._whole(request, place))

    def _below(self, request: Request, place: Place) -> dict[str, object]:
        """What the page of a place below a store path shows."""
        contents = contents_at(self._services, place, number_of(fields_of(request.scope), "page"))
        above = max(0, len(place.components) - 1 - _STEPS)
        steps = [
            (shown(place.components[i]), place.links.path(place.store_path, place.components[: i + 1]))
            for i in range(above, len(place.components))
        ]
        return {
            "store_path": place.store_path,
            "here": place.components,
            "steps": steps,
            "left_out": above,
            "contents": contents,
        }

    def _whole(self, request: Request, place: Place) -> dict[str, object]:
        """What the page of a store path shows."""
        fields = fields_of(request.scope)
        found = lookup.find(self._services, place.store_path)
        contents = None
        if not isinstance(found, PathDescription):
            contents = contents_at(self._services, place, number_of(fields, "page"))
        return {
            "store_path": place.store_path,
            "here": (),
            "command": self._copy_command(request, place.store_path),
            "contents": contents,
            **self._facts(found, number_of(fields, "references"), number_of(fields, "referrers")),
        }

    def _facts(self, found: PathInfo | PathDescription, references: int, referrers: int) -> dict[str, object]:
        """What is known of a store path beside its contents."""
        neighbours = lookup.Neighbours(self._services.path_infos)
        nar = found.nar
        return {
            "nar": nar,
            "nar_hash": None if nar is None else NixHash(HashAlgorithm.SHA256, nar.sha256).render(),
            "deriver": lookup.deriver(neighbours, found),
            "references": lookup.references(neighbours, found, references),
            "referrers": lookup.referrers(self._referrers, neighbours, found.store_path.digest, referrers),
        }

    def _copy_command(self, request: Request, store_path: StorePath) -> str:
        url = shlex.quote(public_url(request, self._site.url))
        unsigned = "" if self._site.public_keys else " --no-check-sigs"
        return f"nix copy --from {url}{unsigned} {shlex.quote(store_path.absolute)}"

    def raw(self, request: Request) -> Response:
        store_path, components, canonical = asked_for(request.scope)
        if not canonical:
            return RedirectResponse(links_from(request.scope).raw(store_path, components), 301)
        node = lookup.find_node(self._services, store_path, components)
        if not isinstance(node, FileNode):
            raise lookup.Missing(f"what is there is a {kind_of(node)}, not a file")
        name = components[-1] if components else store_path.name.encode("ascii")
        body = request.method != "HEAD"
        return file_response(self._services.blobs, node, name, request.headers, body=body)
