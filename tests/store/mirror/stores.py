"""Stores to mirror: some packages that refer to each other, with small files and large ones."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from neve.nix.signing import SecretKey
from neve.nix.store_path import StorePath
from neve.store.check import verify_store
from neve.store.importer import import_nar
from neve.store.path_info import PathInfo
from neve.store.pathinfos.base import PathInfoService
from neve.store.services import Services, open_services
from neve.testing.servers import running_daemon
from neve.tree import LEAVE_DIRECTORY, EnterDirectory, Event, File, Symlink
from tests.store.helpers import encoded

KEY = SecretKey("mirror-1", bytes(range(32)))
OTHER_KEY = SecretKey("mirror-2", bytes(32))

KINDS = ("memory", "local", "daemon", "admin")


def path_of(name: str) -> StorePath:
    """A path that is always the same for a name."""
    return StorePath(hashlib.sha1(name.encode()).digest(), name)


def tree(name: str, *, seed: int = 0, large: bool = False) -> list[Event]:
    """Its files are those of others in part, its Directories too."""
    numbers = random.Random(f"{name}-{seed}")
    events: list[Event] = [EnterDirectory(b""), EnterDirectory(b"bin")]
    events += [File(b"%02d" % i, False, numbers.randbytes(numbers.randrange(1, 9000))) for i in range(20)]
    events += [LEAVE_DIRECTORY, EnterDirectory(b"common")]
    events += [File(b"%02d" % i, True, b"the same in all of them\n" * i) for i in range(20)]
    events += [LEAVE_DIRECTORY, File(b"empty", False, b""), Symlink(b"link", b"bin/00")]
    if large:
        events.append(File(b"zlarge", False, numbers.randbytes(1_500_000) + bytes(1_500_000)))
    return [*events, LEAVE_DIRECTORY]


def add(
    services: Services,
    name: str,
    references: Sequence[str] = (),
    events: Sequence[Event] | None = None,
    *,
    large: bool = False,
) -> PathInfo:
    """Registers a path."""
    return import_nar(
        services,
        [encoded(tree(name, large=large) if events is None else events)],
        store_path=path_of(name),
        references=[path_of(reference) for reference in references],
    )


def fill(services: Services, count: int = 12) -> list[PathInfo]:
    """Registers paths that refer to earlier ones and to themselves; every fourth has a large file."""
    numbers = random.Random(count)
    names: list[str] = []
    result = []
    for number in range(count):
        name = f"package-{number}"
        references = [*numbers.sample(names, min(len(names), 3)), name]
        result.append(add(services, name, references, large=number % 4 == 3))
        names.append(name)
    return result


@contextlib.contextmanager
def store(kind: str, folder: Path) -> Iterator[Services]:
    """Services of some kind over a store in ``folder``."""
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        url = "memory://" if kind == "memory" else f"local://{folder}/store"
        if kind in ("daemon", "admin"):
            daemon = stack.enter_context(running_daemon(url, folder=folder))
            url = daemon.url if kind == "daemon" else str(daemon.admin_url)
        services = open_services(url)
        stack.callback(services.close)
        yield services


def check_whole(services: Services, expected: Sequence[PathInfo]) -> None:
    """The store has these paths and no others, with all that they consist of and refer to."""
    found = {path_info.digest: path_info for path_info in services.path_infos}
    assert sorted(found) == sorted(path_info.digest for path_info in expected)
    for path_info in expected:
        assert found[path_info.digest] == path_info
    check_consistent(services)


def check_consistent(services: Services) -> set[bytes]:
    """Nothing is damaged or missing, and every path has what it refers to. Returns the paths."""
    report = verify_store(services, nar_hashes=True)
    assert report.problems == []
    found = {path_info.digest: path_info for path_info in services.path_infos}
    for path_info in found.values():
        assert set(path_info.references) <= found.keys()
    return set(found)


class WatchedPathInfos(PathInfoService):
    """Lists one path at a time; once the listing has begun something happens."""

    def __init__(self, inner: PathInfoService, begun: Callable[[], object]) -> None:
        self._inner = inner
        self._begun = begun

    def get(self, digest: bytes) -> PathInfo | None:
        return self._inner.get(digest)

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        return self._inner.put(path_info, replace=replace)

    def list(self, after: bytes = b"", limit: int = 1000) -> Sequence[PathInfo]:
        page = self._inner.list(after, 1)
        if not after:
            self._begun()
        return page
