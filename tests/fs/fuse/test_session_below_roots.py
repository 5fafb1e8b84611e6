"""Directories that are found only by who has asked for the root of their tree: those of an object store, once
another process has to be asked that knows nothing of it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from neve.castore.directories.objectstore import ObjectDirectoryService
from neve.castore.node import DirectoryNode
from neve.fs import tree as tree_module
from neve.fs.fuse.opcodes import Opcode
from neve.fs.fuse.session import Session
from neve.store.services import Services, open_services
from tests.store.helpers import stored

from .asking import SECONDS, Asker
from .conftest import EVENTS, NAME, PATH, NewSession, put_path


class Forgetful:
    """A session that has room for no Directory, over services that forget what they were asked for."""

    def __init__(self, session: Session, services: Services) -> None:
        self.asker = Asker(session)
        self.services = services
        self._session = session

    def forget(self) -> None:
        assert self._session.wait_until_idle(SECONDS)  # It reads ahead.
        assert isinstance(self.services.directories, ObjectDirectoryService)
        self.services.directories._held.clear()


@pytest.fixture
def forgetful(
    tmp_path: Path, new_session: NewSession, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Forgetful]:
    monkeypatch.setattr(tree_module, "CACHED_ENTRIES", 1)
    url = f"objectstore+file://{tmp_path}"
    services = open_services("memory://", directory_service=url)
    with contextlib.closing(services):
        put_path(services, PATH, stored(services, EVENTS))
        session = new_session(services, threads=2)
        yield Forgetful(session, services)
        session.close()


def test_the_root_is_asked_for_again(forgetful: Forgetful) -> None:
    asker, forget = forgetful.asker, forgetful.forget
    sub = asker.walk(NAME, b"sub")
    forget()
    below = asker.lookup(b"sub", sub.node)
    asker.lookup(NAME)  # Now there is room for nothing else.
    forget()
    assert [one.name for one in asker.list(below.node)] == [b".", b"..", b"text"]
    asker.lookup(NAME)
    forget()
    text = asker.lookup(b"text", below.node)
    assert asker.read(text.node) == b"deep\n"
    asker.walk(NAME, b"empty")
    forget()
    root = asker.lookup(NAME)
    assert {one.name for one in asker.list(root.node, plus=True)} >= {b"bin", b"sub", b"file-199"}


def test_what_is_missing_there_too_is_missing(forgetful: Forgetful) -> None:
    asker, services = forgetful.asker, forgetful.services
    sub = asker.walk(NAME, b"sub")
    info = services.path_infos.get(PATH.digest)
    assert info is not None
    assert isinstance(info.node, DirectoryNode)
    assert services.directories.delete_many([info.node.digest]) == 1
    forgetful.forget()
    assert asker.error(Opcode.LOOKUP, sub.node, b"sub\0") == errno.EIO
