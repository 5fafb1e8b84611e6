"""Path infos that are signed with a key of ours when they are put."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from neve.castore.node import Node
from neve.errors import Corrupt, InvalidRequest, LimitExceeded, NotFound, PermissionDenied, Unavailable
from neve.nix.signing import SecretKey, Signature
from neve.nix.store_path import StorePath
from neve.registry import Address
from neve.store.nar.render import NarCalculation, NarRenderer, RenderingNarCalculation
from neve.store.nar_nodes import Nar
from neve.store.path_info import NarDetails, PathDescription, PathInfo
from neve.store.pathinfos.base import PathInfoService
from neve.store.pathinfos.context import PathInfoContext
from neve.store.pathinfos.urls import PATH_INFO_SERVICES
from neve.store.signing import MAX_KEY_FILE_BYTES, parse_secret_key
from neve.telemetry import LOGGER


class SigningPathInfoService(PathInfoService):
    """Signs what is put to ``inner``, which it owns.

    Only NAR hashes and sizes that ``calculation`` has computed from the contents are signed: where it says
    something else, or the contents are not there, the path info is stored as it came.
    """

    def __init__(self, inner: PathInfoService, key: SecretKey, calculation: NarCalculation) -> None:
        self._inner = inner
        self._key = key
        self._public_key = key.public_key()
        self._calculation = calculation
        self.only_read = inner.only_read
        self.may_fetch = inner.may_fetch

    @property
    def tells_ages(self) -> bool:
        return self._inner.tells_ages

    def get(self, digest: bytes) -> PathInfo | None:
        return self._inner.get(digest)

    def describe(self, digest: bytes) -> PathInfo | PathDescription | None:
        return self._inner.describe(digest)

    def put(self, path_info: PathInfo, *, replace: bool = False) -> PathInfo:
        return self._inner.put(self._signed(path_info), replace=replace)

    def _signed(self, path_info: PathInfo) -> PathInfo:
        nar = path_info.nar
        if nar is None or self._is_signed(path_info, nar) or not self._is_true(path_info, nar):
            return path_info
        return path_info.with_signatures([self._key.sign(path_info.fingerprint())])

    def _is_signed(self, path_info: PathInfo, nar: NarDetails) -> bool:
        # One of our name that is not ours must not keep us from signing.
        ours = (signature for signature in nar.signatures if signature.name == self._key.name)
        return any(self._public_key.verify(path_info.fingerprint(), signature) for signature in ours)

    def _is_true(self, path_info: PathInfo, nar: NarDetails) -> bool:
        try:
            actual = self._calculation.calculate_nar(path_info.node)
        except NotFound as error:
            LOGGER.warning("%s is not signed: %s", path_info.store_path, error)
            return False
        if actual != Nar(nar.size, nar.sha256):
            LOGGER.warning("%s is not signed: its path info states another NAR", path_info.store_path)
            return False
        return True

    def list(self, after: bytes = b"", limit: int = 1000) -> Sequence[PathInfo]:
        return self._inner.list(after, limit)

    def list_encoded(self, after: bytes = b"", limit: int = 1000) -> Sequence[tuple[bytes, bytes | Corrupt]]:
        return self._inner.list_encoded(after, limit)

    def lists_in_pages(self) -> bool:
        return self._inner.lists_in_pages()

    def names(self, after: bytes = b"", limit: int = 1000) -> Sequence[StorePath]:
        return self._inner.names(after, limit)

    def __iter__(self) -> Iterator[PathInfo]:
        return iter(self._inner)

    def list_with_ages(self, after: bytes = b"", limit: int = 1000) -> Sequence[tuple[bytes, float]]:
        return self._inner.list_with_ages(after, limit)

    def delete_many(self, digests: Sequence[bytes], *, unused_for: float | None = None) -> int:
        return self._inner.delete_many(digests, unused_for=unused_for)

    def add_signatures(self, digest: bytes, signatures: Sequence[Signature]) -> PathInfo:
        return self._inner.add_signatures(digest, signatures)

    def referrers(self, digest: bytes) -> Sequence[bytes]:
        return self._inner.referrers(digest)

    def close(self) -> None:
        self._inner.close()


class _ReadingNarCalculation(NarCalculation):
    """Renders the NAR each time, and remembers nothing."""

    def __init__(self, renderer: NarRenderer) -> None:
        self._renderer = renderer

    def calculate_nar(self, node: Node) -> Nar:
        return self._renderer.hash(node)


def _own_calculation(context: PathInfoContext) -> NarCalculation:
    """What computes NARs here. A map of NARs that is a server's is not asked: its word is not enough."""
    renderer = NarRenderer(context.blobs, context.directories)
    if context.nar_nodes.is_ours:
        return RenderingNarCalculation(renderer, context.nar_nodes)
    return _ReadingNarCalculation(renderer)


def _read_key(path: str) -> SecretKey:
    try:
        with open(path, "rb") as file:
            return parse_secret_key(file.read(MAX_KEY_FILE_BYTES + 1))
    except PermissionError as error:
        raise PermissionDenied(f"key file {path}: {error.strerror}") from error
    except FileNotFoundError as error:
        raise InvalidRequest(f"key file {path}: {error.strerror}") from error
    except OSError as error:
        raise Unavailable(f"key file {path}: {error.strerror}") from error
    except (InvalidRequest, LimitExceeded) as error:
        raise InvalidRequest(f"key file {path}: {error}") from error


def open_signing(address: Address, context: PathInfoContext | None) -> SigningPathInfoService:
    """``keyfile-signing://?inner=URL&keyfile=FILE``"""
    address.check_parameters("inner", "keyfile")
    if address.host or address.path:
        raise address.refuse("keyfile-signing:// takes neither host nor path")
    if context is None:
        raise address.refuse("signing needs the services beside it that have the contents")
    key = _read_key(address.required("keyfile", "/path/of/secret-key"))
    inner = PATH_INFO_SERVICES.open_nested(address, "inner", context)
    return SigningPathInfoService(inner, key, _own_calculation(context))
