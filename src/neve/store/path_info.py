"""PathInfo: what a store path is made of, and how two descriptions of one path are reconciled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from neve.castore.node import Node, validate_node
from neve.errors import Conflict, InvalidRequest
from neve.nix.hashes import CAHash
from neve.nix.narinfo import fingerprint
from neve.nix.signing import Signature
from neve.nix.store_path import DIGEST_SIZE, StorePath

_MAX_U64 = 2**64 - 1


class InvalidPathInfo(InvalidRequest):
    """A path info that breaks a rule. The message names field, position, expected and actual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NarDetails:
    """What Nix knows of a store path beside its contents."""

    size: int
    """Size of the NAR in bytes."""
    sha256: bytes
    """sha256 of the NAR, 32 bytes."""
    reference_names: tuple[StorePath, ...] = ()
    """The references with their names, in the order of ``PathInfo.references``."""
    signatures: tuple[Signature, ...] = ()
    deriver: StorePath | None = None
    """Without the ``.drv``."""
    ca: CAHash | None = None


@dataclass(frozen=True, slots=True)
class PathDescription:
    """A store path whose contents are somewhere else: what a path info tells, but for the root node.

    The NAR is as it was described there; nobody here has seen it.
    """

    store_path: StorePath
    nar: NarDetails


@dataclass(frozen=True, slots=True)
class PathInfo:
    """A store path, the root node of its contents, and what it refers to.

    Raises ``InvalidPathInfo`` when the parts do not fit together.
    """

    store_path: StorePath
    node: Node
    references: tuple[bytes, ...] = ()
    """Digests of the store paths that the contents refer to, 20 bytes each."""
    nar: NarDetails | None = None

    def __post_init__(self) -> None:
        try:
            validate_node(self.node)
        except InvalidRequest as error:
            raise InvalidPathInfo(f"node: {error}") from error
        for i, reference in enumerate(self.references):
            if len(reference) != DIGEST_SIZE:
                raise InvalidPathInfo(f"references[{i}] has {len(reference)} bytes, must have {DIGEST_SIZE}")
        if self.nar is not None:
            self._check_nar(self.nar)

    def _check_nar(self, nar: NarDetails) -> None:
        if len(nar.sha256) != 32:
            raise InvalidPathInfo(f"narinfo.nar_sha256 has {len(nar.sha256)} bytes, must have 32")
        if not 0 <= nar.size <= _MAX_U64:
            raise InvalidPathInfo(f"narinfo.nar_size {nar.size} does not fit 64 bits")
        if len(nar.reference_names) != len(self.references):
            raise InvalidPathInfo(
                f"narinfo.reference_names has {len(nar.reference_names)} entries, "
                f"references has {len(self.references)}"
            )
        for i, (path, digest) in enumerate(zip(nar.reference_names, self.references, strict=True)):
            if path.digest != digest:
                raise InvalidPathInfo(
                    f"narinfo.reference_names[{i}] is {path.base_name}, "
                    f"references[{i}] is {StorePath(digest, 'x').base_name[:32]}"
                )

    @property
    def digest(self) -> bytes:
        """The store path's digest, 20 bytes: the key of this path info."""
        return self.store_path.digest

    def fingerprint(self) -> bytes:
        """What signatures cover. Raises ``InvalidRequest`` without NAR details."""
        if self.nar is None:
            raise InvalidRequest(f"{self.store_path}: without NAR hash and size there is nothing to sign")
        return fingerprint(self.store_path, self.nar.sha256, self.nar.size, self.nar.reference_names)

    def with_signatures(self, signatures: Iterable[Signature]) -> PathInfo:
        """This path info with ``signatures`` added, those it has first, none twice."""
        if self.nar is None:
            raise InvalidRequest(f"{self.store_path} has no narinfo that could carry signatures")
        united = tuple(dict.fromkeys([*self.nar.signatures, *signatures]))
        return (
            self if united == self.nar.signatures else replace(self, nar=replace(self.nar, signatures=united))
        )


def sorted_references(paths: Iterable[StorePath]) -> tuple[StorePath, ...]:
    """References in the order they are written in: by base name, each once."""
    return tuple(sorted(set(paths)))


def united(stored: PathInfo | None, new: PathInfo) -> PathInfo:
    """What is stored after ``new`` is put where ``stored`` is: the rule every backend follows.

    Equal node and NAR hash: the stored one with the signatures of both. A narinfo that only one of
    them has is kept. Raises ``Conflict`` for anything else.
    """
    if stored is None:
        return new
    if stored.node != new.node or stored.store_path != new.store_path:
        raise Conflict(f"{new.store_path} is already in the store, with other contents")
    if new.nar is None:
        return stored
    if stored.nar is None:
        return new
    if (stored.nar.sha256, stored.nar.size) != (new.nar.sha256, new.nar.size):
        raise Conflict(f"{new.store_path} is already in the store, with another NAR hash or size")
    return stored.with_signatures(new.nar.signatures)
