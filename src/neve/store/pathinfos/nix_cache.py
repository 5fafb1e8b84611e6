"""Path infos from a Nix binary cache: substituted on demand, verified, and kept nowhere but in the map of
NARs, so that no NAR is fetched twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from neve.castore.node import Node
from neve.castore.traverse import is_whole
from neve.errors import Unsupported
from neve.nix import base32
from neve.nix.cache_info import MAX_CACHE_INFO_BYTES, CacheInfo
from neve.nix.narinfo import MAX_NARINFO_BYTES, NarInfo
from neve.nix.signing import PublicKey, Signature, verify_any
from neve.registry import Address
from neve.store.closures import check_address_of
from neve.store.nar_nodes import Nar, known_nar, known_node
from neve.store.path_info import NarDetails, PathDescription, PathInfo
from neve.store.pathinfos.base import PathInfoService, check_path_digest
from neve.store.pathinfos.context import PathInfoContext
from neve.store.substitute.address import open_files, trusted_keys
from neve.store.substitute.files import CacheFiles, InvalidAnswer, naming
from neve.store.substitute.nars import check_nar_file, fetch_nar
from neve.store.substitute.single_flight import SingleFlight

CACHE_INFO = "nix-cache-info"

_SHOWN_NAMES = 5
_SHOWN_LENGTH = 100


class Untrusted(InvalidAnswer):
    """A narinfo has no signature by a key that is trusted."""


class NixCachePathInfoService(PathInfoService):
    """The path infos of one cache. Owns ``files``, not the services of ``context``.

    ``get`` answers when the contents are in those services. ``trusted_keys``: without any, whoever
    answers at the address is believed.
    """

    only_read = True
    may_fetch = True

    def __init__(
        self, files: CacheFiles, context: PathInfoContext, *, trusted_keys: Sequence[PublicKey] = ()
    ) -> None:
        self._files = files
        self._context = context
        self._trusted = tuple(trusted_keys)
        self._is_checked = False
        self._checks: SingleFlight[str, bool] = SingleFlight()
        self._gets: SingleFlight[bytes, PathInfo | None] = SingleFlight()
        self._fetches: SingleFlight[Nar, Node] = SingleFlight()

    def get(self, digest: bytes) -> PathInfo | None:
        check_path_digest(digest)
        return self._gets.run(digest, lambda: self._get(digest))

    def _get(self, digest: bytes) -> PathInfo | None:
        found = self._narinfo(digest)
        if found is None:
            return None
        narinfo, name = found
        # By its contents: several paths may have the same.
        nar = Nar(narinfo.nar_size, narinfo.nar_sha256)
        node = self._fetches.run(nar, lambda: self._node(narinfo, name))
        return _path_info(narinfo, node)

    def _node(self, narinfo: NarInfo, name: str) -> Node:
        known = self._known(narinfo)
        return fetch_nar(self._files, name, narinfo, self._context) if known is None else known

    def describe(self, digest: bytes) -> PathInfo | PathDescription | None:
        found = self._narinfo(check_path_digest(digest))
        if found is None:
            return None
        narinfo = found[0]
        known = self._known(narinfo)
        if known is not None:
            return _path_info(narinfo, known)
        return PathDescription(narinfo.store_path, _details(narinfo))

    def _narinfo(self, digest: bytes) -> tuple[NarInfo, str] | None:
        """The narinfo, if it can be trusted, and the name of the NAR's file."""
        if not self._is_checked:
            self._is_checked = self._checks.run(CACHE_INFO, self._check_cache)
        name = f"{base32.encode(digest)}.narinfo"
        data = self._files.read(name, MAX_NARINFO_BYTES)
        if data is None:
            return None
        where = self._files.where(name)
        with naming(where):
            narinfo = NarInfo.parse(data, expected_digest=digest)
            # No signature covers it.
            check_address_of(narinfo.store_path, narinfo.references, narinfo.nar_sha256, narinfo.ca)
            file = check_nar_file(narinfo, self._files.url)
        if self._trusted and not verify_any(narinfo.fingerprint(), narinfo.signatures, self._trusted):
            by = _listed(one.name for one in narinfo.signatures) or "nobody"
            names = _listed(key.name for key in self._trusted)
            raise Untrusted(f"{where}: no valid signature by a trusted key ({names}); it is signed by {by}")
        return narinfo, file

    def _check_cache(self) -> bool:
        """Whether it is a cache for our store directory, or ``InvalidAnswer``."""
        data = self._files.read(CACHE_INFO, MAX_CACHE_INFO_BYTES)
        where = self._files.where(CACHE_INFO)
        if data is None:
            raise InvalidAnswer(f"{where} is not there: this is no binary cache, or not its address")
        with naming(where):
            CacheInfo.parse(data)
        return True

    def _known(self, narinfo: NarInfo) -> Node | None:
        """The tree with this NAR, if the services have it."""
        found = known_node(self._context.nar_nodes, narinfo.nar_sha256)
        if found is None:
            return None
        node = found[0]
        nar = known_nar(self._context.nar_nodes, node)
        # The map knows trees by the hashes of compressed files too, and a cache may pass one off as a NAR's.
        if nar is None or nar.sha256 != narinfo.nar_sha256:
            return None
        if nar.size != narinfo.nar_size:
            where = self._files.where(f"{base32.encode(narinfo.store_path.digest)}.narinfo")
            raise InvalidAnswer(f"{where}: NarSize is {narinfo.nar_size}, this NAR has {nar.size} bytes")
        # The map outlives what it tells of, and contents may lie elsewhere than Directories.
        return node if is_whole(self._context.blobs, self._context.directories, node) else None

    # What a cache that is only read cannot do.

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        raise self._cannot("take path infos")

    def list(self, after: bytes = b"", limit: int = 1000) -> Sequence[PathInfo]:
        raise self._cannot("list its path infos")

    def delete_many(self, digests: Sequence[bytes], *, unused_for: float | None = None) -> int:
        raise self._cannot("delete path infos")

    def add_signatures(self, digest: bytes, signatures: Sequence[Signature]) -> PathInfo:
        raise self._cannot("take signatures")

    def referrers(self, digest: bytes) -> Sequence[bytes]:
        raise self._cannot("tell referrers")

    def _cannot(self, what: str) -> Unsupported:
        return Unsupported(f"{self._files.url} is a binary cache that is only read: it cannot {what}")

    def close(self) -> None:
        self._files.close()


def _listed(names: Iterable[str]) -> str:
    different = list(dict.fromkeys(names))
    more = f" and {len(different) - _SHOWN_NAMES} more" if len(different) > _SHOWN_NAMES else ""
    return ", ".join(name[:_SHOWN_LENGTH] for name in different[:_SHOWN_NAMES]) + more


def _details(narinfo: NarInfo) -> NarDetails:
    return NarDetails(
        size=narinfo.nar_size,
        sha256=narinfo.nar_sha256,
        reference_names=narinfo.references,
        signatures=narinfo.signatures,
        deriver=narinfo.deriver,
        ca=narinfo.ca,
    )


def _path_info(narinfo: NarInfo, node: Node) -> PathInfo:
    references = tuple(reference.digest for reference in narinfo.references)
    return PathInfo(narinfo.store_path, node, references, _details(narinfo))


def open_nix_cache(address: Address, context: PathInfoContext | None) -> NixCachePathInfoService:
    """``nix+https://host/path``, ``nix+http://host:port``, ``nix+file:///folder``"""
    keys = trusted_keys(address)
    if context is None:
        raise address.refuse("a binary cache needs services beside it that keep what is fetched")
    return NixCachePathInfoService(open_files(address, context.netrc_file), context, trusted_keys=keys)
