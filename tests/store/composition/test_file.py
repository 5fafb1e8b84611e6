"""Files that describe a store: what addresses they stand for, and how what is wrong with them is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from neve.errors import InvalidRequest, LimitExceeded, NotFound, Unavailable
from neve.registry import parse_address
from neve.store.composition import BLOBS, DIRECTORIES, KINDS, PATH_INFOS, InvalidComposition, parse, read
from neve.store.composition.file import MAX_ADDRESS, MAX_FILE_BYTES, MAX_LEVELS

FILE = "/etc/neve/store.toml"


def described(kind: str, lines: str) -> str:
    """The address of the service that the lines describe."""
    return parse(f"[{kind}.root]\n{lines}", FILE).url(kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("lines", "url"),
    [
        ('type = "memory"', "memory://"),
        ('type = "local"\npath = "/srv/neve"', "local:///srv/neve"),
        ('type = "local"\npath = "/srv/ä ?#%"', "local:///srv/%C3%A4%20%3F%23%25"),
        (
            'type = "local"\npath = "/s"\nmode = "ro"\ndirectory_size_rule = "snix"',
            "local:///s?mode=ro&directory-size-rule=snix",
        ),
        ('type = "grpc"\nurl = "grpc+unix:///run/s?timeout=3"', "grpc+unix:///run/s?timeout=3"),
        (
            'type = "cache"\nnear = "memory://"\nfar = "local:///far?mode=ro"\nnegative_ttl = 0.5',
            "cache://?negative-ttl=0.5&near=memory%3A%2F%2F&far=local%3A%2F%2F%2Ffar%3Fmode%3Dro",
        ),
    ],
)
def test_what_every_kind_has(kind: str, lines: str, url: str) -> None:
    assert described(kind, lines) == url


@pytest.mark.parametrize(
    ("kind", "lines", "url"),
    [
        (
            BLOBS,
            'type = "combined"\nnear = "memory://"\nfar = "grpc+unix:///s"',
            "combined://?near=memory%3A%2F%2F&far=grpc%2Bunix%3A%2F%2F%2Fs",
        ),
        (
            BLOBS,
            'type = "combined"\nlocal = "memory://"\nremote = "grpc+unix:///s"',
            "combined://?near=memory%3A%2F%2F&far=grpc%2Bunix%3A%2F%2F%2Fs",
        ),
        (
            BLOBS,
            'type = "objectstore"\nobject_store_url = "s3://bucket/prefix"\navg_chunk_size = 65536\n'
            'object_store_options = { aws_region = "eu-1", aws_allow_http = true, timeout = 3 }',
            "objectstore+s3://bucket/prefix?aws_region=eu-1&aws_allow_http=true&timeout=3&avg_chunk_size=65536",
        ),
        (
            DIRECTORIES,
            'type = "objectstore"\nobject_store_url = "memory:///"',
            "objectstore+memory:///",
        ),
        (PATH_INFOS, 'type = "lru"', "lru://"),
        (PATH_INFOS, 'type = "lru"\ncapacity = 10', "lru://?capacity=10"),
        (
            PATH_INFOS,
            'type = "keyfile-signing"\ninner = "memory://"\nkeyfile = "/etc/k=y"',
            "keyfile-signing://?keyfile=%2Fetc%2Fk%3Dy&inner=memory%3A%2F%2F",
        ),
        (PATH_INFOS, 'type = "nix"\nbase_url = "https://cache.example/x"', "nix+https://cache.example/x"),
        (
            PATH_INFOS,
            'type = "nix"\nbase_url = "file:///c"\npublic_keys = ["a-1:b+/=", "c-1:d"]',
            "nix+file:///c?trusted-public-keys=a-1%3Ab%2B%2F%3D%20c-1%3Ad",
        ),
        (
            PATH_INFOS,
            'type = "nix"\nbase_url = "http://h:1"\npublic_keys = "a-1:b"\nnetrc_file = "/n"\n'
            'token_file = "/t"\nca = "/c"\ntimeout = 5\nattempts = 2',
            "nix+http://h:1?trusted-public-keys=a-1%3Ab&netrc-file=%2Fn&token-file=%2Ft&ca=%2Fc&timeout=5"
            "&attempts=2",
        ),
        *(
            (
                kind,
                'type = "bigtable"\ninstance_name = "i"\nproject_id = "p"\ntable_name = "t"\n'
                'family_name = "f"\nis_read_only = true\nchannel_size = 2\ntimeout = "4"\n'
                'app_profile_id = "a"',
                "bigtable://i?project_id=p&table_name=t&family_name=f&is_read_only=true&channel_size=2"
                "&timeout=4&app_profile_id=a",
            )
            for kind in (DIRECTORIES, PATH_INFOS)
        ),
        (
            PATH_INFOS,
            'type = "bigtable"\ninstance_name = "i"\nproject_id = "p"\ntable_name = "t"\n'
            'family_name = "f"\nnar_family_name = "n"',
            "bigtable://i?project_id=p&table_name=t&family_name=f&nar_family_name=n",
        ),
        (PATH_INFOS, 'type = "postgresql"\nurl = "postgresql://u@h/db"', "postgresql://u@h/db"),
    ],
)
def test_what_some_have(kind: str, lines: str, url: str) -> None:
    assert described(kind, lines) == url
    parse_address(url)


TWO = """
[blobservices.root]
type = "cache"
near = "a name: any"
far = "both"
[blobservices."a name: any"]
type = "memory"
[blobservices.both]
type = "combined"
near = "a name: any"
far = "local:///far"
"""


def test_names() -> None:
    far = "combined%3A%2F%2F%3Fnear%3Dmemory%253A%252F%252F%26far%3Dlocal%253A%252F%252F%252Ffar"
    composition = parse(TWO, FILE)
    assert composition.url(BLOBS) == f"cache://?near=memory%3A%2F%2F&far={far}"
    assert composition.has_root(BLOBS)
    assert not composition.has_root(PATH_INFOS)
    with pytest.raises(InvalidComposition, match=rf"^{FILE}: there is no table \[pathinfoservices.root\]$"):
        composition.url(PATH_INFOS)


def test_the_root_may_have_another_name() -> None:
    default = '[blobservices.default]\ntype = "memory"\n'
    assert parse(default, FILE).url(BLOBS) == "memory://"
    both = default + '[blobservices.root]\ntype = "local"\npath = "/root"\n'
    assert parse(both, FILE).url(BLOBS) == "local:///root"


def test_for_reading() -> None:
    composition = parse(
        TWO + '[pathinfoservices.root]\ntype="keyfile-signing"\nkeyfile="/k"\ninner="own"\n'
        '[pathinfoservices.own]\ntype="local"\npath="/own"\n'
        '[directoryservices.root]\ntype="local"\npath="/d"\nmode="rw"',
        FILE,
    ).for_reading()
    assert composition.url(BLOBS).endswith("far%3Dlocal%253A%252F%252F%252Ffar%253Fmode%253Dro")
    assert composition.url(PATH_INFOS).endswith("inner=local%3A%2F%2F%2Fown%3Fmode%3Dro")
    assert composition.url(DIRECTORIES) == "local:///d?mode=rw"


KNOWN_LOCAL = r"\(known: type, path, mode, directory_size_rule\)"
ROOT = r"\[blobservices.root\]"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("x = [", "is no TOML: "),
        pytest.param("x = " + "[" * 10000, "this is nested too deep|is no TOML", id="deep"),
        pytest.param("x = " + "1" * 10000, "is no TOML: ", id="long number"),
        ("blobs = 1", r"there is no table \[blobs\] \(known: blobservices, directoryservices, pathinfoserv"),
        ("[blobservice.root]", r"there is no table \[blobservice\]"),
        ("blobservices = 1", r"\[blobservices\] must be a table"),
        ("[[blobservices]]", r"\[blobservices\] must be a table"),
        ("[blobservices]\nroot = 'memory://'", rf"{ROOT} must be a table"),
        ("[blobservices.root]", rf"{ROOT}: key 'type' is missing \(known: memory, local, grpc, cache, comb"),
        ("[blobservices.root]\ntype = 1", rf"{ROOT}: key 'type' must be a string"),
        (
            "[blobservices.root]\ntype = 'redb'",
            rf"{ROOT}: key 'type' is 'redb', which blobservices do not have \(known: memory, ",
        ),
        (
            "[blobservices.root]\ntype = 'lru'",
            rf"{ROOT}: key 'type' is 'lru', which blobservices do not have",
        ),
        ("[blobservices.root]\ntype = 'local'", rf"{ROOT}: key 'path' is missing"),
        (
            "[blobservices.root]\ntype = 'local'\npath = 1",
            rf"{ROOT}: key 'path' must be a string, and not em",
        ),
        ("[blobservices.root]\ntype = 'local'\npath = ''", rf"{ROOT}: key 'path' must be a string, and not"),
        (
            "[blobservices.root]\ntype = 'local'\npath = 'srv'",
            rf"{ROOT}: key 'path' must be an absolute path",
        ),
        ('[blobservices.root]\ntype = "local"\npath = "/\\u0000"', rf"{ROOT}: key 'path' holds a NUL"),
        (
            "[blobservices.root]\ntype = 'local'\npath = '/s'\nurl = 'x'",
            rf"{ROOT}: key 'url' is unknown for type local {KNOWN_LOCAL}",
        ),
        (
            "[blobservices.root]\ntype = 'memory'\nx.y = 1",
            rf"{ROOT}: key 'x' is unknown for type memory \(known: type\)",
        ),
        ("[blobservices.'a.b']", r"\[blobservices.'a.b'\]: key 'type' is missing"),
        ("[blobservices.'']\ntype = 'memory'", r"\[blobservices.''\]: nothing can refer to a service of th"),
        ("[blobservices.'memory://']\ntype = 'memory'", r"\[blobservices.'memory://'\]: nothing can refer"),
        (
            "[blobservices.root]\ntype = 'grpc'\nurl = 'http://h'",
            rf"{ROOT}: key 'url' must begin with grpc\+",
        ),
        ("[blobservices.root]\ntype = 'grpc'\nurl = 'grpc+x'", rf"{ROOT}: address 'grpc\+x' has no scheme"),
        ("[blobservices.root]\ntype = 'cache'\nnear = 'memory://'", rf"{ROOT}: key 'far' is missing"),
        (
            "[blobservices.root]\ntype = 'cache'\nnear = 1",
            rf"{ROOT}: key 'near' must be the name of a service, or",
        ),
        (
            "[blobservices.root]\ntype = 'cache'\nnear = ''",
            rf"{ROOT}: key 'near' must be the name of a servic",
        ),
        (
            "[blobservices.root]\ntype = 'cache'\nnear = 'memory://#x'",
            rf"{ROOT}: key 'near' cannot be used: address 'memory://#x': a fragment",
        ),
        (
            "[blobservices.root]\ntype = 'cache'\nnear = 'disk'\nfar = 'memory://'",
            rf"{ROOT}: key 'near' names 'disk', and there is no table \[blobservices.disk\] \(there",
        ),
        (
            "[blobservices.root]\ntype = 'combined'\nlocal = 'disk'\nfar = 'memory://'",
            rf"{ROOT}: key 'local' names 'disk', and there is no table",
        ),
        (
            "[blobservices.root]\ntype = 'combined'\nlocal = 'memory://'\nnear = 'memory://'",
            rf"{ROOT}: key 'near' is another name of near, which is there too",
        ),
        (
            "[blobservices.root]\ntype = 'cache'\nnear = 'root'\nfar = 'memory://'",
            rf"{ROOT}: key 'near' leads back to where it comes from: root -> root",
        ),
        (
            "[pathinfoservices.root]\ntype = 'cache'\nnear = 'memory://'\nfar = 'disk'\n[blobservices.disk]\n"
            "type = 'memory'",
            r"\[pathinfoservices.root\]: key 'far' names 'disk', and there is no .*pathinfoservices.disk\]",
        ),
        (
            "[pathinfoservices.x]\ntype = 'nix'\nbase_url = 'https://h'\ndirectory_service = 'there'",
            r"\[pathinfoservices.x\]: key 'directory_service' names 'there', and there is no table "
            r"\[directoryservices.there\] \(there are: none\)",
        ),
        ("[pathinfoservices.x]\ntype = 'nix'", r"\[pathinfoservices.x\]: key 'base_url' is missing"),
        (
            "[pathinfoservices.x]\ntype = 'nix'\nbase_url = 'https://h?a=b'",
            r"key 'base_url' must be an address without parameters",
        ),
        (
            "[pathinfoservices.x]\ntype = 'nix'\nbase_url = 's3://h'",
            r"key 'base_url' must begin with http://",
        ),
        (
            "[pathinfoservices.x]\ntype = 'nix'\npublic_keys = []",
            r"key 'public_keys' must not be an empty list",
        ),
        ("[pathinfoservices.x]\ntype = 'nix'\npublic_keys = [1]", r"key 'public_keys' must be a string"),
        ("[pathinfoservices.x]\ntype = 'lru'\ncapacity = true", r"key 'capacity' must be a whole number"),
        ("[pathinfoservices.x]\ntype = 'lru'\ncapacity = -1", r"key 'capacity' must be a whole number"),
        (
            "[pathinfoservices.x]\ntype = 'cache'\nnegative_ttl = 0",
            r"key 'negative_ttl' must be a number of sec",
        ),
        (
            "[pathinfoservices.x]\ntype = 'cache'\nnegative_ttl = nan",
            r"key 'negative_ttl' must be a number of",
        ),
        (
            "[pathinfoservices.x]\ntype = 'cache'\nnegative_ttl = []",
            r"key 'negative_ttl' must be a number of",
        ),
        (
            "[pathinfoservices.x]\ntype = 'bigtable'\nis_read_only = 1",
            r"key 'is_read_only' must be true or fal",
        ),
        ("[pathinfoservices.x]\ntype = 'bigtable'", r"\[pathinfoservices.x\]: key 'family_name' is missing"),
        (
            "[blobservices.x]\ntype = 'objectstore'\nobject_store_options = 'x'",
            r"key 'object_store_options' must be a table",
        ),
        (
            "[blobservices.x]\ntype = 'objectstore'\nobject_store_options = { x = 1.5 }",
            r"key 'object_store_options' must be a table of strings, whole numbers, true and false",
        ),
        (
            "[blobservices.x]\ntype = 'objectstore'\nobject_store_url = 's3'",
            r"must be an address without param",
        ),
        (
            "[directoryservices.x]\ntype = 'objectstore'\navg_chunk_size = 1",
            r"key 'avg_chunk_size' is unknown for type objectstore",
        ),
        (
            "[pathinfoservices.x]\ntype = 'postgresql'\nurl = 'mysql://h'",
            r"key 'url' must begin with postgresql",
        ),
    ],
)
def test_what_is_wrong_is_told_with_file_table_and_key(lines: str, message: str) -> None:
    with pytest.raises(InvalidComposition, match=message) as refused:
        parse(lines, FILE)
    assert str(refused.value).startswith(FILE)


def test_secrets_are_not_told() -> None:
    for lines in (
        "[blobservices.x]\ntype = 'objectstore'\nobject_store_url = 's3://b'\n"
        "object_store_options = { aws_secret_access_key = 's3cret', x = [] }",
        "[blobservices.x]\ntype = 'objectstore'\nobject_store_url = 's3cret'",
        "[pathinfoservices.x]\ntype = 'postgresql'\nurl = 'postgresql://u:s3cret@h/db#x'",
        "[pathinfoservices.x]\ntype = 'cache'\nnear = 'postgresql://u:s3cret@h/db#x'",
    ):
        with pytest.raises(InvalidComposition) as refused:
            parse(lines, FILE)
        assert "s3cret" not in str(refused.value)


def chain(length: int, *, back: bool = False) -> str:
    """Services that are each made of the next one, twice."""
    names = [f"s{number}" for number in range(length)]
    tables = [
        f"[blobservices.{name}]\ntype = 'cache'\nnear = '{following}'\nfar = '{following}'\n"
        for name, following in zip(names, [*names[1:], names[0] if back else "memory://"], strict=True)
    ]
    return "".join(reversed(tables))


def test_cycles() -> None:
    with pytest.raises(
        InvalidComposition,
        match=r"\[blobservices.s1\]: key 'near' leads back to where it comes from: s2 -> s0 -> s1 -> s2",
    ):
        parse(chain(3, back=True), FILE)


def test_addresses_have_an_end() -> None:
    """Or in the address of the whole they would be gigabytes."""
    end = f"[blobservices.end]\ntype = 'local'\npath = '/{' ' * 2000}'\n"
    tables = chain(MAX_LEVELS - 1).replace("memory://", "end") + end
    assert len(parse(tables.replace("s0", "root"), FILE).url(BLOBS)) < 16 * 1024 * 1024
    for lines, message in (
        (end.replace(" " * 2000, " " * MAX_ADDRESS), r"\[blobservices.end\]: its address has more than 8192"),
        (
            f"[blobservices.x]\ntype = 'cache'\nnear = 'local:///{'x' * MAX_ADDRESS}'",
            "key 'near' has 8201 characters, over the limit of 8192",
        ),
    ):
        with pytest.raises(InvalidComposition, match=message):
            parse(lines, FILE)


def test_levels_have_an_end() -> None:
    parse(chain(MAX_LEVELS), FILE)
    for length in (MAX_LEVELS + 1, 1000):
        for back in (False, True):
            with pytest.raises(InvalidComposition, match=f"made of others in more than {MAX_LEVELS} levels"):
                parse(chain(length, back=back), FILE)


# The file itself.


def test_reading(tmp_path: Path) -> None:
    file = tmp_path / "store.toml"
    file.write_text(TWO)
    assert read(file) == read(str(file)) == parse(TWO, str(file))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"cannot read the composition {tmp_path}/none: No such file"):
        read(tmp_path / "none")
    with pytest.raises(InvalidRequest, match="cannot be the name of a file"):
        read("a\0b")
    with pytest.raises(Unavailable, match=f"cannot read the composition {tmp_path}: Is a directory"):
        read(tmp_path)
    (tmp_path / "odd").write_bytes(b"\xff")
    with pytest.raises(InvalidComposition, match=f"{tmp_path}/odd is no UTF-8"):
        read(tmp_path / "odd")
    (tmp_path / "long").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(LimitExceeded, match=f"more than {MAX_FILE_BYTES} bytes, the limit of a composition"):
        read(tmp_path / "long")
