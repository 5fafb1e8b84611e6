"""The contract of path info services. A backend's tests subclass it and supply ``service``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from neve.castore.ages import SLACK
from neve.castore.node import FileNode, SymlinkNode
from neve.errors import Conflict, InvalidRequest, LimitExceeded, NotFound, PermissionDenied, Unsupported
from neve.nix.hashes import CAHash, CAType
from neve.nix.signing import Signature
from neve.nix.store_path import StorePath
from neve.store.path_info import NarDetails, PathInfo
from neve.store.pathinfos.base import MAX_PATH_INFO_BYTES, PathInfoService
from neve.store.wire import decode_path_info
from neve.testing.ages import all_ages, is_fresh


def store_path(name: str) -> StorePath:
    """A store path whose digest follows from its name."""
    return StorePath(hashlib.sha256(name.encode()).digest()[:20], name)


def signature(name: str) -> Signature:
    """A well-formed signature by a key of this name, which verifies nothing."""
    return Signature(name, hashlib.sha512(name.encode()).digest())


def path_info(
    name: str,
    *,
    references: Iterable[StorePath] = (),
    signatures: Iterable[str] = (),
    contents: str = "",
    with_nar: bool = True,
) -> PathInfo:
    """A path info as different from others as ``name`` and ``contents``; nothing of it is stored."""
    seed = (contents or name).encode()
    references = tuple(references)
    nar = NarDetails(
        size=112 + 8 * len(seed),
        sha256=hashlib.sha256(b"nar of " + seed).digest(),
        reference_names=references,
        signatures=tuple(signature(one) for one in signatures),
    )
    node = FileNode(hashlib.sha256(b"blob of " + seed).digest(), len(seed))
    digests = tuple(path.digest for path in references)
    return PathInfo(store_path(name), node, digests, nar if with_nar else None)


class PathInfoAgesContract:
    """The contract of ages, see ``neve.testing.ages``: for one that tells them, beside the other."""

    reading_counts = True
    """Whether ``get`` uses a path info."""

    def make_older(self, service: Any, seconds: float) -> None:
        """Makes all path infos so much older, behind the back of ``service``."""
        raise NotImplementedError

    def test_ages(self, service: PathInfoService) -> None:
        assert service.tells_ages
        put = [service.put(path_info(f"path-{number}")) for number in range(7)]
        ages = all_ages(service.list_with_ages)
        assert set(ages) == {one.digest for one in put}
        assert all(is_fresh(age) for age in ages.values())
        self.make_older(service, 4 * SLACK)
        assert not any(is_fresh(age) for age in all_ages(service.list_with_ages).values())
        # Put again, with a signature more and without; and told to be there.
        service.put(put[0])
        service.add_signatures(put[1].digest, [signature("key")])
        assert service.get(put[2].digest) == put[2]
        ages = all_ages(service.list_with_ages)
        assert [is_fresh(ages[one.digest]) for one in put] == [True, True, self.reading_counts, *[False] * 4]
        digests = [one.digest for one in put]
        assert service.delete_many(digests, unused_for=6 * SLACK) == 0
        stay = 3 if self.reading_counts else 2
        assert service.delete_many(digests, unused_for=3 * SLACK) == len(digests) - stay
        assert set(all_ages(service.list_with_ages)) == set(digests[:stay])


class PathInfoServiceContract:
    """What every ``PathInfoService`` does. One that cannot list, delete, replace or tell referrers says so,
    or may not."""

    can_list = True
    can_delete = True
    can_replace = True
    can_tell_referrers = True

    @pytest.fixture
    def service(self) -> Iterator[PathInfoService]:
        """An empty service."""
        raise NotImplementedError

    @pytest.mark.parametrize("size", [0, 19, 21, 32])
    def test_digests_have_twenty_bytes(self, service: PathInfoService, size: int) -> None:
        kept = service.put(path_info("kept"))
        calls: list[Callable[[], object]] = [
            lambda: service.get(bytes(size)),
            lambda: service.add_signatures(bytes(size), [signature("key")]),
        ]
        if self.can_delete:
            calls.append(lambda: service.delete_many([kept.digest, bytes(size)]))
        if self.can_tell_referrers:
            calls.append(lambda: service.referrers(bytes(size)))
        for call in calls:
            with pytest.raises(InvalidRequest, match=f"has {size} bytes, must have 20"):
                call()
        assert service.get(kept.digest) == kept

    def test_absence_is_none(self, service: PathInfoService) -> None:
        assert service.get(store_path("absent").digest) is None
        service.put(path_info("other"))
        assert service.get(store_path("absent").digest) is None

    def test_what_is_put_is_there(self, service: PathInfoService) -> None:
        given = replace(
            path_info("full", references=[store_path("b"), store_path("a")], signatures=["one", "two"]),
            node=SymlinkNode(b"\xff/target"),
        )
        assert given.nar is not None
        ca = CAHash(CAType.NAR_SHA1, bytes(20))
        given = replace(given, nar=replace(given.nar, deriver=store_path("deriver"), ca=ca))
        assert service.put(given) == given
        assert service.get(given.digest) == given

    def test_describing_what_is_there(self, service: PathInfoService) -> None:
        given = service.put(path_info("p", references=[store_path("a")], signatures=["key"]))
        assert service.describe(given.digest) == given
        assert service.describe(store_path("absent").digest) is None
        with pytest.raises(InvalidRequest, match="has 32 bytes, must have 20"):
            service.describe(bytes(32))

    def test_references_keep_their_order(self, service: PathInfoService) -> None:
        paths = [store_path(name) for name in ("c", "a", "b")]
        given = path_info("ordered", references=paths)
        service.put(given)
        found = service.get(given.digest)
        assert found is not None
        assert found.references == tuple(path.digest for path in paths)
        assert found.nar is not None
        assert found.nar.reference_names == tuple(paths)

    def test_a_path_info_without_narinfo_is_kept_as_it_is(self, service: PathInfoService) -> None:
        given = path_info("bare", references=[store_path("a")], with_nar=False)
        assert given.nar is None
        assert service.put(given) == given
        assert service.get(given.digest) == given
        assert service.put(given) == given

    def test_what_is_known_of_the_nar_is_not_lost(self, service: PathInfoService) -> None:
        full, bare = path_info("p", signatures=["key"]), path_info("p", with_nar=False)
        service.put(bare)
        assert service.put(full) == full
        assert service.put(bare) == full
        assert service.get(full.digest) == full

    def test_signatures_of_equal_path_infos_are_united(self, service: PathInfoService) -> None:
        service.put(path_info("p", signatures=["one", "two"]))
        stored = service.put(path_info("p", signatures=["two", "three"]))
        assert stored == path_info("p", signatures=["one", "two", "three"])
        assert service.get(stored.digest) == stored
        assert service.put(path_info("p")) == stored

    def test_signatures_have_an_end(self, service: PathInfoService) -> None:
        """However they come: a few at a time, or too many at once."""
        # Each has over 150 bytes, so the second half does not fit.
        names = [f"{number:0100}" for number in range(MAX_PATH_INFO_BYTES // 150)]
        half = len(names) // 2
        other = service.put(path_info("q"))
        stored = service.put(path_info("p", signatures=names[:half]))
        for more in (names[half:], names):
            with pytest.raises(LimitExceeded, match=str(MAX_PATH_INFO_BYTES)):
                service.put(path_info("p", signatures=more))
        with pytest.raises(LimitExceeded, match=str(MAX_PATH_INFO_BYTES)):
            service.add_signatures(stored.digest, [signature(name) for name in names[half:]])
        if self.can_replace:
            with pytest.raises(LimitExceeded, match=str(MAX_PATH_INFO_BYTES)):
                service.put(path_info("p", signatures=names), replace=True)
        assert service.get(stored.digest) == stored == path_info("p", signatures=names[:half])
        assert service.put(path_info("p")) == stored
        if self.can_list:
            assert set(service.list()) == {stored, other}

    def test_putting_it_again_changes_nothing(self, service: PathInfoService) -> None:
        given = path_info("p", references=[store_path("p")], signatures=["one"])
        assert service.put(given) == service.put(given) == given

    def test_another_node_is_a_conflict(self, service: PathInfoService) -> None:
        given = path_info("p")
        assert isinstance(given.node, FileNode)
        service.put(given)
        for node in (given.node._replace(executable=True), given.node._replace(size=2), SymlinkNode(b"x")):
            with pytest.raises(Conflict, match=given.store_path.name):
                service.put(replace(given, node=node))
        assert service.get(given.digest) == given

    def test_another_nar_is_a_conflict(self, service: PathInfoService) -> None:
        given = path_info("p")
        assert given.nar is not None
        service.put(given)
        for nar in (replace(given.nar, sha256=bytes(32)), replace(given.nar, size=given.nar.size + 8)):
            with pytest.raises(Conflict, match=given.store_path.name):
                service.put(replace(given, nar=nar))
        assert service.get(given.digest) == given

    def test_another_name_of_the_same_digest_is_a_conflict(self, service: PathInfoService) -> None:
        given = path_info("p")
        service.put(given)
        with pytest.raises(Conflict):
            service.put(replace(given, store_path=StorePath(given.digest, "q")))
        assert service.get(given.digest) == given

    def test_replacing(self, service: PathInfoService) -> None:
        old = path_info("p", signatures=["old"], references=[store_path("a"), store_path("b")])
        new = path_info("p", contents="new", signatures=["new"], references=[store_path("b")])
        if not self.can_replace:
            with pytest.raises((Unsupported, PermissionDenied)):
                service.put(new, replace=True)
            assert service.get(new.digest) is None
            return
        assert service.put(new, replace=True) == new
        assert service.put(old, replace=True) == old
        assert service.put(new, replace=True) == new
        assert service.get(new.digest) == new
        if self.can_tell_referrers:
            assert service.referrers(store_path("a").digest) == []
            assert service.referrers(store_path("b").digest) == [new.digest]

    def test_adding_signatures(self, service: PathInfoService) -> None:
        given = service.put(path_info("p", signatures=["one"]))
        stored = service.add_signatures(given.digest, [signature("two"), signature("one")])
        assert stored == path_info("p", signatures=["one", "two"])
        assert service.get(given.digest) == stored

    def test_signatures_need_a_path_with_narinfo(self, service: PathInfoService) -> None:
        with pytest.raises(NotFound, match="no path with the digest"):
            service.add_signatures(store_path("absent").digest, [signature("one")])
        bare = service.put(path_info("bare", with_nar=False))
        with pytest.raises(InvalidRequest, match="no narinfo"):
            service.add_signatures(bare.digest, [signature("one")])

    def test_listing(self, service: PathInfoService) -> None:
        if not self.can_list:
            with pytest.raises((Unsupported, PermissionDenied)):
                service.list()
            return
        assert list(service.list()) == []
        assert list(service) == []
        infos = sorted((path_info(f"p{i}") for i in range(25)), key=lambda info: info.digest)
        for info in infos:
            service.put(info)
        assert list(service.list()) == infos
        assert list(service) == infos
        assert list(service.names()) == [info.store_path for info in infos]
        assert list(service.names(infos[9].digest, 2)) == [info.store_path for info in infos[10:12]]
        pages = []
        after = b""
        while page := list(service.list(after, 7)):
            pages.append(len(page))
            after = page[-1].digest
        assert pages == [7, 7, 7, 4]
        assert list(service.list(infos[9].digest, 2)) == infos[10:12]
        # Between two digests, and above all of them.
        assert list(service.list(infos[9].digest[:-1], 1)) == infos[9:10]
        assert list(service.list(b"\xff" * 20)) == []

    def test_listing_as_it_is_encoded(self, service: PathInfoService) -> None:
        if not self.can_list:
            with pytest.raises(Unsupported):
                service.list_encoded()
            return
        for number in range(5):
            service.put(path_info(f"p{number}", signatures=["key"]))
        listed = list(service.list_encoded())
        assert [decode_path_info(encoded) for _, encoded in listed if isinstance(encoded, bytes)] == list(
            service.list()
        )
        assert [digest for digest, _ in listed] == [found.digest for found in service.list()]
        assert list(service.list_encoded(listed[1][0], 2)) == listed[2:4]
        assert list(service.list_encoded(listed[-1][0])) == []
        assert service.lists_in_pages() in (True, False)

    def test_putting_many(self, service: PathInfoService) -> None:
        first, second = path_info("first", signatures=["one"]), path_info("second")
        service.put(second)
        another = path_info("second", contents="another")
        signed = path_info("first", signatures=["two"])
        results = service.put_many([first, another, signed, path_info("third")])
        assert isinstance(results[1], Conflict)
        assert [service.get(store_path(name).digest) for name in ("first", "second", "third")] == [
            path_info("first", signatures=["one", "two"]),
            second,
            path_info("third"),
        ]
        assert (results[0], results[2], results[3]) == (
            first,
            path_info("first", signatures=["one", "two"]),
            path_info("third"),
        )
        assert list(service.put_many([])) == []

    def test_listing_while_paths_come_and_go(self, service: PathInfoService) -> None:
        if not (self.can_list and self.can_delete):
            return
        infos = sorted((path_info(f"p{i}") for i in range(6)), key=lambda info: info.digest)
        for info in infos:
            service.put(info)
        first = list(service.list(limit=3))
        service.delete_many([first[-1].digest])
        assert list(service.list(first[-1].digest)) == infos[3:]

    def test_deleting(self, service: PathInfoService) -> None:
        kept, gone = path_info("kept"), path_info("gone", references=[store_path("kept")])
        service.put(kept)
        service.put(gone)
        if not self.can_delete:
            with pytest.raises((Unsupported, PermissionDenied)):
                service.delete_many([gone.digest])
            return
        assert service.delete_many([]) == 0
        assert service.delete_many([gone.digest, gone.digest, store_path("absent").digest]) == 1
        assert service.get(gone.digest) is None
        assert service.get(kept.digest) == kept
        if self.can_tell_referrers:
            assert service.referrers(kept.digest) == []
        other = path_info("gone", contents="other")
        assert service.put(other) == other

    def test_referrers(self, service: PathInfoService) -> None:
        a, b = store_path("a"), store_path("b")
        infos = [
            path_info("a", references=[a]),
            path_info("x", references=[a, b]),
            path_info("y", references=[b, a]),
            path_info("z"),
        ]
        for info in infos:
            service.put(info)
        if not self.can_tell_referrers:
            with pytest.raises((Unsupported, PermissionDenied)):
                service.referrers(a.digest)
            return
        assert list(service.referrers(a.digest)) == sorted(info.digest for info in infos[:3])
        # Nobody needs to have the path that is referred to.
        assert list(service.referrers(b.digest)) == sorted(info.digest for info in infos[1:3])
        assert list(service.referrers(infos[3].digest)) == []

    def test_concurrent_signers_lose_nothing(self, service: PathInfoService) -> None:
        names = [f"key-{i}" for i in range(16)]
        with ThreadPoolExecutor(len(names)) as pool:
            results = list(pool.map(lambda name: service.put(path_info("p", signatures=[name])), names))
        stored = service.get(path_info("p").digest)
        assert stored is not None
        assert stored.nar is not None
        assert {one.name for one in stored.nar.signatures} == set(names)
        assert stored.nar.signatures == tuple(dict.fromkeys(stored.nar.signatures))
        for name, result in zip(names, results, strict=True):
            assert result.nar is not None
            assert signature(name) in result.nar.signatures

    def test_of_concurrent_strangers_one_wins(self, service: PathInfoService) -> None:
        def put(i: int) -> PathInfo | None:
            try:
                return service.put(path_info("p", contents=f"version {i}"))
            except Conflict:
                return None

        with ThreadPoolExecutor(8) as pool:
            winners = [info for info in pool.map(put, range(8)) if info is not None]
        assert len(winners) == 1
        assert service.get(winners[0].digest) == winners[0]

    def test_closing_twice(self, service: PathInfoService) -> None:
        service.put(path_info("p"))
        service.close()
        service.close()
