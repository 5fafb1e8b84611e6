"""``neve`` as another user: ``python -m tests.fs.as_user UID ARGUMENT...``

The interpreter and what is installed with it may lie where only root can read, so everything is loaded first,
by doing once as root what the command will do.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys

import neve
import neve.cli
import neve.fs
from neve.cli.__main__ import main


def _load_everything(store: str) -> None:
    for package in (neve.cli, neve.fs):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    importlib.import_module("neve.store.root_nodes")
    importlib.import_module("encodings.idna")
    if os.path.isdir(store):
        with neve.open(f"local://{store}?mode=ro") as opened:
            for path_info in opened.path_infos:
                for _ in opened.nar(path_info.store_path):
                    break


if __name__ == "__main__":
    user, arguments = int(sys.argv[1]), sys.argv[2:]
    for argument in arguments:
        if argument.startswith("local://"):
            _load_everything(argument.removeprefix("local://"))
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    os.chdir("/")
    sys.argv[1:] = arguments
    sys.exit(main())
