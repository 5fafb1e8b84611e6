"""Signing stored paths with keys from files: the same files as Nix's.

A signature says that whoever holds the key vouches for the NAR's hash and size. So nothing is signed but a
hash that was computed here, from contents that matched their digests.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from neve.castore.at_once import CallsAtOnce
from neve.castore.ingest.filesystem import show_path
from neve.errors import (
    Conflict,
    InvalidRequest,
    LimitExceeded,
    NeveError,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from neve.nix import base32
from neve.nix.signing import InvalidKey, SecretKey
from neve.nix.store_path import StorePath
from neve.packstore.layout import os_errors
from neve.store.path_info import NarDetails, PathInfo
from neve.store.pathinfos.base import path_not_found

if TYPE_CHECKING:
    from neve.store.nar_nodes import Nar
    from neve.store.services import Services

    _Path = str | bytes | os.PathLike[str]

MAX_KEY_FILE_BYTES = 64 * 1024
"""A key has 88 characters and a name; whoever names a disk or a pipe by mistake is told."""

_KEY_FILE_MODE = 0o600
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
"""What file systems say that know no files without names."""


class NarDiffers(Conflict):
    """What a path info says of the NAR is not what the contents give."""


class UnsignedPath(InvalidRequest):
    """A path that cannot be signed. The message names it."""


def sign_path_info(path_info: PathInfo, key: SecretKey) -> PathInfo:
    """``path_info`` with a signature by ``key``, unless it has one of that name that verifies.

    The caller has computed the NAR's hash and size itself. Raises ``InvalidRequest`` without NAR details.
    """
    message = path_info.fingerprint()
    assert path_info.nar is not None, "it has a fingerprint"
    named = [signature for signature in path_info.nar.signatures if signature.name == key.name]
    if named:
        public = key.public_key()
        if any(public.verify(message, signature) for signature in named):
            return path_info
    return path_info.with_signatures([key.sign(message)])


def sign_stored(services: Services, path_info: PathInfo, keys: Iterable[SecretKey]) -> PathInfo:
    """Signs a stored path with each of ``keys``; returns what is stored then.

    Raises ``NarDiffers`` if its contents have another NAR than stated, ``NotFound`` or ``Corrupt`` if they
    are missing or damaged, and what the services raise.
    """
    signed = checked = with_own_nar(services, path_info)
    for key in keys:
        signed = sign_path_info(signed, key)
    if signed is path_info:
        return path_info
    assert signed.nar is not None
    assert checked.nar is not None
    if checked is not path_info:
        return services.path_infos.put(signed)
    return services.path_infos.add_signatures(
        path_info.digest, signed.nar.signatures[len(checked.nar.signatures) :]
    )


def with_own_nar(services: Services, path_info: PathInfo) -> PathInfo:
    """``path_info`` with a NAR hash and size that were computed here. Raises as ``sign_stored``."""
    nar = computed_nar(services, path_info)
    stated = path_info.nar
    if stated is None:
        names = _reference_names(services, path_info)
        return replace(path_info, nar=NarDetails(size=nar.size, sha256=nar.sha256, reference_names=names))
    if (stated.size, stated.sha256) != nar:
        raise NarDiffers(
            f"the contents of {path_info.store_path} have a NAR of {nar.size} bytes and sha256 "
            f"{nar.sha256.hex()}, its path info states {stated.size} bytes and {stated.sha256.hex()}"
        )
    return path_info


def sign_many(
    services: Services, digests: Iterable[bytes], keys: Iterable[SecretKey]
) -> Iterator[PathInfo | NeveError]:
    """Signs the stored paths with these digests, several at once: most of it is waiting for the store.

    Gives for each, in order, what is stored then or why it was not signed. Raises what concerns the store
    as a whole.
    """
    keys = tuple(keys)

    def sign(digest: bytes) -> PathInfo | NeveError:
        shown = base32.encode(digest)
        try:
            path_info = services.path_infos.get(digest)
            if path_info is None:
                return path_not_found(digest)
            shown = path_info.store_path.absolute
            return sign_stored(services, path_info, keys)
        except (Unavailable, PermissionDenied, Unsupported):
            raise
        except NeveError as error:
            failure = UnsignedPath(f"{shown} is not signed: {error}")
            failure.__cause__ = error
            return failure

    calls = CallsAtOnce()
    try:
        yield from calls.map(sign, digests)
    finally:
        calls.close()


def computed_nar(services: Services, path_info: PathInfo) -> Nar:
    """The NAR of a stored path by our own calculation: the embedded store's, which remembers it, or by
    reading all of it. A server's word is not enough."""
    if services.packs is not None:
        return services.nar_calculation.calculate_nar(path_info.node)
    return services.renderer.hash(path_info.node)


def _reference_names(services: Services, path_info: PathInfo) -> tuple[StorePath, ...]:
    """The references with their names, which a path info without NAR details lacks."""
    names = []
    for digest in path_info.references:
        reference = services.path_infos.describe(digest)
        if reference is None:
            raise NotFound(
                f"{path_info.store_path} refers to {base32.encode(digest)}, which the store does not have"
            )
        names.append(reference.store_path)
    return tuple(names)


def read_secret_key(path: _Path) -> SecretKey:
    """The secret key in a file. Raises ``InvalidKey``, ``LimitExceeded``, ``NotFound``, ``PermissionDenied``,
    with the name of the file and without secret material."""
    shown = show_path(os.fsencode(path))
    with os_errors(f"cannot read the key in {shown}"), open(path, "rb") as file:
        text = file.read(MAX_KEY_FILE_BYTES + 1)
    try:
        return parse_secret_key(text)
    except (InvalidKey, LimitExceeded) as error:
        raise type(error)(f"{shown}: {error}") from error


def read_secret_keys(paths: Iterable[_Path]) -> tuple[SecretKey, ...]:
    """The secret keys in several files, in their order, each once. Raises as ``read_secret_key``."""
    return tuple(dict.fromkeys(map(read_secret_key, paths)))


def parse_secret_key(text: bytes) -> SecretKey:
    """The secret key that a file consists of. Raises ``InvalidKey``, ``LimitExceeded``."""
    if len(text) > MAX_KEY_FILE_BYTES:
        raise LimitExceeded(f"a file with a key has at most {MAX_KEY_FILE_BYTES} bytes, this one has more")
    return SecretKey.parse(text)


def write_secret_key(key: SecretKey, path: _Path) -> None:
    """Writes a key as Nix does, for its owner only. Raises ``Conflict`` if something is at ``path``, and what
    the disk raises; then nothing is left there.

    Also whoever is killed leaves all of the key or nothing, as far as the file system knows files without
    names: half of one would be of no use, and in the way of the next attempt.
    """
    place = os.fsencode(path)
    shown = show_path(place)
    data = key.render().encode()
    exists = f"{shown} exists; a key is never overwritten"
    if os.path.lexists(place):
        raise Conflict(exists)
    with os_errors(f"cannot write the key to {shown}"), _opened_folder(place) as folder:
        name = os.path.basename(place)
        try:
            if not _write_unnamed(folder, name, data):
                _write_named(folder, name, data)
        except FileExistsError as error:
            raise Conflict(exists) from error


@contextlib.contextmanager
def _opened_folder(path: bytes) -> Iterator[int]:
    """A descriptor for the folder that ``path`` is in."""
    folder = os.open(os.path.dirname(path) or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)


def _write_unnamed(folder: int, name: bytes, data: bytes) -> bool:
    """Writes a file that gets its name when it is complete. False: the file system cannot do that."""
    try:
        descriptor = os.open(b".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, _KEY_FILE_MODE, dir_fd=folder)
    except OSError as error:
        if error.errno in _NO_UNNAMED:
            return False
        raise
    try:
        _write_durably(descriptor, data)
        # A folder's descriptor, or links would not be followed.
        os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(descriptor)
    _sync_or_remove(folder, name)
    return True


def _write_named(folder: int, name: bytes, data: bytes) -> None:
    descriptor = os.open(name, _CREATE, _KEY_FILE_MODE, dir_fd=folder)
    try:
        _write_durably(descriptor, data)
    except BaseException:
        _remove(folder, name)
        raise
    finally:
        os.close(descriptor)
    _sync_or_remove(folder, name)


def _write_durably(descriptor: int, data: bytes) -> None:
    """A disk that is nearly full takes less than it is given, without an error."""
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)


def _sync_or_remove(folder: int, name: bytes) -> None:
    try:
        os.fsync(folder)
    except BaseException:
        _remove(folder, name)
        raise


def _remove(folder: int, name: bytes) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=folder)
