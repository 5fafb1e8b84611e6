"""Signing: the keys are Nix's, and nothing is signed but what was computed here."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from neve.castore.node import FileNode, SymlinkNode
from neve.errors import (
    Conflict,
    InvalidRequest,
    LimitExceeded,
    NeveError,
    NotFound,
    Unavailable,
)
from neve.nix.narinfo import NarInfo
from neve.nix.signing import InvalidKey, SecretKey
from neve.store.importer import import_nar
from neve.store.nar_nodes import Nar
from neve.store.path_info import NarDetails, PathInfo
from neve.store.services import Services, open_services
from neve.store.signing import (
    MAX_KEY_FILE_BYTES,
    NarDiffers,
    UnsignedPath,
    computed_nar,
    read_secret_key,
    read_secret_keys,
    sign_many,
    sign_path_info,
    sign_stored,
    write_secret_key,
)
from neve.testing.servers import running_daemon
from neve.tree import File
from tests.nix import vectors

from .helpers import encoded
from .nix_stores import store_path

CACHE = vectors.load("cache.json")
KEY = SecretKey.parse(CACHE["secret_key"])
OTHER = SecretKey("other-1", bytes(range(32)))
SAME_NAME = SecretKey(KEY.name, bytes(32))
NAR = encoded([File(b"", True, b"contents")])


@pytest.fixture(params=["memory", "local"])
def services(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Services]:
    services = open_services("memory://" if request.param == "memory" else f"local://{tmp_path / 'store'}")
    yield services
    services.close()


@pytest.fixture
def info(services: Services) -> PathInfo:
    return import_nar(services, [NAR], store_path=store_path("a"), references=[store_path("b")])


def verifies(path_info: PathInfo, key: SecretKey) -> bool:
    assert path_info.nar is not None
    public = key.public_key()
    return any(public.verify(path_info.fingerprint(), signature) for signature in path_info.nar.signatures)


@pytest.mark.parametrize("file", vectors.narinfo_files(), ids=lambda f: f"{f.parent.name}-{f.name[:8]}")
def test_the_signatures_of_nix(file: Path) -> None:
    narinfo = NarInfo.parse(file.read_bytes())
    details = NarDetails(size=narinfo.nar_size, sha256=narinfo.nar_sha256, reference_names=narinfo.references)
    digests = tuple(path.digest for path in narinfo.references)
    signed = sign_path_info(PathInfo(narinfo.store_path, SymlinkNode(b"x"), digests, details), KEY)
    assert signed.nar is not None
    assert signed.nar.signatures == narinfo.signatures


def test_a_signature_is_added_once(info: PathInfo) -> None:
    signed = sign_path_info(info, KEY)
    assert verifies(signed, KEY)
    assert sign_path_info(signed, KEY) is signed
    both = sign_path_info(signed, OTHER)
    assert both.nar is not None
    assert [signature.name for signature in both.nar.signatures] == [KEY.name, OTHER.name]


def test_a_signature_by_the_name_that_does_not_verify_is_none(info: PathInfo) -> None:
    forged = info.with_signatures([SAME_NAME.sign(info.fingerprint()), KEY.sign(b"something else")])
    signed = sign_path_info(forged, KEY)
    assert signed.nar is not None
    assert len(signed.nar.signatures) == 3
    assert verifies(signed, KEY)


def test_nothing_to_sign() -> None:
    with pytest.raises(InvalidRequest, match="there is nothing to sign"):
        sign_path_info(PathInfo(store_path("a"), SymlinkNode(b"x")), KEY)


def test_signing_what_is_stored(services: Services, info: PathInfo) -> None:
    signed = sign_stored(services, info, [KEY, OTHER])
    assert verifies(signed, KEY)
    assert verifies(signed, OTHER)
    assert services.path_infos.get(info.digest) == signed
    assert sign_stored(services, signed, [KEY, OTHER]) == signed


def test_a_hash_that_somebody_else_stated_is_not_signed(services: Services, info: PathInfo) -> None:
    assert info.nar is not None
    for details in (replace(info.nar, sha256=bytes(32)), replace(info.nar, size=info.nar.size + 8)):
        lying = replace(info, nar=details)
        services.path_infos.put(lying, replace=True)
        with pytest.raises(NarDiffers, match=f"^the contents of {info.store_path} have a NAR of"):
            sign_stored(services, lying, [KEY])
        assert services.path_infos.get(info.digest) == lying


def test_missing_contents_are_not_signed(services: Services, info: PathInfo) -> None:
    missing = replace(info, node=FileNode(bytes(32), 5, executable=False))
    with pytest.raises(NotFound):
        sign_stored(services, missing, [KEY])


def test_without_nar_details_they_are_completed(services: Services, info: PathInfo) -> None:
    import_nar(services, [NAR], store_path=store_path("b"))
    bare = PathInfo(info.store_path, info.node, info.references)
    services.path_infos.put(bare, replace=True)
    signed = sign_stored(services, bare, [KEY])
    assert signed == sign_path_info(info, KEY)
    assert services.path_infos.get(info.digest) == signed


def test_without_nar_details_and_names_of_references(services: Services, info: PathInfo) -> None:
    bare = PathInfo(info.store_path, info.node, info.references)
    with pytest.raises(NotFound, match=f"{info.store_path} refers to .*, which the store does not have"):
        sign_stored(services, bare, [KEY])


def test_the_word_of_a_server_is_not_enough(tmp_path: Path) -> None:
    with running_daemon("memory://", folder=tmp_path) as daemon:
        info = import_nar(daemon.services, [NAR], store_path=store_path("a"))
        assert info.nar is not None
        # It says what somebody wants to have signed, in its path info and when it is asked to compute.
        lie = Nar(info.nar.size, bytes(32))
        daemon.services.nar_nodes.put(info.node, lie)
        daemon.services.nar_nodes._nars[info.node] = lie  # type: ignore[attr-defined]
        lying = replace(info, nar=replace(info.nar, sha256=bytes(32)))
        daemon.services.path_infos.put(lying, replace=True)
        client = open_services(daemon.url)
        try:
            assert client.nar_calculation.calculate_nar(info.node) == lie
            assert computed_nar(client, lying) == (info.nar.size, info.nar.sha256)
            with pytest.raises(NarDiffers):
                sign_stored(client, lying, [KEY])
            daemon.services.path_infos.put(info, replace=True)
            assert verifies(sign_stored(client, info, [KEY]), KEY)
        finally:
            client.close()


def test_signing_many(services: Services) -> None:
    names = [f"path-{number}" for number in range(40)]
    infos = [import_nar(services, [NAR], store_path=store_path(name)) for name in names]
    assert infos[7].nar is not None
    services.path_infos.put(replace(infos[7], nar=replace(infos[7].nar, sha256=bytes(32))), replace=True)
    digests = [*(info.digest for info in infos), store_path("gone").digest]
    results = list(sign_many(services, digests, [KEY]))
    for number, (info, result) in enumerate(zip(infos, results, strict=False)):
        if number == 7:
            assert isinstance(result, UnsignedPath)
            assert str(result).startswith(f"{info.store_path} is not signed: ")
            assert isinstance(result.__cause__, NarDiffers)
        else:
            assert isinstance(result, PathInfo)
            assert result.store_path == info.store_path
            assert verifies(result, KEY)
    assert isinstance(results[40], NotFound)


def test_damaged_contents_are_told_with_the_path(services: Services, info: PathInfo) -> None:
    missing = replace(info, node=FileNode(bytes(32), 5, executable=False))
    services.path_infos.put(missing, replace=True)
    (result,) = sign_many(services, [info.digest], [KEY])
    assert isinstance(result, UnsignedPath)
    assert str(result).startswith(f"{info.store_path} is not signed: ")
    assert "b3:AAAA" in str(result)


def test_a_lost_server_ends_the_signing(tmp_path: Path) -> None:
    client = open_services(f"grpc+unix://{tmp_path}/nobody?timeout=0.3")
    try:
        with pytest.raises(Unavailable, match=str(tmp_path)):
            list(sign_many(client, [bytes([number]) * 20 for number in range(100)], [KEY]))
    finally:
        client.close()


def test_many_at_once(services: Services, info: PathInfo) -> None:
    """Whoever signs at the same time takes no signature away."""
    keys = [SecretKey(f"key-{number}", bytes([number]) * 32) for number in range(8)]
    errors: list[NeveError] = []

    def sign(key: SecretKey) -> None:
        try:
            sign_stored(services, info, [key])
        except NeveError as error:
            errors.append(error)

    threads = [threading.Thread(target=sign, args=[key]) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    stored = services.path_infos.get(info.digest)
    assert stored is not None
    assert all(verifies(stored, key) for key in keys)


# Files of keys.


def test_a_key_that_was_written(tmp_path: Path) -> None:
    file = tmp_path / "key"
    write_secret_key(KEY, file)
    assert file.read_text() == CACHE["secret_key"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_secret_key(file) == KEY
    assert read_secret_key(str(file)) == read_secret_key(bytes(file)) == KEY


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("precious")
    (tmp_path / "link").symlink_to("nowhere")
    for place in (file, tmp_path, tmp_path / "link"):
        with pytest.raises(Conflict, match=f"^{place} exists; a key is never overwritten"):
            write_secret_key(KEY, place)
    assert file.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_key_on_a_file_system_without_unnamed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Then opening says what it says of a folder that is to be written.
    monkeypatch.setattr("os.O_TMPFILE", 0)
    file = tmp_path / "key"
    write_secret_key(KEY, file)
    assert file.read_text() == CACHE["secret_key"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(Conflict, match="a key is never overwritten"):
        write_secret_key(OTHER, file)
    assert os.listdir(tmp_path) == ["key"]


def test_a_key_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_secret_key(KEY, "key")
    assert read_secret_key("key") == KEY


def test_a_key_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"^cannot write the key to {tmp_path}/no/key: No such file"):
        write_secret_key(KEY, tmp_path / "no" / "key")
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=r"cannot write the key to .*Not a directory"):
        write_secret_key(KEY, tmp_path / "file" / "key")


def test_white_space_around_a_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"\n {CACHE['secret_key']}\n\n")
    assert read_secret_key(file) == KEY


def test_several_files(tmp_path: Path) -> None:
    files = []
    for number, key in enumerate([KEY, OTHER, KEY, SAME_NAME]):
        files.append(tmp_path / str(number))
        write_secret_key(key, files[-1])
    assert read_secret_keys(files) == (KEY, OTHER, SAME_NAME)
    assert read_secret_keys([]) == ()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "has no '<name>:'"),
        (b"no key at all", "has no '<name>:'"),
        (b"\xff\xfe", "no UTF-8"),
        (CACHE["public_key"].encode(), "base64 characters"),
        (CACHE["secret_key"].encode()[:-8], "base64 characters"),
        (KEY.render().encode()[:-4] + b"AAA=", "."),
        (b"a b:" + KEY.render().partition(":")[2].encode(), "bad name"),
    ],
)
def test_files_that_hold_no_key(tmp_path: Path, contents: bytes, message: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(contents)
    with pytest.raises(InvalidKey, match=message) as caught:
        read_secret_key(file)
    assert str(caught.value).startswith(f"{file}: ")
    secret = KEY.render().partition(":")[2]
    assert secret[:20] not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"cannot read the key in {tmp_path}/none: No such file"):
        read_secret_key(tmp_path / "none")
    with pytest.raises(Unavailable, match=r"cannot read the key in .*: Is a directory"):
        read_secret_key(tmp_path)
    (tmp_path / "large").write_bytes(bytes(MAX_KEY_FILE_BYTES + 1))
    with pytest.raises(LimitExceeded, match=f"at most {MAX_KEY_FILE_BYTES} bytes"):
        read_secret_key(tmp_path / "large")
    with pytest.raises(LimitExceeded):
        read_secret_key("/dev/zero")
