"""Addresses of tables."""

from __future__ import annotations

import subprocess
import sys

import pytest

from neve.bigtable.address import DEFAULT_APP_PROFILE, DEFAULT_CHANNELS, DEFAULT_TIMEOUT, target_of
from neve.castore.directories.urls import DIRECTORY_SERVICES
from neve.errors import InvalidRequest
from neve.registry import parse_address
from neve.store.pathinfos.urls import PATH_INFO_SERVICES

TABLE = "bigtable://i?project_id=p&table_name=t&family_name=f"


def test_what_an_address_says() -> None:
    target = target_of(parse_address(TABLE))
    assert target.table_path == "projects/p/instances/i/tables/t"
    assert target.shown == "bigtable://i (table t, family f)"
    assert (target.app_profile, target.channels) == (DEFAULT_APP_PROFILE, DEFAULT_CHANNELS)
    assert (target.reads_only, target.timeout, target.nar_family) == (False, DEFAULT_TIMEOUT, None)
    more = "&is_read_only=true&channel_size=1&timeout=0.5&app_profile_id=a"
    target = target_of(parse_address(TABLE.replace("=p", "=example.com:p-1") + more))
    assert target.table_path == "projects/example.com:p-1/instances/i/tables/t"
    assert (target.app_profile, target.channels) == ("a", 1)
    assert (target.reads_only, target.timeout) == (True, 0.5)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (TABLE.replace("//i", "//"), "the instance is missing; write bigtable://instance"),
        (TABLE.replace("?", "/x?"), "a path has no meaning here"),
        (TABLE.replace("//i", "//i:1"), "the instance: 'i:1' is no name of letters, digits"),
        (TABLE.replace("project_id=p&", ""), "parameter 'project_id' is missing; write project_id=PROJECT"),
        (TABLE.replace("table_name=t&", ""), "parameter 'table_name' is missing; write table_name=TABLE"),
        (TABLE.replace("family_name=f", "family_name="), "parameter 'family_name' is missing"),
        (TABLE.replace("=t", "=a/b"), "table_name: 'a/b' is no name of letters, digits"),
        (TABLE.replace("=f", "=a:b"), "family_name: 'a:b' is no name of letters"),
        (TABLE.replace("=p", "=a/b"), "project_id: 'a/b' is no name of a project"),
        (f"{TABLE}&app_profile_id=", "app_profile_id: '' is no name of"),
        (f"{TABLE}&is_read_only=1", "parameter 'is_read_only' is '1', must be one of: false, true"),
        (f"{TABLE}&channel_size=0", "parameter 'channel_size' is '0', must be a whole number from 1 to 64"),
        (f"{TABLE}&channel_size=65", "parameter 'channel_size' is '65', must be a whole number from 1 to 64"),
        (f"{TABLE}&timeout=0", "parameter 'timeout' is '0', must be a number of seconds above 0"),
        (f"{TABLE}&x=1", r"unknown parameter 'x' \(known: project_id, table_name, family_name, "),
    ],
)
def test_bad_addresses(url: str, message: str) -> None:
    for schemes in (DIRECTORY_SERVICES, PATH_INFO_SERVICES):
        with pytest.raises(InvalidRequest, match=message) as refused:
            schemes.open(url)
        assert f"address {url!r}" in str(refused.value)


def test_the_map_of_nars_has_a_family_of_its_own() -> None:
    with pytest.raises(
        InvalidRequest, match="parameter 'nar_family_name' names the family of the path infos"
    ):
        PATH_INFO_SERVICES.open(f"{TABLE}&nar_family_name=f")
    with pytest.raises(InvalidRequest, match="unknown parameter 'nar_family_name'"):
        DIRECTORY_SERVICES.open(f"{TABLE}&nar_family_name=g")


def test_without_the_library() -> None:
    """One line, as for any other address that cannot be used."""
    script = f"""
import sys
sys.modules["google.cloud.bigtable_v2"] = None
from neve.cli.__main__ import main
sys.argv[1:] = ["path-info", "--store", "memory://", "--path-info-service-addr", {TABLE!r}]
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "neve: google.cloud.bigtable_v2.types is not installed, which bigtable:// addresses need: "
        "install neve[bigtable]\n"
    )


def test_google_s_library_is_loaded_for_such_addresses_only() -> None:
    script = """
import sys
from neve.store.services import open_services
open_services("memory://").close()
assert not [name for name in sys.modules if name.startswith("google.cloud") or name == "google.auth"]
"""
    subprocess.run([sys.executable, "-c", script], check=True)
