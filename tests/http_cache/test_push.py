"""What a client brings: NARs in every compression, narinfos and their rules, logs, realisations."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.castore.digest import b3_digest
from neve.http_cache.packing import COMPRESSORS as PACKED
from neve.nix import base32
from neve.nix.compression import COMPRESSIONS, SUFFIXES, decompressed
from neve.nix.hashes import HashAlgorithm, NixHash
from neve.nix.narinfo import NarInfo
from neve.nix.signing import SecretKey
from neve.nix.store_path import StorePath
from neve.store.services import Services, open_services
from tests.http_cache.samples import Sample, nar_url, push, put_narinfo, sample, sha256, stored
from tests.http_cache.serving import Served, serving
from tests.nix.compressing import COMPRESSORS, compress_zstd
from tests.store.helpers import everything, memory_services

OURS, THEIRS, STRANGER = (SecretKey.generate(f"{name}-1") for name in ("ours", "theirs", "stranger"))


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    opened = open_services(f"local://{tmp_path}/store")
    yield opened
    opened.close()


@pytest.fixture
def cache(services: Services) -> Iterator[Served]:
    with serving(services) as served:
        yield served


def pulled(cache: Served, what: Sample) -> NarInfo:
    """The narinfo, with the NAR that it names compared."""
    narinfo = NarInfo.parse(cache.http.get(what.narinfo_url).content, expected_digest=what.path.digest)
    assert cache.http.get(f"/{narinfo.url}").content == what.nar
    return narinfo


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_compression(cache: Served, compression: str) -> None:
    what = sample("compressed", b"some text\n" * 100_000)
    file = what.file(compression)
    url = nar_url(file, compression)
    assert cache.http.head(url).status_code == 404
    assert cache.http.put(url, content=file).status_code == 201
    assert cache.http.head(url).status_code == 200
    # What was uploaded is known by the hash of the NAR too, and as what it was sent.
    assert cache.http.head(nar_url(what.nar)).status_code == 200
    changes = {
        "url": url[1:],
        "compression": compression,
        "file_hash": NixHash(HashAlgorithm.SHA256, sha256(file)),
        "file_size": len(file),
    }
    assert put_narinfo(cache.http, what, **changes).status_code == 200
    narinfo = pulled(cache, what)
    assert narinfo.compression == "none"
    assert narinfo.file_size == len(what.nar)
    # Whoever uploaded it remembers that file, and asks for it.
    again = cache.http.get(url)
    assert again.status_code == 200
    assert b"".join(decompressed([again.content], compression)) == what.nar
    assert cache.http.get(url, headers={"if-none-match": again.headers["etag"]}).status_code == 304


def test_gzip_as_nix_names_it(cache: Served) -> None:
    what = sample("gzip")
    file = what.file("gzip")
    assert cache.http.put(nar_url(file), content=file).status_code == 201
    assert cache.http.head(nar_url(file)).status_code == 200
    assert put_narinfo(cache.http, what, compression="gzip").status_code == 200
    pulled(cache, what)
    again = cache.http.get(nar_url(file))
    assert "content-encoding" not in again.headers
    assert gzip.decompress(again.content) == what.nar


@pytest.mark.parametrize("compression", sorted(PACKED))
def test_files_are_made_again_from_pieces(compression: str) -> None:
    pieces = [b"", b"a", b"some text\n" * 100_000, bytes(3_000_000), b"", b"end"]
    compressor = PACKED[compression]()
    packed = [compressor.compress(piece) for piece in pieces]
    assert b"".join(decompressed([*packed, compressor.flush()], compression)) == b"".join(pieces)


def test_a_nar_that_comes_in_any_pieces(cache: Served) -> None:
    """Chunked, a byte at a time, and in several zstd frames."""
    what = sample("pieces", b"abc" * 50)
    url = nar_url(what.nar)
    sent = (what.nar[i : i + 1] for i in range(len(what.nar)))
    assert cache.http.put(url, content=sent).status_code == 201
    file = compress_zstd(what.nar[:100]) + compress_zstd(b"") + compress_zstd(what.nar[100:])
    assert cache.http.put(nar_url(file, "zstd"), content=iter([file])).status_code == 201
    assert put_narinfo(cache.http, what).status_code == 200


def test_again(cache: Served, services: Services) -> None:
    what = sample("again")
    push(cache.http, what)
    before = everything(services)
    push(cache.http, what)
    push(cache.http, what, "xz")
    assert everything(services) == before


def test_references(cache: Served) -> None:
    first = sample("first")
    second = sample("second", references=[first.path])
    itself = sample("itself")
    itself = Sample(itself.path, itself.nar, (first.path, itself.path))
    for what in (second, itself):
        assert cache.http.put(nar_url(what.nar), content=what.nar).status_code == 201
        answer = put_narinfo(cache.http, what)
        assert answer.status_code == 409
        assert first.path.base_name in answer.text
        assert answer.text.count("\n") == 1
    push(cache.http, first)
    for what in (second, itself):
        assert put_narinfo(cache.http, what).status_code == 200
        assert set(pulled(cache, what).references) == set(what.references)


def test_a_reference_by_another_name_is_missing(cache: Served) -> None:
    first = sample("first")
    push(cache.http, first)
    second = sample("second", references=[StorePath(first.path.digest, "other")])
    cache.http.put(nar_url(second.nar), content=second.nar)
    answer = put_narinfo(cache.http, second)
    assert answer.status_code == 409
    assert "-other" in answer.text


def test_many_missing_references_are_counted(cache: Served) -> None:
    missing = [StorePath(sha256(b"%d" % i)[:20], f"missing-{i}") for i in range(30)]
    what = sample("needy", references=missing)
    cache.http.put(nar_url(what.nar), content=what.nar)
    answer = put_narinfo(cache.http, what)
    assert answer.status_code == 409
    assert answer.text.count("-missing-") == 20
    assert "and 10 more" in answer.text


def test_details_are_kept(cache: Served) -> None:
    what = sample("detailed")
    cache.http.put(nar_url(what.nar), content=what.nar)
    deriver = StorePath(bytes(20), "detailed")
    assert put_narinfo(cache.http, what, deriver=deriver, system="x86_64-linux").status_code == 200
    assert pulled(cache, what).deriver == deriver


def test_signatures(services: Services) -> None:
    trusted = (THEIRS.public_key().render(),)
    with serving(services, secret_key=OURS.render(), trusted_keys=trusted) as cache:
        what = sample("signed")
        cache.http.put(nar_url(what.nar), content=what.nar)
        fingerprint = what.narinfo().fingerprint()
        good, other = THEIRS.sign(fingerprint), STRANGER.sign(fingerprint)
        bad = OURS.sign(b"something else")
        assert put_narinfo(cache.http, what, signatures=(bad, other, good)).status_code == 200
        assert pulled(cache, what).signatures == (good, OURS.sign(fingerprint))
        # Those that come later are added.
        assert put_narinfo(cache.http, what, signatures=()).status_code == 200
        assert pulled(cache, what).signatures == (good, OURS.sign(fingerprint))


def test_signatures_that_are_needed(services: Services) -> None:
    trusted = (THEIRS.public_key().render(),)
    with serving(services, trusted_keys=trusted, require_signatures=True) as cache:
        what = sample("needed")
        cache.http.put(nar_url(what.nar), content=what.nar)
        fingerprint = what.narinfo().fingerprint()
        for signatures in ((), (STRANGER.sign(fingerprint),), (THEIRS.sign(b"else"),)):
            answer = put_narinfo(cache.http, what, signatures=signatures)
            assert answer.status_code == 403
            assert answer.text.count("\n") == 1
            assert cache.http.get(what.narinfo_url).status_code == 404
        assert put_narinfo(cache.http, what, signatures=(THEIRS.sign(fingerprint),)).status_code == 200
        pulled(cache, what)


def test_what_upstream_has_is_not_kept(services: Services) -> None:
    with serving(services, upstream_keys=(THEIRS.public_key().render(),)) as cache:
        first = sample("upstream")
        second = sample("mine", references=[first.path])
        for what in (first, second):
            cache.http.put(nar_url(what.nar), content=what.nar)
        signed = (THEIRS.sign(first.narinfo().fingerprint()),)
        answer = put_narinfo(cache.http, first, signatures=signed)
        assert (answer.status_code, "not kept" in answer.text) == (200, True)
        assert cache.http.get(first.narinfo_url).status_code == 404
        # What refers to it is taken all the same.
        assert put_narinfo(cache.http, second).status_code == 200
        pulled(cache, second)


def test_a_path_that_is_there(cache: Served, services: Services) -> None:
    """With other contents: a conflict. What was there stays."""
    what, other = sample("there"), sample("other")
    known = stored(services, what)
    cache.http.put(nar_url(other.nar), content=other.nar)
    answer = put_narinfo(cache.http, Sample(what.path, other.nar))
    assert answer.status_code == 409
    assert answer.text.count("\n") == 1
    assert services.path_infos.get(known.digest) == known
    renamed = StorePath(what.path.digest, "renamed")
    cache.http.put(nar_url(what.nar), content=what.nar)
    assert put_narinfo(cache.http, Sample(renamed, what.nar)).status_code == 409
    pulled(cache, what)


def test_a_path_that_is_there_with_other_references(cache: Served, services: Services) -> None:
    """It would be said to be stored, and then told about without what it needs."""
    needed, what = sample("needed"), sample("needs")
    push(cache.http, needed)
    stored(services, what)
    answer = put_narinfo(cache.http, what, references=(needed.path,))
    assert answer.status_code == 409
    assert "other references" in answer.text
    assert put_narinfo(cache.http, what).status_code == 200


def test_what_is_stored_gets_no_signature_of_something_else(services: Services) -> None:
    """Signatures cover references."""
    needed, what = sample("needed"), sample("needs")
    known = stored(services, what)
    with serving(services, secret_key=OURS.render()) as cache:
        push(cache.http, needed)
        assert put_narinfo(cache.http, what, references=(needed.path,)).status_code == 409
    assert services.path_infos.get(known.digest) == known


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd", "xz"])
def test_a_nar_of_which_a_part_is_lost(cache: Served, services: Services, compression: str) -> None:
    """Whoever asks is told to upload it again, and it is no path before that."""
    what = sample("part")
    file = what.file(compression)
    url = nar_url(file, compression)
    for _ in range(2):
        assert cache.http.put(url, content=file).status_code == 201
        assert cache.http.head(url).status_code == 200
        services.blobs.delete_many([b3_digest(b"part")])
        assert cache.http.head(url).status_code == 404
        answer = put_narinfo(cache.http, what)
        assert answer.status_code == 400
        assert "upload it before" in answer.text
    push(cache.http, what, compression)
    pulled(cache, what)


def test_two_caches_over_one_store(services: Services, tmp_path: Path) -> None:
    """The NAR comes to one, its narinfo to the other; a third serves them."""
    other = open_services(f"local://{tmp_path}/store")
    try:
        with serving(services) as one, serving(other) as two:
            for compression in ("none", "xz", "gzip"):
                what = sample(f"shared-{compression}")
                file = what.file(compression)
                suffix = "" if compression == "gzip" else SUFFIXES[compression]
                assert one.http.put(nar_url(file, suffix=suffix), content=file).status_code == 201
                assert two.http.head(nar_url(file, suffix=suffix)).status_code == 200
                assert put_narinfo(two.http, what).status_code == 200
                pulled(one, what)
    finally:
        other.close()


def test_many_at_once(services: Services) -> None:
    """More than there are turns."""
    whats = [sample(f"many-{number}", b"%d" % number * 10_000) for number in range(24)]
    with serving(services, limits={"max_uploads": 3}) as cache:
        threads = [
            threading.Thread(target=push, args=(cache.http, what, "zstd" if number % 2 else "none"))
            for number, what in enumerate(whats)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for what in whats:
            pulled(cache, what)
        assert cache.metric("neve_http_active_uploads") == 0


DERIVATION = f"{base32.encode(bytes(20))}-hello.drv"
REALISATION = f"sha256:{bytes(32).hex()}!out.doi"
BUILD_ID = "4f0ba1e5" * 5


@pytest.mark.parametrize(
    ("url", "media_type"),
    [
        (f"/log/{DERIVATION}", "text/plain; charset=utf-8"),
        (f"/realisations/{REALISATION}", "application/json"),
        (f"/debuginfo/{BUILD_ID}.debug", "application/json"),
    ],
)
def test_small_files(cache: Served, url: str, media_type: str) -> None:
    assert cache.http.get(url).status_code == 404
    assert cache.http.head(url).status_code == 404
    for contents in (b"<script>alert(1)</script>\n", b"", bytes(range(256)) * 5000):
        assert cache.http.put(url, content=contents).status_code == 201
        answer = cache.http.get(url)
        assert answer.content == contents
        assert answer.headers["content-type"] == media_type
        # Nobody's browser takes it for a page.
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
        assert cache.http.head(url).headers["content-length"] == str(len(contents))


def test_debugging_symbols_by_either_name(cache: Served) -> None:
    """Nix uploads by one, and asks for it first; whoever looks for them may use the other."""
    link = b'{"archive":"../nar/x.nar.xz","member":"lib/debug/.build-id/4f/0ba1e5.debug"}'
    url = f"/debuginfo/{BUILD_ID}"
    assert cache.http.head(f"{url}.debug").status_code == 404
    assert cache.http.put(f"{url}.debug", content=link).status_code == 201
    for name in (url, f"{url}.debug"):
        assert cache.http.head(name).status_code == 200
        assert cache.http.get(name).content == link


def test_small_files_are_durable(cache: Served, tmp_path: Path) -> None:
    cache.http.put(f"/log/{DERIVATION}", content=b"built it\n")
    other = open_services(f"local://{tmp_path}/store?mode=ro")
    try:
        with serving(other) as two:
            assert two.http.get(f"/log/{DERIVATION}").content == b"built it\n"
    finally:
        other.close()


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "zstd", "br", "xz", "bzip2", "identity"])
def test_bodies_that_are_encoded(cache: Served, encoding: str) -> None:
    """Nix compresses logs and listings if it is told to."""
    compression = {"x-gzip": "gzip", "identity": "none"}.get(encoding, encoding)
    headers = {"content-encoding": encoding}
    body = COMPRESSORS[compression](b"built it\n" * 1000)
    assert cache.http.put(f"/log/{DERIVATION}", content=body, headers=headers).status_code == 201
    assert cache.http.get(f"/log/{DERIVATION}").content == b"built it\n" * 1000
    what = sample("encoded")
    cache.http.put(nar_url(what.nar), content=what.nar)
    body = COMPRESSORS[compression](what.narinfo().render().encode())
    assert cache.http.put(what.narinfo_url, content=body, headers=headers).status_code == 200


def test_a_listing_before_its_nar(cache: Served, services: Services) -> None:
    what = sample("listed")
    before = everything(services)
    answer = cache.http.put(f"/{what.digest}.ls", content=b'{"version": 1, "root": {}}')
    assert answer.status_code == 200
    assert everything(services) == before
    assert cache.http.get(f"/{what.digest}.ls").status_code == 404
    push(cache.http, what)
    assert b'"run"' in cache.http.get(f"/{what.digest}.ls").content


def test_a_store_in_memory() -> None:
    services = memory_services()
    with serving(services) as cache:
        what = sample("memory")
        push(cache.http, what, "zstd")
        pulled(cache, what)
        cache.http.put(f"/log/{DERIVATION}", content=gzip.compress(b"x"))
        assert cache.http.get(f"/log/{DERIVATION}").content == gzip.compress(b"x")
    services.close()
