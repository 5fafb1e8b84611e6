"""The table: what is done, to what, and what must be there before, after, and whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import random
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from neve.castore.blobs.local_write import BLOBS
from neve.castore.digest import b3_digest
from neve.castore.directories.local import DIRECTORIES
from neve.errors import NeveError
from neve.http_cache.tokens import read_tokens
from neve.packstore.layout import PACKS_DIR, pack_name
from neve.packstore.location import offset_of, pack_of
from neve.packstore.store import PackStore
from neve.packstore.uses import lasting_uses
from neve.store.gc.collect import collect_garbage
from neve.store.gc.rules import Rules
from neve.store.pins import pins_of
from neve.store.services import Services, open_services
from neve.store.signing import read_secret_key
from tests.faults import world as worlds
from tests.faults.world import World
from tests.soak.trees import nar_hash

Action = Callable[[], int]
Make = Callable[[World, Path], Sequence[Action]]


class Holds(NamedTuple):
    """The paths in a store, by the names of their trees: before the operation, and after it."""

    before: tuple[str, ...]
    after: tuple[str, ...]


def _nothing(world: World, folder: Path) -> Sequence[Action]:
    return ()


def _open_local(folder: Path, name: str) -> Services:
    return open_services(local(folder, name))


def _no_files(world: World, folder: Path, output: str, done: bool) -> None:
    pass


@dataclass(frozen=True)
class Operation:
    """Something that writes to a disk."""

    name: str
    action: Callable[[World, Path], Action]
    prepare: Make = _nothing
    """What is done before."""
    stores: dict[str, Holds] = dataclasses.field(default_factory=dict)
    """By the names of their folders."""
    opens: Callable[[Path, str], Services] = _open_local
    """How they are looked into."""
    check: Callable[[World, Path, str, bool], None] = _no_files
    """Asserts what holds for other files, by what was printed, when it has been done and when it has not."""
    prints_paths: bool = False
    """Each line that it prints is the path of something that is stored."""
    damaged: bool = False
    """What it begins with is."""
    once: bool = False
    """Where it has been done, it is refused."""
    may_leave: str = "(?!)"
    """A pattern of what stays when it is killed, and is in nobody's way."""


THREADS, TURNS = 4, 3
"""Who puts blobs at once, and how many, one after the other."""


def local(folder: Path, name: str = "store") -> str:
    return f"local://{folder / name}"


def _import(name: str, *options: str, trees: Sequence[str] = ("second",)) -> Callable[[World, Path], Action]:
    return lambda world, folder: worlds.neve(
        *("import", "--store", local(folder, name), *options),
        *(world.items[tree].tree for tree in trees),
    )


def _imported(**stores: Sequence[str]) -> Make:
    """Stores with trees, each imported for itself."""
    return lambda world, folder: [
        _import(name, trees=[tree])(world, folder) for name, trees in stores.items() for tree in trees
    ]


def _on_store(*command: str, of: str = "") -> Callable[[World, Path], Action]:
    """A command for the store, about the path of a tree if there is one."""
    return lambda world, folder: worlds.neve(
        *(*command, *([world.items[of].store_path] if of else []), "--store", local(folder))
    )


def _nar(world: World, folder: Path) -> Action:
    """The name is the tree's, so it becomes the same path."""
    return worlds.neve("nar", "import", "--store", local(folder), "--name", "second", world.nar)


def _archive(world: World, folder: Path) -> Action:
    return worlds.neve("archive", "import", "--store", local(folder), "--name", "second", world.tar)


def _mirror(world: World, folder: Path) -> Action:
    return worlds.neve("mirror", local(folder, "source"), local(folder))


def _export(world: World, folder: Path) -> Action:
    return worlds.neve(
        *("export", "--store", local(folder), world.items["first"].store_path, folder / "out" / "tree")
    )


def _with_out(world: World, folder: Path) -> Sequence[Action]:
    (folder / "out").mkdir()
    return _imported(store=["first"])(world, folder)


def _exported(world: World, folder: Path, output: str, done: bool) -> None:
    out = folder / "out" / "tree"
    assert done or not out.exists() or nar_hash(out) == world.items["first"].nar_hash, "half a tree"
    assert not done or nar_hash(out) == world.items["first"].nar_hash, "another tree"


def _pinned(world: World, folder: Path, output: str, done: bool) -> None:
    services = open_services(local(folder))
    pins = {pin.name: [path.absolute for path in pin.paths] for pin in pins_of(services.packs).list()}
    services.close()
    assert pins in ([{}] if not done else []) + [{"name": [world.items["first"].store_path]}], pins


def _damage(world: World, folder: Path) -> Sequence[Action]:
    """Flips a bit in every frame of the store's pack that has contents of ``first``."""

    def flip() -> int:
        store = PackStore.open(folder / "store")
        for table in (BLOBS, DIRECTORIES):
            for _, location in store.page(table, b"", 3):
                path = store.path / PACKS_DIR / pack_name(pack_of(location.place))
                with path.open("r+b", buffering=0) as file:
                    file.seek(offset_of(location.place) + location.stored_len // 2)
                    byte = file.read(1)[0]
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([byte ^ 0x10]))
        store.close()
        return 0

    return [*_imported(store=["first", "second"], source=["first", "second"])(world, folder), flip]


def _group(world: World, folder: Path) -> Action:
    """Several put blobs at once, and each writes down what it was promised."""

    def work() -> None:
        services = open_services(local(folder))
        errors: list[NeveError] = []

        def put(number: int) -> None:
            try:
                for turn in range(TURNS):
                    [digest] = services.blobs.put_many([_blob(number, turn)])
                    os.write(1, f"{digest.hex()}\n".encode())
            except NeveError as error:
                errors.append(error)

        threads = [threading.Thread(target=put, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        services.close()
        if errors:
            raise ExceptionGroup("some have failed", errors)

    return _telling(work)


def _telling(work: Callable[[], None]) -> Action:
    """Like a command: what it fails of is told. Of several that did something at once, one learns the reason,
    the others perhaps only that something has failed."""

    def action() -> int:
        failed = False
        try:
            work()
        except* NeveError as group:
            failed = True
            for error in group.exceptions:
                print(f"neve: {error}", file=sys.stderr)
                print(f"FAILED {type(error).__module__}.{type(error).__name__}", file=sys.stderr)
        return int(failed)

    return action


def _blob(number: int, turn: int) -> bytes:
    return random.Random(number * 100 + turn).randbytes(3000)


def _grouped(world: World, folder: Path, output: str, done: bool) -> None:
    """What was promised is there, and whatever is there is right."""
    services = open_services(local(folder))
    for number in range(THREADS):
        for turn in range(TURNS):
            blob = _blob(number, turn)
            digest = b3_digest(blob)
            there = not services.blobs.missing([digest])
            assert there or not (done or digest.hex() in output.split()), "something promised is not there"
            assert not there or list(services.blobs.read_many([digest])) == [blob]
    services.close()


def _promise(world: World, folder: Path) -> Action:
    """A server tells others that blobs are there, which nothing refers to yet."""

    def work() -> None:
        with lasting_uses(), contextlib.closing(open_services(local(folder))) as services:
            for number in range(2):
                digest = b3_digest(_blob(number, 0))
                if services.blobs.missing([digest]):
                    services.blobs.put_many([_blob(number, 0)])
                os.write(1, f"{digest.hex()}\n".encode())

    return _telling(work)


def _with_blobs(world: World, folder: Path) -> Sequence[Action]:
    def put() -> int:
        with contextlib.closing(open_services(local(folder))) as services:
            services.blobs.put_many([_blob(number, 0) for number in range(3)])
        return 0

    return [*_imported(store=["first"])(world, folder), put]


def _promised(world: World, folder: Path, output: str, done: bool) -> None:
    """A collection leaves them alone for as long as it grants, and takes what nobody has asked for."""
    with contextlib.closing(open_services(local(folder))) as services:
        collect_garbage(services, Rules(grace=3600))
        for number in range(3):
            digest = b3_digest(_blob(number, 0))
            there = not services.blobs.missing([digest])
            assert there or digest.hex() not in output.split(), "something promised is not there"
            assert number < 2 or not there


def _token(world: World, folder: Path) -> Action:
    return worlds.neve("token", "new", "--push", "--file", folder / "tokens")


def _with_tokens(world: World, folder: Path) -> Sequence[Action]:
    return [worlds.neve("token", "old", "--file", folder / "tokens")]


def _tokens(world: World, folder: Path, output: str, done: bool) -> None:
    """The secret that is printed is one that lets in, and the file is one that a server takes."""
    known = {token.name: token.sha256 for token in read_tokens(str(folder / "tokens"))}
    assert set(known) in ([{"old", "new"}] if done else [{"old"}, {"old", "new"}])
    if done and output:
        assert known["new"] == hashlib.sha256(output.strip().encode()).digest()


def _key(world: World, folder: Path) -> Action:
    return worlds.neve("key", "generate", "name-1", "--output", folder / "key")


def _keys(world: World, folder: Path, output: str, done: bool) -> None:
    if done or (folder / "key").exists():
        assert read_secret_key(folder / "key").name == "name-1"


def _objects(folder: Path) -> dict[str, str]:
    """Contents in a folder of objects, path infos in an embedded store."""
    url = f"objectstore+file://{folder}/objects"
    return {"blob_service": url, "directory_service": url, "path_info_service": local(folder, "paths")}


def _in_objects(folder: Path) -> list[str]:
    return [f"--{name.replace('_', '-')}-addr={url}" for name, url in _objects(folder).items()]


def _import_objects(*trees: str) -> Callable[[World, Path], Action]:
    return lambda world, folder: worlds.neve(
        "import", *_in_objects(folder), *(world.items[tree].tree for tree in trees)
    )


def _gc_objects(world: World, folder: Path) -> Action:
    return worlds.neve(
        *("gc", "--grace", "0", "--keep", world.items["first"].store_path), *_in_objects(folder)
    )


def _objects_of(folder: Path, _: str) -> Services:
    return open_services(**_objects(folder))


def _many(*operations: Operation) -> dict[str, Operation]:
    return {operation.name: operation for operation in operations}


_GROWS = {"store": Holds(("first",), ("first", "second"))}
_STAYS = {"store": Holds(("first",), ("first",))}
_BOTH = Holds(("first", "second"), ("first", "second"))

OPERATIONS = _many(
    Operation("create", _import("store"), stores={"store": Holds((), ("second",))}, prints_paths=True),
    Operation(
        "import",
        _import("store", "--stat-cache", trees=["second", "large"]),
        _imported(store=["first"]),
        {"store": Holds(("first",), ("first", "large", "second"))},
        prints_paths=True,
    ),
    Operation("nar-import", _nar, _imported(store=["first"]), _GROWS, prints_paths=True),
    Operation(
        "archive-import",
        _archive,
        _imported(store=["first"]),
        {"store": Holds(("first",), ("first", "second"))},
        prints_paths=True,
    ),
    Operation(
        "objects-import",
        _import_objects("second", "large"),
        lambda world, folder: [_import_objects("first")(world, folder)],
        {"paths": Holds(("first",), ("first", "large", "second"))},
        opens=_objects_of,
        prints_paths=True,
        may_leave=r"objects/.*#[0-9]+",
    ),
    Operation("group-commit", _group, _imported(store=["first"]), _STAYS, check=_grouped),
    Operation("promise", _promise, _with_blobs, _STAYS, check=_promised),
    Operation(
        "gc",
        _on_store("gc", "--keep", of="first"),
        _imported(store=["first", "second", "large"]),
        {"store": Holds(("first", "second", "large"), ("first",))},
    ),
    Operation(
        "objects-gc",
        _gc_objects,
        lambda world, folder: [_import_objects("first", "second", "large")(world, folder)],
        {"paths": Holds(("first", "second", "large"), ("first",))},
        opens=_objects_of,
    ),
    Operation(
        "pin",
        _on_store("pin", "add", "name", of="first"),
        _imported(store=["first"]),
        _STAYS,
        check=_pinned,
    ),
    Operation(
        "rebuild-index",
        _on_store("verify", "--rebuild-index"),
        _imported(store=["first", "second"]),
        {"store": _BOTH},
    ),
    Operation(
        "mirror",
        _mirror,
        _imported(store=["first"], source=["first", "second"]),
        _GROWS | {"source": _BOTH},
    ),
    Operation("export", _export, _with_out, _STAYS, check=_exported, once=True),
    Operation(
        "repair",
        lambda world, folder: _on_store("verify", "--repair-from", local(folder, "source"))(world, folder),
        _damage,
        {"store": _BOTH, "source": _BOTH},
        damaged=True,
    ),
    Operation("token", _token, _with_tokens, check=_tokens, once=True),
    Operation("key", _key, check=_keys, once=True),
)
