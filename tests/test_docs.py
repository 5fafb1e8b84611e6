"""What the documents say of options and defaults is what the program has."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from neve.bigtable import address as bigtable
from neve.bigtable.messages import MAX_CELL_BYTES
from neve.cli.collecting import gc
from neve.cli.commands import cli
from neve.cli.options import STORE_OPTIONS
from neve.cli.server_options import shown_size
from neve.fs.fuse.session import MAX_READ_BYTES
from neve.fs.vhost.device import DRAIN_SECONDS
from neve.fs.vhost.messages import MAX_QUEUE_SIZE
from neve.fs.vhost.ring import MAX_REQUEST_BYTES
from neve.packstore.notes import MAX_LASTING
from neve.postgres import address as postgres
from neve.rpc.target import DEFAULT_TIMEOUT, PARAMETERS
from neve.server.limits import Limits
from neve.store.composition import BLOBS, DIRECTORIES, KINDS, PATH_INFOS, parse
from neve.store.composition.file import MAX_FILE_BYTES, MAX_LEVELS
from neve.store.composition.types import TYPES
from neve.store.gc.rules import DEFAULT_GRACE
from neve.store.pathinfos.bigtable import _PAGE_BYTES
from neve.store.pathinfos.lru import DEFAULT_CAPACITY
from neve.store.pathinfos.urls import PATH_INFO_SERVICES
from neve.store.substitute import address, http, pace

DOCS = Path(__file__).parents[1] / "docs"


def test_every_limit_of_the_daemon_is_told_with_its_default() -> None:
    rows = re.findall(r"^\| `--([a-z-]+)` \| (\S+) \|", (DOCS / "daemon.md").read_text(), re.MULTILINE)
    limits = Limits()
    expected = {}
    for field in dataclasses.fields(limits):
        value = getattr(limits, field.name)
        shown = shown_size(value) if field.name.endswith("_bytes") else f"{value:g}"
        expected[field.name.replace("_", "-")] = shown if "e" not in shown else str(value)
    assert dict(rows) == expected


def test_daemons_are_started_as_they_may_be() -> None:
    """One that other machines can reach needs to know its clients, or to be told that it need not."""
    started = [
        line
        for document in DOCS.glob("*.md")
        for line in re.findall(r"neve daemon (?:.|(?<=\\)\n)*", document.read_text())
    ]
    listening = [line for line in started if re.search(r"(?:-l|--listen) '?(?:\[::\]|0\.0\.0\.0|\*)", line)]
    assert len(listening) >= 2
    for line in listening:
        assert "--insecure" in line or all(f"--tls-{what} " in line for what in ("cert", "key", "client-ca"))


def test_every_parameter_of_an_address_is_told() -> None:
    text = (DOCS / "daemon.md").read_text()
    for name in PARAMETERS:
        assert f"{name}=" in text
    assert f"default {DEFAULT_TIMEOUT:g}" in text


def test_every_parameter_of_a_cache_is_told_with_its_default() -> None:
    text = (DOCS / "caches.md").read_text()
    table = text.partition("## Parameters")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| ([^|]+) \|", table, re.MULTILINE))
    assert list(rows) == list(address.HTTP_PARAMETERS)
    assert rows["timeout"] == f"{http.DEFAULT_TIMEOUT:g}"
    assert rows["attempts"] == str(http.DEFAULT_ATTEMPTS)
    assert f"at least {pace.MIN_BYTES // 1024} KiB of it" in table
    assert f"Up to {http.MAX_REDIRECTS} redirects" in text
    assert f"N is {DEFAULT_CAPACITY} if it is left out" in text
    for scheme in ("cache", "keyfile-signing", "lru", "nix+file", "nix+http", "nix+https"):
        assert scheme in PATH_INFO_SERVICES.names()
        assert f"{scheme}://" in text


def test_every_option_of_gc_is_told() -> None:
    text = (DOCS / "gc.md").read_text()
    elsewhere = {*STORE_OPTIONS, "json"}
    opts = {name.removeprefix("--") for option in gc.params for name in option.opts if name[:2] == "--"}
    assert [name for name in sorted(opts - elsewhere) if f"--{name}" not in text] == []
    assert f"(default {DEFAULT_GRACE / 3600:g} hours, at most {MAX_LASTING / 3600:g})" in text


def test_every_parameter_of_a_table_is_told_with_its_default() -> None:
    text = (DOCS / "bigtable.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| ([^|]+) \|", text, re.MULTILINE))
    assert {*rows, *bigtable.REQUIRED} == {*bigtable.PARAMETERS, bigtable.NAR_FAMILY}
    assert "`project_id`, `table_name`, `family_name`" in text
    assert rows["channel_size"] == str(bigtable.DEFAULT_CHANNELS)
    assert rows["timeout"] == f"{bigtable.DEFAULT_TIMEOUT:g}"
    assert rows["app_profile_id"] == bigtable.DEFAULT_APP_PROFILE
    assert f"up to {bigtable.MAX_CHANNELS}" in text
    assert f"at most {MAX_CELL_BYTES >> 20} MiB" in text
    assert f"pages of at most {_PAGE_BYTES >> 20} MiB" in text


def test_compositions_in_the_guide_are_such() -> None:
    text = (DOCS / "composition.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        composition = parse(example, "example")
        assert all(map(composition.has_root, KINDS))
    assert f"in at most {MAX_LEVELS} levels" in text
    assert f"at most {MAX_FILE_BYTES >> 10} KiB" in text


def test_every_type_of_a_composition_is_told_with_its_keys() -> None:
    text = (DOCS / "composition.md").read_text()
    names = {BLOBS: "blobs", DIRECTORIES: "Directories", PATH_INFOS: "path infos"}
    rows = re.findall(r"^\| `([a-z-]+)` \| ([^|]+) \| ([^|]*)\|", text, re.MULTILINE)
    told = {
        (kind, name): set(re.findall(r"`([a-z_]+)`", keys))
        for name, kinds, keys in rows
        for kind, shown in names.items()
        if kinds == "all" or shown in kinds.split(", ")
    }
    known = {
        (kind, name): set(each.known()) - {"type"} for kind in KINDS for name, each in TYPES[kind].items()
    }
    # Keys that only one of the kinds has are told as that.
    told[DIRECTORIES, "objectstore"].discard("avg_chunk_size")
    told[DIRECTORIES, "bigtable"].discard("nar_family_name")
    assert told == known


def test_the_limits_of_virtiofs_are_told() -> None:
    text = " ".join((DOCS / "virtiofs.md").read_text().split())
    assert f"Queues have up to {MAX_QUEUE_SIZE} entries, requests up to {MAX_REQUEST_BYTES >> 10} KiB" in text
    assert f"contents are read up to {MAX_READ_BYTES >> 20} MiB at a time" in text
    assert f"waits up to {DRAIN_SECONDS:g} seconds for requests in flight" in text


def test_the_guide_to_backups_tells_every_option_of_a_mirror() -> None:
    text = (DOCS / "backup.md").read_text()
    mentioned = set(re.findall(r"--[a-z-]+", text))
    options = {
        command: {name for option in cli.commands[command].params for name in option.opts if name[:2] == "--"}
        for command in ("mirror", "verify")
    }
    assert options["mirror"] <= mentioned
    assert mentioned - {"--admin-listen"} <= options["mirror"] | options["verify"]


def test_every_parameter_of_a_database_is_told_with_its_default() -> None:
    text = (DOCS / "postgresql.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z]+)` \| ([^|]+) \|", text, re.MULTILINE))
    defaults = (postgres.DEFAULT_SCHEMA, f"{postgres.DEFAULT_TIMEOUT:g}", str(postgres.DEFAULT_POOL), "none")
    assert rows == dict(zip(postgres.PARAMETERS, defaults, strict=True))
    passed_on = text.partition("Those of libpq")[2].partition("Any other is refused")[0]
    assert tuple(re.findall(r"`([a-z_]+)`", passed_on)) == postgres.LIBPQ_PARAMETERS
