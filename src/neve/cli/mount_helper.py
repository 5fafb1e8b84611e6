"""``mount.neve``: what mount(8) runs for the type ``neve``, with a line of fstab for instance.

mount(8) looks for it in ``/sbin``; a link to it does. ``mount.neve SOURCE DIR -o OPTIONS`` becomes
``neve mount DIR --store SOURCE --background``. Exit codes are those of mount(8).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from neve.cli.__main__ import main as neve_main
from neve.errors import InvalidRequest

_WRONG_USAGE, _MOUNT_FAILED = 1, 32

_FLAGS = {
    "allow_other": "--allow-other",
    "list_root": "--list-root",
    "no_show_xattr": "--no-show-xattr",
    "noexec": "--noexec",
    "nonempty": "--nonempty",
}
_VALUES = {
    "threads": "--threads",
    "store_composition": "--store-composition",
    "blob_service_addr": "--blob-service-addr",
    "directory_service_addr": "--directory-service-addr",
    "path_info_service_addr": "--path-info-service-addr",
}
# fmt: off
_IGNORED = frozenset({
    "async", "atime", "auto", "defaults", "diratime", "dev", "exec", "fail", "group", "iversion",
    "lazytime", "loud", "mand", "noatime", "noauto", "nodev", "nodiratime", "nofail", "noiversion",
    "nolazytime", "nomand", "norelatime", "nostrictatime", "nosuid", "nouser", "owner", "relatime",
    "ro", "rw", "silent", "strictatime", "suid", "sync", "user", "users", "_netdev",
})
# fmt: on
"""What is for mount(8) and systemd, or is said of all kinds of file systems, and changes nothing here."""
_IGNORED_BEGINNINGS = ("x-", "X-", "comment=", "user=", "uhelper=", "helper=")


class _UsageError(InvalidRequest):
    """The helper was called in a way that it does not know."""


class _Call(NamedTuple):
    source: str
    directory: str
    options: list[str]
    sloppy: bool
    fake: bool
    verbose: bool


def main() -> int:
    """Runs ``neve mount`` as the arguments of the process say; returns the exit code for mount(8)."""
    try:
        call = parse(sys.argv[1:])
        arguments = command_line(call)
    except _UsageError as error:
        print(f"mount.neve: {error}", file=sys.stderr)
        return _WRONG_USAGE
    if call.fake:
        return 0
    sys.argv[1:] = arguments
    code = neve_main()
    return {0: 0, 1: _MOUNT_FAILED, 2: _WRONG_USAGE}.get(code, code)


def parse(arguments: Sequence[str]) -> _Call:
    """What mount(8) says."""
    places: list[str] = []
    options: list[str] = []
    flags = ""
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-o", "-t", "-N"):
            value = next(rest, None)
            if value is None:
                raise _UsageError(f"{argument} takes a value")
            if argument == "-N":
                raise _UsageError("mounting in another namespace is not supported")
            if argument == "-o":
                options += [option for option in value.split(",") if option]
        elif argument.startswith("-") and len(argument) > 1:
            if set(argument[1:]) - set("sfnv"):
                raise _UsageError(f"unknown option {argument}")
            flags += argument[1:]
        else:
            places.append(argument)
    if len(places) != 2:
        raise _UsageError("usage: mount.neve STORE_URL DIR [-o OPTIONS] [-sfnv]")
    return _Call(places[0], places[1], options, "s" in flags, "f" in flags, "v" in flags)


def command_line(call: _Call) -> list[str]:
    """The arguments of ``neve``."""
    arguments = ["--log-level", "info" if call.verbose else "warning"]
    arguments += ["mount", "--background", "--store", call.source]
    for option in call.options:
        name, separator, value = option.partition("=")
        if name in _VALUES and separator:
            arguments += [_VALUES[name], value]
        elif option in _FLAGS:
            arguments.append(_FLAGS[option])
        elif option not in _IGNORED and not option.startswith(_IGNORED_BEGINNINGS) and not call.sloppy:
            raise _UsageError(f"unknown option {option!r}")
    return [*arguments, "--", call.directory]


if __name__ == "__main__":
    sys.exit(main())
