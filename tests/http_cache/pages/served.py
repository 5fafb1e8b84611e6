"""The pages on a real server on loopback, and what a client sees of them, byte for byte."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount

from neve.http_cache.pages import page_routes
from neve.http_cache.site import Site
from neve.store.services import Services

SITE = Site(name="Test cache", public_keys=("test-1:bm90IGEga2V5",), url="https://cache.test", priority=37)

_DEADLINE_SECONDS = 60.0
_VOID = {"meta", "link", "img", "input", "br", "hr", "path", "use"}


@dataclass
class Answer:
    """The answer to one request."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def page(self) -> Page:
        """The body as the HTML page that it must be."""
        assert self.headers["content-type"] == "text/html; charset=utf-8"
        page = Page(self.url)
        page.feed(self.body.decode())
        page.close()
        assert page.open == []
        return page


@dataclass
class Link:
    """An ``a`` of a page: its text, and where it leads to."""

    attributes: Mapping[str, str | None]
    address: str
    text: str = ""


class Page(HTMLParser):
    """What a page consists of. Every element has to be closed."""

    def __init__(self, url: str) -> None:
        super().__init__(convert_charrefs=True)
        self.url = url
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.links: list[Link] = []
        self.text = ""
        self.title = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "a":
            attributes = dict(attrs)
            self.links.append(Link(attributes, urljoin(self.url, attributes["href"] or "")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "a" in self.open:
            self.links[-1].text += data
        if "title" in self.open:
            self.title += data

    def link(self, text: str) -> str:
        """The address behind the link with exactly this text, white space at its ends aside."""
        [address] = {link.address for link in self.links if link.text.strip() == text}
        return address

    def linked(self, text: str) -> bool:
        return any(link.text.strip() == text for link in self.links)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@dataclass
class Served:
    """A running server."""

    port: int
    services: Services
    prefix: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    def get(self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
        """Asks for a path as it is written, or for an address on this server. Follows nothing."""
        if path.startswith("http://"):
            parts = urlsplit(path)
            assert parts.netloc == f"127.0.0.1:{self.port}"
            target = parts.path + (f"?{parts.query}" if parts.query else "")
        else:
            target = self.prefix + path
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_DEADLINE_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, target, headers=dict(headers or {}))
            response = connection.getresponse()
            body = response.read()
        answered = {name.lower(): value for name, value in response.getheaders()}
        return Answer(f"http://127.0.0.1:{self.port}{target}", response.status, answered, body)

    def page(self, path: str) -> Page:
        """The page at a path, which must be there."""
        answer = self.get(path)
        assert answer.status == 200, answer.body.decode()
        return answer.page


@contextlib.contextmanager
def serving(services: Services, site: Site = SITE, *, prefix: str = "") -> Iterator[Served]:
    """Serves the pages of a store, below ``prefix``, while the block runs."""
    routes: list[BaseRoute] = [*page_routes(services, site)]
    app = Starlette(routes=[Mount(prefix, routes=routes)] if prefix else routes)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), name="pages", daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + _DEADLINE_SECONDS
            while not server.started:
                assert thread.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.005)
            yield Served(listener.getsockname()[1], services, prefix)
        finally:
            server.should_exit = True
            thread.join()
