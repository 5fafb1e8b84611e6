"""``local:`` addresses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neve.errors import InvalidRequest, NotFound, PermissionDenied
from neve.packstore.address import open_address
from neve.registry import parse_address
from tests.packstore.helpers import contents, put, record, records


def test_a_folder(tmp_path: Path) -> None:
    store = open_address(parse_address(f"local://{tmp_path}/with%20space/deep"))
    assert store.path == tmp_path / "with space" / "deep"
    put(store, records(1))
    again = open_address(parse_address(f"local://{tmp_path}/with%20space/deep?mode=rw"))
    assert again is store
    again.close()
    store.close()
    store = open_address(parse_address(f"local://{tmp_path}/with%20space/deep?mode=ro"))
    assert len(contents(store)) == 1
    with pytest.raises(PermissionDenied):
        put(store, records(2))
    store.close()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("local://host/srv/neve", "has no host .*local:///folder"),
        ("local:///", "root cannot be a store"),
        ("local:////", "root cannot be a store"),
        ("local:///tmp/x?mode=rx", "'mode' is 'rx', must be one of: rw, ro"),
        ("local:///tmp/x?mod=ro", "unknown parameter 'mod'"),
        ("local:///tmp/x?directory-size-rule=y", "must be one of: exact, snix"),
        ("local://?mode=ro", "temporary store cannot be read-only"),
    ],
)
def test_addresses_that_are_refused(address: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as error:
        open_address(parse_address(address))
    assert repr(address) in str(error.value)


def test_read_only_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is not a neve store"):
        open_address(parse_address(f"local://{tmp_path}/store?mode=ro"))
    assert os.listdir(tmp_path) == []


def test_settings_are_those_of_the_first_opening(tmp_path: Path) -> None:
    url = f"local://{tmp_path}/store"
    store = open_address(parse_address(url + "?directory-size-rule=snix"))
    assert store.settings == {"directory-size-rule": "snix"}
    store.close()
    open_address(parse_address(url)).close()
    open_address(parse_address(url + "?directory-size-rule=snix&mode=ro")).close()
    with pytest.raises(InvalidRequest, match="is 'snix', it cannot be changed to 'exact'"):
        open_address(parse_address(url + "?directory-size-rule=exact"))
    # The refused opening holds nothing.
    open_address(parse_address(url)).close()


TEMPORARY = """
from neve.packstore.address import open_address
from neve.registry import parse_address
stores = [open_address(parse_address("local://")) for _ in range(2)]
assert stores[0] is not stores[1]
print(*(store.path for store in stores), sep="\\n")
"""


def test_a_temporary_store_goes_with_its_process(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", TEMPORARY], env=environment, check=True, capture_output=True, text=True
    )
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert len(paths) == 2
    assert all(path.parent == tmp_path for path in paths)
    assert os.listdir(tmp_path) == []


def test_a_temporary_store() -> None:
    store = open_address(parse_address("local://"))
    put(store, [record(b"x")])
    assert len(contents(store)) == 1
    store.close()
