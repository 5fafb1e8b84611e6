"""Claim: metadata goes in and out of PostgreSQL in groups about as fast as through a daemon.

Path infos and Directories in groups, a closure: a server that is started for it (with its usual
durability), the embedded store, and a daemon over one, in one run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import arguments, table, workspace

import neve
from neve.library import Store
from neve.testing.directories import leaf, parent, put_closure
from neve.testing.pathinfos import path_info, store_path
from neve.testing.postgresql import running_postgresql
from neve.testing.servers import running_daemon

COUNT = 3000
GROUP = 500


@contextlib.contextmanager
def stores(folder: Path) -> Iterator[dict[str, Store]]:
    """By what they are called."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running_postgresql(fsync="on", full_page_writes="on"))
        url = server.url()
        daemon = stack.enter_context(running_daemon(f"local://{folder / 'served'}", folder=folder))
        places = {
            "embedded": {"url": f"local://{folder / 'embedded'}"},
            "daemon": {"url": daemon.admin_url},
            "PostgreSQL": {
                "url": f"local://{folder / 'blobs'}",
                "directory_service": url,
                "path_info_service": url,
            },
        }
        yield {name: stack.enter_context(neve.open(**place)) for name, place in places.items()}


def rate(count: int, work: Callable[[], object]) -> str:
    """How many a second."""
    started = time.perf_counter()
    work()
    return f"{count / (time.perf_counter() - started):,.0f}"


def measure(store: Store) -> list[str]:
    """Each in and out, a second."""
    infos = [path_info(f"p{n}", references=[store_path(f"p{n - 1}")], signatures=["k"]) for n in range(COUNT)]
    closure = [leaf(str(number)) for number in range(COUNT)]
    closure += [parent(*closure[start : start + 100]) for start in range(0, COUNT, 100)]
    closure.append(parent(*closure[COUNT:]))
    leaves = [directory.digest for directory in closure[:COUNT]]
    groups = range(0, COUNT, GROUP)
    services = store.path_infos, store.directories
    return [
        rate(COUNT, lambda: [services[0].put_many(infos[i : i + GROUP]) for i in groups]),
        rate(COUNT, lambda: list(services[0])),
        rate(GROUP, lambda: [services[0].get(info.digest) for info in infos[:GROUP]]),
        rate(len(closure), lambda: put_closure(services[1], closure)),
        rate(COUNT, lambda: [services[1].get_many(leaves[i : i + GROUP]) for i in groups]),
        rate(len(closure), lambda: list(services[1].get_recursive(closure[-1].digest))),
    ]


def main() -> None:
    options = arguments(__doc__).parse_args()
    with workspace(options.dir) as folder, stores(folder) as opened:
        columns = {name: measure(store) for name, store in opened.items()}
    names = ("path infos in", "path infos listed", "path infos, one at a time")
    names += ("closure in", "Directories in groups", "closure out")
    rows = [(name, *(columns[each][i] for each in columns)) for i, name in enumerate(names)]
    table("Metadata", ("a second", *columns), rows)


if __name__ == "__main__":
    main()
