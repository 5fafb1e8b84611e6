"""Store paths to look at: an ordinary one, and one that was made to attack who looks at it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from urllib.parse import quote_from_bytes

from neve.nix.hashes import CAHash, CAType
from neve.nix.signing import Signature
from neve.nix.store_path import StorePath
from neve.store.path_info import NarDetails, PathInfo
from neve.store.services import Services
from neve.tree import LEAVE_DIRECTORY, EnterDirectory, Event, File, Symlink
from tests.store.helpers import stored

README = "Grüße aus dem Schnee ❄\n".encode() * 3

SCRIPT = b"<script>document.title='pwned';document.body.id='pwned'</script>"
IMAGE = b"<img src=x onerror=\"document.title='pwned'\">"
NO_UTF8 = b"caf\xe9-\xff"
HOSTILE_NAMES = [
    SCRIPT.replace(b"/", b"\\"),
    IMAGE,
    b"\"' onmouseover=alert(1) x='",
    b"{{ 7*7 }}{% raw %}",
    b"%2e%2e%2f%00",
    b"line\nbreak\r\ttab",
    b"javascript:alert(1)",
    b"?q=1#fragment",
    b" blanks  ",
    "turned\u202etxt.exe".encode(),
    "\u3164\u2800".encode(),
    b" ",
    NO_UTF8,
    b"a" * 255,
]
HOSTILE_TARGETS = [
    b"javascript:document.title='pwned'",
    b"//evil.example/x",
    b"data:text/html,<script>alert(1)</script>",
    b"../../../etc/passwd",
    b'"><script>alert(1)</script>',
    b"\xff\xfe",
]


def address_of(store_path: StorePath, *names: bytes, route: str = "path") -> str:
    """The address of a place, written here a second time on purpose."""
    parts = [store_path.base_name.encode(), *names]
    return f"/{route}/" + "/".join(quote_from_bytes(part, safe="") for part in parts)


def put(
    services: Services,
    name: str,
    events: Sequence[Event],
    *,
    references: Iterable[StorePath] = (),
    deriver: StorePath | None = None,
    ca: CAHash | None = None,
    signatures: Iterable[Signature] = (),
) -> PathInfo:
    """Stores a tree as a store path whose digest follows from its name."""
    node = stored(services, events)
    nar = services.renderer.hash(node)
    references = tuple(references)
    details = NarDetails(
        size=nar.size,
        sha256=nar.sha256,
        reference_names=references,
        signatures=tuple(signatures),
        deriver=deriver,
        ca=ca,
    )
    digests = tuple(path.digest for path in references)
    return services.path_infos.put(PathInfo(named(name), node, digests, details))


def named(name: str) -> StorePath:
    return StorePath(hashlib.sha256(name.encode()).digest()[:20], name)


def put_hello(services: Services) -> PathInfo:
    """A package with a library that it needs, and one that needs it."""
    library = put(services, "snowlib-2.36", [File(b"", False, b"\x7fELF library")])
    absent = named("absent-1.0")
    hello = named("hello-2.12")
    events: list[Event] = [
        EnterDirectory(b""),
        EnterDirectory(b"bin"),
        File(b"hello", True, b"\x7fELF\0\1\2" + bytes(300_000)),
        Symlink(b"hi", b"hello"),
        LEAVE_DIRECTORY,
        EnterDirectory(b"empty"),
        LEAVE_DIRECTORY,
        Symlink(b"lib", library.store_path.absolute.encode() + b"/lib"),
        EnterDirectory(b"share"),
        File(b"README.md", False, README),
        File(b"empty.txt", False, b""),
        File(b"page.html", False, b"<!doctype html>" + SCRIPT),
        LEAVE_DIRECTORY,
        LEAVE_DIRECTORY,
    ]
    made = put(
        services,
        "hello-2.12",
        events,
        references=sorted([library.store_path, absent, hello]),
        deriver=named("hello-2.12-derivation"),
        ca=CAHash(CAType.NAR_SHA256, bytes(32)),
        signatures=[Signature("test-1", bytes(range(64)))],
    )
    put(services, "user-of-hello-1", [Symlink(b"", hello.absolute.encode())], references=[hello])
    return made


def put_hostile(services: Services) -> PathInfo:
    """Names, targets and contents that would script a page that does not take care."""
    events: list[Event] = [EnterDirectory(b"")]
    leaves: list[Event] = [File(name, False, SCRIPT) for name in HOSTILE_NAMES]
    leaves += [Symlink(b"link-%d" % i, target) for i, target in enumerate(HOSTILE_TARGETS)]
    leaves.append(File(b"evil.svg", False, b'<svg xmlns="http://www.w3.org/2000/svg">' + SCRIPT + b"</svg>"))
    events += sorted(leaves, key=lambda leaf: leaf.name)  # type: ignore[union-attr]
    return put(services, "hostile-1", [*events, LEAVE_DIRECTORY])
