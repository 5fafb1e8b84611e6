"""``local:`` addresses: ``local:///srv/neve``, ``local://`` (temporary), ``?mode=ro``."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from neve.errors import InvalidRequest
from neve.packstore.store import PackStore, check_path
from neve.registry import Address

SIZE_RULE_SETTING = "directory-size-rule"


def open_address(address: Address) -> PackStore:
    """Opens the store an address names, creating it when it is missing (not with ``mode=ro``).

    ``directory-size-rule`` is a setting of the store: it counts when the store is created, and an
    address that asks for another one later is refused.
    """
    address.check_parameters("mode", SIZE_RULE_SETTING)
    read_only = address.choice("mode", "rw", "ro") == "ro"
    if address.host:
        raise address.refuse(f"a local store has no host ({address.host!r}); write local:///folder")
    settings: dict[str, str] = {}
    if SIZE_RULE_SETTING in address.parameters:
        settings[SIZE_RULE_SETTING] = address.choice(SIZE_RULE_SETTING, "exact", "snix")
    path = _folder(address, read_only=read_only)
    store = PackStore.open(path, read_only=read_only, create=not read_only, settings=settings)
    for name, wanted in settings.items():
        if (found := store.settings.get(name, "exact")) != wanted:
            store.close()
            raise address.refuse(f"the store's {name} is {found!r}, it cannot be changed to {wanted!r}")
    return store


def _folder(address: Address, *, read_only: bool) -> Path:
    if address.path:
        try:
            return check_path(address.path)
        except InvalidRequest as error:
            raise address.refuse(str(error)) from error
    if read_only:
        raise address.refuse("a temporary store cannot be read-only")
    return temporary_folder()


def temporary_folder() -> Path:
    """A folder for a temporary store, removed when the process ends."""
    path = Path(tempfile.mkdtemp(prefix="neve-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
