"""``PUT /<digest>.narinfo``: what makes a store path of a NAR that was uploaded. The rules, in their order:

1. at most 2 MiB, a valid narinfo, about the path whose digest the address has, and so is its content address;
2. its NAR is known by NarHash and here, and has the size that it says;
3. its references are present, of which it may be one itself (else 409, naming those that are missing);
4. signatures that do not verify by a trusted key or our own are dropped; where signatures are required, one
   must be left (else 403);
5. signed by an upstream key: it is not kept, only noted, so that what refers to it can be uploaded;
6. signed with our key, if there is one: hash and size of the NAR were computed here;
7. stored. A path that is there with other contents or references is a conflict (409); with the same, it
   gets the signatures of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from neve.errors import Conflict, InvalidRequest
from neve.http_cache.contents import received
from neve.http_cache.exchange import Exchange
from neve.http_cache.nar import is_here
from neve.http_cache.settings import Settings
from neve.http_cache.statuses import Refused
from neve.http_cache.threads import Threads
from neve.nix import base32
from neve.nix.narinfo import MAX_NARINFO_BYTES, NarInfo
from neve.nix.signing import PublicKey, verified, verify_any
from neve.nix.store_path import StorePath
from neve.store.closures import check_address_of
from neve.store.nar_nodes import known_nar, known_node
from neve.store.path_info import NarDetails, PathInfo, sorted_references
from neve.store.services import Services
from neve.store.signing import sign_path_info, with_own_nar
from neve.store.small_files import SmallFiles

UPSTREAM = "upstream"
"""The kind of the small files that note paths which are not kept: their narinfos, by digest."""

_NAMED = 20
"""Missing references that an error names; the others are counted."""


class NarInfoUploads:
    """Takes narinfos in."""

    def __init__(
        self, services: Services, settings: Settings, threads: Threads, small_files: SmallFiles | None
    ) -> None:
        self._services = services
        self._threads = threads
        self._small_files = small_files
        self._key = settings.signing_key()
        # What is remembered here was computed here; a server that remembers may have been told anything.
        self._proves = self._key is not None and not services.nar_nodes.is_ours
        """Whether the hash of a NAR is to be computed again before it is signed."""
        self._keys = settings.verifying_keys()
        self._required = settings.require_signatures
        self._upstream: Sequence[PublicKey] = tuple(map(PublicKey.parse, settings.upstream_keys))

    async def put(self, exchange: Exchange, name: str) -> None:
        """Raises ``InvalidRequest``, ``LimitExceeded``, ``Conflict`` and ``Refused``, by the rules."""
        digest = base32.decode(name)
        data = await received(exchange, self._threads, MAX_NARINFO_BYTES, "a narinfo")
        with exchange.working():
            # Whoever has to read all of a NAR again does not keep commits waiting.
            run = self._threads.hash if self._proves else self._threads.commit
            line = await run(partial(self._take, data, digest))
        await exchange.answer_line(200, line)

    def _take(self, data: bytes, digest: bytes) -> str:
        narinfo = NarInfo.parse(data, expected_digest=digest)
        # No signature covers it.
        check_address_of(narinfo.store_path, narinfo.references, narinfo.nar_sha256, narinfo.ca)
        path_info = self._described(narinfo)
        self._check_references(narinfo)
        if verify_any(narinfo.fingerprint(), narinfo.signatures, self._upstream):
            if self._small_files is not None:
                self._small_files.put(UPSTREAM, base32.encode(digest), data)
            return "not kept: it is signed by an upstream cache"
        signatures = verified(narinfo.fingerprint(), narinfo.signatures, self._keys)
        if self._required and not signatures:
            raise Refused(403, f"{narinfo.store_path} has no signature by a key that is trusted here")
        self._check_stored(narinfo)
        path_info = path_info.with_signatures(signatures)
        if self._proves:
            path_info = with_own_nar(self._services, path_info)
        if self._key is not None:
            path_info = sign_path_info(path_info, self._key)
        self._check_same(self._services.path_infos.put(path_info), narinfo)  # It came meanwhile, maybe.
        return "stored"

    def _check_stored(self, narinfo: NarInfo) -> None:
        """What is stored would get our signature, too, and that would be of other references."""
        if self._services.path_infos.may_fetch:
            return  # What is somewhere else is nobody's business, and asking may take long.
        stored = self._services.path_infos.describe(narinfo.store_path.digest)
        if isinstance(stored, PathInfo):
            self._check_same(stored, narinfo)

    def _check_same(self, stored: PathInfo, narinfo: NarInfo) -> None:
        if stored.nar is not None and stored.nar.reference_names != sorted_references(narinfo.references):
            raise Conflict(f"{narinfo.store_path} is already in the store, with other references")

    def _described(self, narinfo: NarInfo) -> PathInfo:
        """The path info, of the tree that its NAR was found to hold."""
        found = known_node(self._services.nar_nodes, narinfo.nar_sha256)
        nar = None if found is None else known_nar(self._services.nar_nodes, found[0])
        if found is None or nar is None or not is_here(self._services, found[0]):
            raise InvalidRequest(f"the NAR of {narinfo.store_path} is not here: upload it before its narinfo")
        if nar.sha256 != narinfo.nar_sha256:
            raise InvalidRequest(f"NarHash of {narinfo.store_path} is the hash of a compressed file")
        if nar.size != narinfo.nar_size:
            raise InvalidRequest(
                f"NarSize of {narinfo.store_path} is {narinfo.nar_size}, the NAR has {nar.size} bytes"
            )
        names = sorted_references(narinfo.references)
        details = NarDetails(
            size=nar.size,
            sha256=nar.sha256,
            reference_names=names,
            deriver=narinfo.deriver,
            ca=narinfo.ca,
        )
        return PathInfo(narinfo.store_path, found[0], tuple(path.digest for path in names), details)

    def _check_references(self, narinfo: NarInfo) -> None:
        missing = [
            path
            for path in sorted_references(narinfo.references)
            if path != narinfo.store_path and not self._has(path)
        ]
        if missing:
            named = ", ".join(path.base_name for path in missing[:_NAMED])
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise Conflict(f"{narinfo.store_path} refers to what is not here: {named}{more}")

    def _has(self, path: StorePath) -> bool:
        found = self._services.path_infos.describe(path.digest)
        if found is not None:
            return found.store_path == path
        if self._small_files is None or not self._upstream:
            return False
        return self._small_files.get(UPSTREAM, base32.encode(path.digest)) is not None
