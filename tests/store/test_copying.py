from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from neve.errors import Conflict, DiskFull, InvalidRequest, PermissionDenied, Unavailable
from neve.nix.export_graph import ExportedPath, parse
from neve.nix.signing import SecretKey, Signature
from neve.nix.store_path import StorePath
from neve.store.check import verify_store
from neve.store.copying import CopyReport, copy_closure
from neve.store.importer import import_nar
from neve.store.nar_nodes import MemoryNarNodes
from neve.store.path_info import PathDescription, PathInfo
from neve.store.pathinfos.cached import CachedPathInfoService
from neve.store.pathinfos.memory import MemoryPathInfoService
from neve.store.services import Services, open_services
from neve.testing.servers import running_daemon
from neve.tree import Symlink

from .helpers import encoded, leaving_nothing_open, memory_services
from .nix_stores import NixStore, store_path


@pytest.fixture
def nix_store(tmp_path: Path) -> NixStore:
    return NixStore(tmp_path / "nix-root")


@pytest.fixture(params=["memory://", "local"])
def services(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Services]:
    url = request.param if request.param != "local" else f"local://{tmp_path}/store"
    services = open_services(url)
    yield services
    services.close()


def watched(services: Services) -> contextlib.AbstractContextManager[None]:
    """Checks that nothing stays open. An embedded store opens its pack and starts threads when first used."""
    return leaving_nothing_open() if services.packs is None else contextlib.nullcontext()


def described(entries: Sequence[dict[str, Any]]) -> list[ExportedPath]:
    return parse(json.dumps(list(entries)))


def copied(
    services: Services, nix_store: NixStore, entries: Sequence[dict[str, Any]] | None = None
) -> tuple[CopyReport, list[StorePath]]:
    """What became of a copy, and the paths in the order in which they were registered."""
    order: list[StorePath] = []
    given = described(nix_store.closure if entries is None else entries)
    with watched(services):
        report = copy_closure(services, given, bytes(nix_store.root), registered=order.append)
    return report, order


def check_order(entries: Sequence[ExportedPath], order: Sequence[StorePath]) -> None:
    for entry in entries:
        for reference in entry.references:
            if entry.path in order and reference in order:
                assert order.index(reference) <= order.index(entry.path)


def test_a_closure(services: Services, nix_store: NixStore) -> None:
    nix_store.add_many(40)
    entries = described(nix_store.closure)
    report, order = copied(services, nix_store)
    assert report == CopyReport(copied=40)
    assert sorted(order) == sorted(entry.path for entry in entries)
    check_order(entries, order)
    for entry in entries:
        info = services.path_infos.get(entry.path.digest)
        assert info is not None
        assert info.nar is not None
        assert (info.nar.size, info.nar.sha256) == (entry.nar_size, entry.nar_sha256)
        assert set(info.nar.reference_names) == set(entry.references)
        assert services.nar_nodes.nar(info.node) == (entry.nar_size, entry.nar_sha256)
    assert verify_store(services, nar_hashes=True).problems == []


def test_what_is_there_is_not_read_again(services: Services, nix_store: NixStore) -> None:
    names = nix_store.add_many(12)
    half = nix_store.closure
    half = [entry for entry in half if entry["path"] in {store_path(n).absolute for n in names[:6]}]
    assert copied(services, nix_store, half)[0] == CopyReport(copied=6)
    for name in names[:6]:
        (nix_store.place(name) / "references").write_text("changed since")
    report, order = copied(services, nix_store)
    assert report == CopyReport(copied=6, present=6)
    assert len(order) == 12
    check_order(described(nix_store.closure), order)
    assert copied(services, nix_store)[0] == CopyReport(present=12)


def test_all_that_is_described_is_taken_over(services: Services, nix_store: NixStore) -> None:
    signature = Signature("cache-1", bytes(range(64)))
    deriver = store_path("a-1.drv")
    nix_store.add("a", ["a"], deriver=deriver.absolute, signatures=[signature.render()])
    copied(services, nix_store)
    info = services.path_infos.get(store_path("a").digest)
    assert info is not None
    assert info.nar is not None
    assert info.nar.deriver == deriver.without_drv()
    assert info.nar.signatures == (signature,)
    assert info.references == (store_path("a").digest,)


def test_new_signatures_of_what_is_there(services: Services, nix_store: NixStore) -> None:
    nix_store.add("a")
    copied(services, nix_store)
    signature = SecretKey("k", bytes(32)).sign(b"anything")
    nix_store.entries["a"]["signatures"] = [signature.render()]
    assert copied(services, nix_store)[0] == CopyReport(present=1)
    info = services.path_infos.get(store_path("a").digest)
    assert info is not None
    assert info.nar is not None
    assert info.nar.signatures == (signature,)


def test_what_is_there_without_nar_details_is_completed(services: Services, nix_store: NixStore) -> None:
    nix_store.add("a")
    copied(services, nix_store)
    complete = services.path_infos.get(store_path("a").digest)
    assert complete is not None
    services.path_infos.put(PathInfo(complete.store_path, complete.node), replace=True)
    assert copied(services, nix_store)[0] == CopyReport(copied=1)
    assert services.path_infos.get(store_path("a").digest) == complete


class Describing(MemoryPathInfoService):
    """Would have to fetch what it has, as a binary cache that is only read."""

    only_read = True

    def describe(self, digest: bytes) -> PathInfo | PathDescription | None:
        found = self.get(digest)
        return None if found is None or found.nar is None else PathDescription(found.store_path, found.nar)


def test_what_another_cache_could_give_is_not_stored_yet(nix_store: NixStore) -> None:
    nix_store.add("a")
    nix_store.add("b", ["a"])
    others = memory_services()
    copied(others, nix_store)
    near, far = MemoryPathInfoService(), Describing()
    for info in others.path_infos:
        far.put(info)
    services = memory_services()
    services.path_infos = CachedPathInfoService(near, far)
    assert copied(services, nix_store)[0] == CopyReport(copied=2)
    assert list(near) == list(others.path_infos)
    assert verify_store(services, nar_hashes=True).problems == []
    assert copied(services, nix_store)[0] == CopyReport(present=2)
    services.close()
    others.close()


def test_references_that_only_the_store_has(services: Services, nix_store: NixStore) -> None:
    nix_store.add("a")
    copied(services, nix_store)
    nix_store.add("b", ["a", "b"])
    assert copied(services, nix_store, [nix_store.entries["b"]])[0] == CopyReport(copied=1)


def test_a_reference_to_nowhere_is_found_before_anything_is_copied(
    services: Services, nix_store: NixStore
) -> None:
    nix_store.add("a")
    nix_store.add("b", ["gone", "a"])
    with pytest.raises(InvalidRequest) as caught:
        copied(services, nix_store)
    problem = f"{store_path('b')} refers to {store_path('gone')}, which is neither listed nor in the store"
    assert str(caught.value) == problem
    assert list(services.path_infos) == []


def test_another_path_under_the_digest_of_a_reference(services: Services, nix_store: NixStore) -> None:
    other = StorePath(store_path("gone").digest, "other-name")
    import_nar(services, [nar_of_link()], store_path=other)
    nix_store.add("b", ["gone"])
    with pytest.raises(InvalidRequest, match="neither listed nor in the store"):
        copied(services, nix_store)


def nar_of_link() -> bytes:
    return encoded([Symlink(b"", b"target")])


def test_a_circle_is_found_before_anything_is_copied(services: Services, nix_store: NixStore) -> None:
    nix_store.add("a", ["b"])
    nix_store.add("b", ["a"])
    nix_store.add("c")
    with pytest.raises(InvalidRequest, match="in a circle"):
        copied(services, nix_store)
    assert list(services.path_infos) == []


def spoil_contents(nix_store: NixStore, name: str) -> str:
    (nix_store.place(name) / "references").write_text("something else")
    return f"^{store_path(name)}: the NAR has .* expected "


def spoil_size(nix_store: NixStore, name: str) -> str:
    nix_store.entries[name]["narSize"] += 8
    return f"^{store_path(name)}: the NAR has [0-9]+ bytes .* expected {nix_store.entries[name]['narSize']} "


def spoil_hash(nix_store: NixStore, name: str) -> str:
    nix_store.entries[name]["narHash"] = f"sha256:{'0' * 52}"
    return f"^{store_path(name)}: the NAR has .* expected .*{'0' * 64}"


def remove(nix_store: NixStore, name: str) -> str:
    nix_store.place(name).rename(nix_store.root / "elsewhere")
    return f"{nix_store.place(name)} does not exist"


def add_fifo(nix_store: NixStore, name: str) -> str:
    os.mkfifo(nix_store.place(name) / "pipe")
    return f"{nix_store.place(name)}/pipe"


def claim_address(nix_store: NixStore, name: str) -> str:
    nix_store.entries[name]["ca"] = f"fixed:r:sha256:{'0' * 52}"
    return f"^{store_path(name)}: its content address fixed:r:sha256:0* belongs to "


SPOILING = [spoil_contents, spoil_size, spoil_hash, remove, add_fifo, claim_address]


@pytest.mark.parametrize("spoil", SPOILING, ids=lambda spoil: spoil.__name__)
def test_one_that_fails_takes_with_it_what_depends_on_it(
    services: Services, nix_store: NixStore, spoil: Any
) -> None:
    for name, references in {"a": "", "bad": "a", "b": ("bad", "b"), "c": "ab", "d": "a", "e": "d"}.items():
        nix_store.add(name, list(references))
    message = spoil(nix_store, "bad")
    report, order = copied(services, nix_store)
    assert set(order) == {store_path(name) for name in "ade"}
    assert (report.copied, report.present) == (3, 0)
    assert {path.name for path in report.left_out} == {"b", "c"}
    (failure,) = report.failures.values()
    assert list(report.failures) == [store_path("bad")]
    with pytest.raises(type(failure), match=message):
        raise failure
    assert {info.store_path.name for info in services.path_infos} == {"a", "d", "e"}
    assert verify_store(services, nar_hashes=True).problems == []


def test_several_that_fail(services: Services, nix_store: NixStore) -> None:
    for name, references in {"a": "", "b": "a", "c": "b", "d": ""}.items():
        nix_store.add(name, list(references))
    spoil_hash(nix_store, "a")
    spoil_hash(nix_store, "d")
    report, order = copied(services, nix_store)
    assert order == []
    assert {path.name for path in report.failures} == {"a", "d"}
    assert {path.name for path in report.left_out} == {"b", "c"}


def test_what_failed_can_be_copied_later(services: Services, nix_store: NixStore) -> None:
    nix_store.add("a")
    nix_store.add("b", ["a"])
    right = nix_store.entries["a"]["narHash"]
    spoil_hash(nix_store, "a")
    assert len(copied(services, nix_store)[0].left_out) == 1
    nix_store.entries["a"]["narHash"] = right
    assert copied(services, nix_store)[0] == CopyReport(copied=2)


def test_another_nar_is_stored_already(services: Services, nix_store: NixStore) -> None:
    import_nar(services, [nar_of_link()], store_path=store_path("a"))
    nix_store.add("a")
    nix_store.add("b", ["a"])
    report, order = copied(services, nix_store)
    assert order == []
    failure = report.failures[store_path("a")]
    assert isinstance(failure, Conflict)
    assert str(failure) == f"{store_path('a')} is already in the store, with another NAR hash or size"
    assert report.left_out == [store_path("b")]


def test_another_name_is_stored_already(services: Services, nix_store: NixStore) -> None:
    other = StorePath(store_path("a").digest, "other-name")
    import_nar(services, [nar_of_link()], store_path=other)
    nix_store.add("a")
    failure = copied(services, nix_store)[0].failures[store_path("a")]
    assert isinstance(failure, Conflict)
    assert str(failure) == f"{store_path('a')}: the store has {other} with the same digest"


def test_what_is_stored_stays_when_its_references_fail(services: Services, nix_store: NixStore) -> None:
    nix_store.add("a")
    nix_store.add("b", ["a"])
    copied(services, nix_store)
    services.path_infos.delete_many([store_path("a").digest])
    spoil_contents(nix_store, "a")
    report, _ = copied(services, nix_store)
    assert list(report.failures) == [store_path("a")]
    assert report.left_out == []
    assert [info.store_path for info in services.path_infos] == [store_path("b")]


def test_nothing_listed(services: Services, nix_store: NixStore) -> None:
    assert copied(services, nix_store, []) == (CopyReport(), [])


def test_no_nix_store_there(services: Services, nix_store: NixStore, tmp_path: Path) -> None:
    nix_store.add("a")
    report = copy_closure(services, described(nix_store.closure), bytes(tmp_path / "nowhere"))
    assert "No such file or directory" in str(report.failures[store_path("a")])


class Reported:
    def __init__(self) -> None:
        self.total: int | None = None
        self.done = 0
        self.names: set[str] = set()
        self.threads: set[int] = set()

    def start(self, total: int | None) -> None:
        self.total = total

    def advance(self, amount: int, current: str = "") -> None:
        self.done += amount
        self.names.add(current)
        self.threads.add(threading.get_ident())


def test_progress_is_told_by_one_thread_and_comes_out_right(nix_store: NixStore) -> None:
    nix_store.add_many(12)
    progress = Reported()
    services = memory_services()
    copy_closure(services, described(nix_store.closure), bytes(nix_store.root), progress=progress)
    assert progress.total == progress.done == sum(entry["narSize"] for entry in nix_store.closure)
    assert progress.threads == {threading.get_ident()}
    assert any(name.startswith("package-") for name in progress.names)
    copy_closure(services, described(nix_store.closure), bytes(nix_store.root), progress=progress)
    assert progress.total == 0


class RefusingPathInfos(MemoryPathInfoService):
    """Takes a number of path infos and then raises."""

    def __init__(self, count: int, error: Exception) -> None:
        super().__init__()
        self._count = count
        self._error = error

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        if len(list(self)) >= self._count:
            raise self._error
        return super().put(path_info, replace=replace)


@pytest.mark.parametrize("error", [DiskFull("full"), Unavailable("gone"), PermissionDenied("no")])
def test_what_concerns_the_store_ends_the_copy(nix_store: NixStore, error: Exception) -> None:
    nix_store.add_many(30)
    memory = memory_services()
    services = Services(
        memory.blobs, memory.directories, RefusingPathInfos(5, error), MemoryNarNodes(), packs=None
    )
    with pytest.raises(type(error), match=str(error)):
        copied(services, nix_store)
    assert len(list(services.path_infos)) == 5


def test_a_server_that_goes_away(nix_store: NixStore, tmp_path: Path) -> None:
    nix_store.add_many(30)
    (nix_store.place("package-0") / "huge").touch()
    os.truncate(nix_store.place("package-0") / "huge", 1 << 40)  # Whatever happens, it is not copied before.
    nix_store.add("alone")
    with running_daemon("memory://", folder=tmp_path) as daemon:
        client = open_services(f"{daemon.url}?timeout=1")
        order: list[StorePath] = []

        def stopping(path: StorePath) -> None:
            order.append(path)
            daemon.stop(grace=0)

        with pytest.raises(Unavailable, match=r"^grpc\+unix:///"):
            copy_closure(client, described(nix_store.closure), bytes(nix_store.root), registered=stopping)
        client.close()
        stored = {info.store_path for info in daemon.services.path_infos}
        assert set(order) <= stored
        assert not any(thread.name.startswith("neve-copy") for thread in threading.enumerate())


def test_an_interrupted_copy_ends_soon_and_can_go_on(services: Services, nix_store: NixStore) -> None:
    nix_store.add_many(30)
    nix_store.add("huge", files={"zeros": bytes(200_000_000)})
    order: list[StorePath] = []

    def interrupting(path: StorePath) -> None:
        order.append(path)
        if len(order) == 3:
            raise KeyboardInterrupt

    entries = described(nix_store.closure)
    with pytest.raises(KeyboardInterrupt), watched(services):
        copy_closure(services, entries, bytes(nix_store.root), registered=interrupting)
    stored = {info.store_path for info in services.path_infos}
    assert set(order) <= stored
    assert len(stored) < 31
    report, _ = copied(services, nix_store)
    assert report == CopyReport(copied=31 - len(stored), present=len(stored))
