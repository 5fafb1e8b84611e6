from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from neve.castore.node import Node
from neve.fs.fuse.session import Session, SessionOptions
from neve.fs.tree import Tree
from neve.nix.store_path import StorePath
from neve.store.path_info import PathInfo
from neve.store.root_nodes import PathInfoRoots
from neve.store.services import Services
from neve.tree import LEAVE_DIRECTORY, EnterDirectory, Event, File, Symlink
from tests.store.helpers import memory_services, stored

PATH = StorePath(bytes(range(20)), "tree")
NAME = PATH.base_name.encode()

EVENTS: list[Event] = [
    EnterDirectory(b""),
    EnterDirectory(b"bin"),
    Symlink(b"alias", b"run"),
    File(b"run", True, b"#!/bin/sh\n"),
    LEAVE_DIRECTORY,
    EnterDirectory(b"empty"),
    LEAVE_DIRECTORY,
    *(File(b"file-%03d" % number, False, b"%d" % number * 100) for number in range(200)),
    File(b"na\xffme", False, b""),
    EnterDirectory(b"sub"),
    EnterDirectory(b"sub"),
    File(b"text", False, b"deep\n"),
    LEAVE_DIRECTORY,
    LEAVE_DIRECTORY,
    File(b"text", False, b"Hello\n"),
    LEAVE_DIRECTORY,
]

NewSession: TypeAlias = Callable[..., Session]


def put_path(services: Services, path: StorePath, node: Node) -> None:
    services.path_infos.put(PathInfo(path, node))


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    """A store with one tree; module-wide, so nothing is to be added."""
    services = memory_services()
    put_path(services, PATH, stored(services, EVENTS))
    yield services
    services.close()


@pytest.fixture(scope="module")
def new_session(services: Services) -> NewSession:
    def make(of: Services | None = None, **options: Any) -> Session:
        of = services if of is None else of
        tree = Tree(of.blobs, of.directories, PathInfoRoots(of.path_infos))
        return Session(tree, SessionOptions(**options))

    return make
