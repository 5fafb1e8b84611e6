"""The generated messages: up to date, the same under both names, and numbered as the protocol says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    FileDescriptor,
    MethodDescriptor,
)
from google.protobuf.message import Message

from neve.proto.snix.castore.protos import castore_pb2 as snix_castore
from neve.proto.snix.castore.protos import rpc_blobstore_pb2 as snix_blobstore
from neve.proto.snix.castore.protos import rpc_directory_pb2 as snix_directory
from neve.proto.snix.store.protos import pathinfo_pb2 as snix_pathinfo
from neve.proto.snix.store.protos import rpc_pathinfo_pb2 as snix_rpc_pathinfo
from neve.proto.tvix.castore.protos import castore_pb2, rpc_blobstore_pb2, rpc_directory_pb2
from neve.proto.tvix.store.protos import pathinfo_pb2, rpc_pathinfo_pb2

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gen_protos.py"

FILES = {
    "tvix/castore/protos/castore.proto": (castore_pb2, snix_castore),
    "tvix/castore/protos/rpc_blobstore.proto": (rpc_blobstore_pb2, snix_blobstore),
    "tvix/castore/protos/rpc_directory.proto": (rpc_directory_pb2, snix_directory),
    "tvix/store/protos/pathinfo.proto": (pathinfo_pb2, snix_pathinfo),
    "tvix/store/protos/rpc_pathinfo.proto": (rpc_pathinfo_pb2, snix_rpc_pathinfo),
}
RENAMED = {
    "Node": "Entry",
    "DirectoryNode": "DirectoryEntry",
    "FileNode": "FileEntry",
    "SymlinkNode": "SymlinkEntry",
    "node": "entry",
}

# From the specification of the protocol, not from the sources: name, number, type ("+": repeated).
MESSAGES = {
    "tvix.castore.v1.Directory": "directories 1 DirectoryNode+, files 2 FileNode+, symlinks 3 SymlinkNode+",
    "tvix.castore.v1.DirectoryNode": "name 1 bytes, digest 2 bytes, size 3 uint64",
    "tvix.castore.v1.FileNode": "name 1 bytes, digest 2 bytes, size 3 uint64, executable 4 bool",
    "tvix.castore.v1.SymlinkNode": "name 1 bytes, target 2 bytes",
    "tvix.castore.v1.Node": "directory 1 DirectoryNode, file 2 FileNode, symlink 3 SymlinkNode",
    "tvix.castore.v1.StatBlobRequest": "digest 1 bytes, send_chunks 2 bool, send_bao 3 bool",
    "tvix.castore.v1.StatBlobResponse": "chunks 2 ChunkMeta+, bao 3 bytes",
    "tvix.castore.v1.StatBlobResponse.ChunkMeta": "digest 1 bytes, size 2 uint64",
    "tvix.castore.v1.ReadBlobRequest": "digest 1 bytes",
    "tvix.castore.v1.BlobChunk": "data 1 bytes",
    "tvix.castore.v1.PutBlobResponse": "digest 1 bytes",
    "tvix.castore.v1.GetDirectoryRequest": "digest 1 bytes, recursive 2 bool",
    "tvix.castore.v1.PutDirectoryResponse": "root_digest 1 bytes",
    "tvix.store.v1.PathInfo": "node 1 Node, references 2 bytes+, narinfo 3 NARInfo",
    "tvix.store.v1.StorePath": "name 1 string, digest 2 bytes",
    "tvix.store.v1.NARInfo": (
        "nar_size 1 uint64, nar_sha256 2 bytes, signatures 3 Signature+, reference_names 4 string+, "
        "deriver 5 StorePath, ca 6 CA"
    ),
    "tvix.store.v1.NARInfo.Signature": "name 1 string, data 2 bytes",
    "tvix.store.v1.NARInfo.CA": "type 1 Hash, digest 2 bytes",
    "tvix.store.v1.GetPathInfoRequest": "by_output_hash 1 bytes",
    "tvix.store.v1.CalculateNARResponse": "nar_size 1 uint64, nar_sha256 2 bytes",
    "tvix.store.v1.ListPathInfoRequest": "",
}
ONEOFS = {
    "tvix.castore.v1.Node": "node",
    "tvix.castore.v1.GetDirectoryRequest": "by_what",
    "tvix.store.v1.GetPathInfoRequest": "by_what",
}
METHODS = {
    "tvix.castore.v1.BlobService.Stat": "StatBlobRequest -> StatBlobResponse",
    "tvix.castore.v1.BlobService.Read": "ReadBlobRequest -> stream BlobChunk",
    "tvix.castore.v1.BlobService.Put": "stream BlobChunk -> PutBlobResponse",
    "tvix.castore.v1.DirectoryService.Get": "GetDirectoryRequest -> stream Directory",
    "tvix.castore.v1.DirectoryService.Put": "stream Directory -> PutDirectoryResponse",
    "tvix.store.v1.PathInfoService.Get": "GetPathInfoRequest -> PathInfo",
    "tvix.store.v1.PathInfoService.Put": "PathInfo -> PathInfo",
    "tvix.store.v1.PathInfoService.CalculateNAR": "Node -> CalculateNARResponse",
    "tvix.store.v1.PathInfoService.List": "ListPathInfoRequest -> stream PathInfo",
}
HASHES = [
    "NAR_SHA256",
    "NAR_SHA1",
    "NAR_SHA512",
    "NAR_MD5",
    "TEXT_SHA256",
    "FLAT_SHA1",
    "FLAT_MD5",
    "FLAT_SHA256",
    "FLAT_SHA512",
]
SCALARS = {
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_BOOL: "bool",
}
DIGEST = bytes(range(32))


def messages(file: FileDescriptor) -> Iterator[Descriptor]:
    pending = list(file.message_types_by_name.values())
    while pending:
        message = pending.pop()
        yield message
        pending += message.nested_types


def described_field(field: FieldDescriptor) -> str:
    kind: Descriptor | EnumDescriptor | None = field.message_type or field.enum_type
    type_name = kind.name if kind else SCALARS[field.type]
    return f"{field.name} {field.number} {type_name}" + ("+" if field.is_repeated else "")


def described_method(method: MethodDescriptor) -> str:
    def side(streaming: bool, message: Descriptor) -> str:
        return f"{'stream ' if streaming else ''}{message.name}"

    request = side(method.client_streaming, method.input_type)
    return f"{request} -> {side(method.server_streaming, method.output_type)}"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_generated_files_are_up_to_date() -> None:
    result = run("--check")
    assert (result.returncode, result.stderr) == (0, "")


def test_check_names_what_differs(tmp_path: Path) -> None:
    assert run("--target", tmp_path).returncode == 0
    castore = tmp_path / "tvix" / "castore" / "protos"
    changed = castore / "castore_pb2.py"
    changed.write_text(changed.read_text().replace("tvix.castore.v1", "tvix.castore.v2"))
    missing = tmp_path / "snix" / "store" / "protos" / "pathinfo_pb2.pyi"
    missing.unlink()
    left = castore / "removed_pb2.py"
    left.touch()
    other_compiler = castore / "rpc_directory_pb2.py"
    other_compiler.write_text(other_compiler.read_text().replace("Python Version: ", "Python Version: 1"))

    result = run("--check", "--target", tmp_path)

    assert result.returncode == 1
    named = {line.split(":")[0] for line in result.stderr.splitlines()}
    assert named == {str(changed), str(missing), str(left)}
    assert run("--target", tmp_path).returncode == 0
    assert not left.exists()


def test_generated_files_say_so() -> None:
    for package in ("tvix", "snix"):
        files = list((ROOT / "src" / "neve" / "proto" / package).rglob("*.py*"))
        generated = [file for file in files if file.suffix in (".py", ".pyi")]
        assert len(generated) == 15
        for file in generated:
            assert file.read_text().startswith("# Generated by scripts/gen_protos.py from protos"), file


def test_messages_are_those_of_the_protocol() -> None:
    found = {
        message.full_name: ", ".join(described_field(field) for field in message.fields)
        for module, _ in FILES.values()
        for message in messages(module.DESCRIPTOR)
    }
    assert found == MESSAGES


def test_oneofs_are_those_of_the_protocol() -> None:
    found = {
        message.full_name: " ".join(oneof.name for oneof in message.oneofs)
        for module, _ in FILES.values()
        for message in messages(module.DESCRIPTOR)
        if message.oneofs
    }
    assert found == ONEOFS


def test_methods_are_those_of_the_protocol() -> None:
    found = {
        method.full_name: described_method(method)
        for module, _ in FILES.values()
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert found == METHODS


def test_hash_numbers_are_those_of_the_protocol() -> None:
    values = pathinfo_pb2.NARInfo.CA.DESCRIPTOR.enum_types_by_name["Hash"].values
    assert [(value.name, value.number) for value in values] == [
        (name, number) for number, name in enumerate(HASHES)
    ]


@pytest.mark.parametrize("name", FILES)
def test_descriptors_have_the_file_names_of_the_protocol(name: str) -> None:
    tvix, snix = FILES[name]
    assert tvix.DESCRIPTOR.name == name
    assert snix.DESCRIPTOR.name == name.replace("tvix/", "snix/")
    assert [file.name for file in snix.DESCRIPTOR.dependencies] == [
        file.name.replace("tvix/", "snix/") for file in tvix.DESCRIPTOR.dependencies
    ]


def renamed(full_name: str) -> str:
    return ".".join(RENAMED.get(part, part) for part in full_name.replace("tvix.", "snix.", 1).split("."))


@pytest.mark.parametrize("name", FILES)
def test_both_sets_agree(name: str) -> None:
    tvix, snix = FILES[name]
    ours = {message.full_name: message for message in messages(tvix.DESCRIPTOR)}
    theirs = {message.full_name: message for message in messages(snix.DESCRIPTOR)}
    assert set(theirs) == {renamed(full_name) for full_name in ours}
    for full_name, message in ours.items():
        counterpart = theirs[renamed(full_name)]
        assert fields(counterpart) == [
            (renamed(name), number, type_, repeated, renamed(of), renamed(oneof))
            for name, number, type_, repeated, of, oneof in fields(message)
        ]
    methods = [
        (
            renamed(method.full_name),
            renamed(method.input_type.full_name),
            renamed(method.output_type.full_name),
        )
        for service in tvix.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    assert methods == [
        (method.full_name, method.input_type.full_name, method.output_type.full_name)
        for service in snix.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def fields(message: Descriptor) -> list[tuple[str, int, int, bool, str, str]]:
    described = []
    for field in message.fields:
        kind = field.message_type or field.enum_type
        oneof = field.containing_oneof.name if field.containing_oneof else ""
        type_name = kind.full_name if kind else ""
        described.append((field.name, field.number, field.type, field.is_repeated, type_name, oneof))
    return described


def test_classes_can_be_found_by_their_module() -> None:
    assert castore_pb2.Node.__module__ == castore_pb2.__name__ == "neve.proto.tvix.castore.protos.castore_pb2"
    assert snix_castore.Entry.__module__ == snix_castore.__name__


CA = pathinfo_pb2.NARInfo.CA
BYTES: list[tuple[str, Message, bytes]] = [
    ("empty directory", castore_pb2.Directory(), b""),
    (
        "directory",
        castore_pb2.Directory(
            directories=[castore_pb2.DirectoryNode(name=b"d", digest=DIGEST, size=300)],
            files=[castore_pb2.FileNode(name=b"\xff", digest=DIGEST, executable=True)],
            symlinks=[castore_pb2.SymlinkNode(name=b"s", target=b"../x")],
        ),
        b"\x0a\x28\x0a\x01d\x12\x20" + DIGEST + b"\x18\xac\x02"
        b"\x12\x27\x0a\x01\xff\x12\x20" + DIGEST + b"\x20\x01"
        b"\x1a\x09\x0a\x01s\x12\x04../x",
    ),
    (
        "node",
        castore_pb2.Node(file=castore_pb2.FileNode(digest=DIGEST, size=1)),
        b"\x12\x24\x12\x20" + DIGEST + b"\x18\x01",
    ),
    (
        "stat request",
        rpc_blobstore_pb2.StatBlobRequest(digest=DIGEST, send_chunks=True, send_bao=True),
        b"\x0a\x20" + DIGEST + b"\x10\x01\x18\x01",
    ),
    (
        "stat response",
        rpc_blobstore_pb2.StatBlobResponse(
            chunks=[rpc_blobstore_pb2.StatBlobResponse.ChunkMeta(digest=DIGEST, size=5)], bao=b"tree"
        ),
        b"\x12\x24\x0a\x20" + DIGEST + b"\x10\x05\x1a\x04tree",
    ),
    (
        "directory request",
        rpc_directory_pb2.GetDirectoryRequest(digest=DIGEST, recursive=True),
        b"\x0a\x20" + DIGEST + b"\x10\x01",
    ),
    (
        "path info",
        pathinfo_pb2.PathInfo(
            node=castore_pb2.Node(symlink=castore_pb2.SymlinkNode(name=b"n", target=b"t")),
            references=[DIGEST[:20]],
            narinfo=pathinfo_pb2.NARInfo(
                nar_size=200,
                nar_sha256=DIGEST,
                signatures=[pathinfo_pb2.NARInfo.Signature(name="k", data=b"sig")],
                reference_names=["r"],
                deriver=pathinfo_pb2.StorePath(name="p", digest=DIGEST[:20]),
                ca=CA(type=CA.Hash.FLAT_SHA512, digest=b"h"),
            ),
        ),
        b"\x0a\x08\x1a\x06\x0a\x01n\x12\x01t"
        b"\x12\x14" + DIGEST[:20] + b"\x1a\x54\x08\xc8\x01\x12\x20" + DIGEST + b"\x1a\x08\x0a\x01k\x12\x03sig"
        b"\x22\x01r\x2a\x19\x0a\x01p\x12\x14" + DIGEST[:20] + b"\x32\x05\x08\x08\x12\x01h",
    ),
]


@pytest.mark.parametrize(
    ("message", "encoded"), [case[1:] for case in BYTES], ids=[case[0] for case in BYTES]
)
def test_bytes_on_the_wire(message: Message, encoded: bytes) -> None:
    assert message.SerializeToString() == encoded
    assert type(message).FromString(encoded) == message


def test_bytes_of_one_set_parse_as_the_other() -> None:
    ours = next(message for title, message, _ in BYTES if title == "path info")
    theirs = snix_pathinfo.PathInfo.FromString(ours.SerializeToString())
    assert theirs.entry.symlink.target == b"t"
    assert theirs.narinfo.ca.type == snix_pathinfo.NARInfo.CA.Hash.FLAT_SHA512
    assert theirs.SerializeToString() == ours.SerializeToString()
