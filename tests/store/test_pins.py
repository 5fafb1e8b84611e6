"""Names for store paths that no collection takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.errors import Corrupt, InvalidRequest, LimitExceeded, NotFound, Unsupported
from neve.nix.store_path import StorePath
from neve.packstore.frames import Record
from neve.packstore.store import PackStore
from neve.store import pins as pins_module
from neve.store.check import rebuild_index
from neve.store.pins import MAX_NAME_BYTES, PINS, Pins, pins_of
from neve.store.services import Services, open_services
from neve.testing.pathinfos import path_info, store_path


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    services = open_services(f"local://{tmp_path}/store")
    for name in ("a", "b", "c"):
        services.path_infos.put(path_info(name))
    yield services
    services.close()


@pytest.fixture
def packs(services: Services) -> PackStore:
    assert services.packs is not None
    return services.packs


def listed(pins: Pins) -> dict[str, list[str]]:
    return {pin.name: [path.name for path in pin.paths] for pin in pins.list()}


def test_paths_are_added_and_removed(packs: PackStore, tmp_path: Path) -> None:
    pins = Pins(packs)
    assert listed(pins) == {}
    a, b, c = (store_path(name) for name in ("a", "b", "c"))
    assert pins.add("one", [b, a]).paths == (b, a)
    assert pins.add("one", [a, c]).paths == (b, a, c)
    pins.add("ü two", [c])
    assert listed(pins) == {"one": [b.name, a.name, c.name], "ü two": [c.name]}
    pins.remove("one")
    assert listed(pins) == {"ü two": [c.name]}


def test_they_survive_a_new_index(services: Services, packs: PackStore, tmp_path: Path) -> None:
    Pins(packs).add("one", [store_path("a")])
    services.close()
    rebuild_index(f"local://{tmp_path}/store")
    again = open_services(f"local://{tmp_path}/store")
    assert [pin.name for pin in pins_of(again.packs).list()] == ["one"]
    again.close()


@pytest.mark.parametrize("name", ["", " a", "a\n", "a\tb", "x" * (MAX_NAME_BYTES + 1), "\udc80"])
def test_names_that_are_none(packs: PackStore, name: str) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        Pins(packs).add(name, [store_path("a")])
    with pytest.raises(InvalidRequest, match="name"):
        Pins(packs).remove(name)


def test_what_cannot_be_pinned(packs: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = Pins(packs)
    with pytest.raises(NotFound, match="only what is there can be pinned"):
        pins.add("one", [store_path("a"), store_path("z")])
    with pytest.raises(InvalidRequest, match="needs a store path"):
        pins.add("one", [])
    monkeypatch.setattr(pins_module, "MAX_PATHS", 1)
    with pytest.raises(LimitExceeded, match="the limit is 1"):
        pins.add("one", [store_path("a"), store_path("b")])
    assert listed(pins) == {}


def test_a_path_of_another_name_is_another_one(packs: PackStore) -> None:
    path = store_path("a")
    with pytest.raises(NotFound, match="-other is not in the store"):
        Pins(packs).add("pin", [StorePath(path.digest, "other")])
    assert Pins(packs).list() == []


def test_a_pin_that_is_not_there(packs: PackStore) -> None:
    with pytest.raises(NotFound, match="no pin 'one'"):
        Pins(packs).remove("one")


@pytest.mark.parametrize("data", [b"", b"\xff", b"no path"])
def test_a_damaged_pin(packs: PackStore, data: bytes) -> None:
    packs.update(lambda transaction: transaction.put(PINS, Record(1, b"one", data)))
    with pytest.raises(Corrupt, match="stored pin"):
        Pins(packs).list()


def test_only_an_embedded_store_has_pins() -> None:
    with pytest.raises(Unsupported, match="only an embedded store"):
        pins_of(None)
