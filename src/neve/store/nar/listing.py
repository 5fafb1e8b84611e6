"""The listing of a NAR, as Nix writes it with ``write-nar-listing``: JSON, made from the tree.

``{"version": 1, "root": NODE}``, where a node is ``{"type": "directory", "entries": {name: NODE}}``,
``{"type": "regular", "size": N, "executable": true, "narOffset": N}`` (``executable`` only if it is) or
``{"type": "symlink", "target": ...}``. ``narOffset`` is where the contents begin in the NAR.

JSON is text, and names and targets are bytes: what is no UTF-8 is written as Python reads and writes it
(``surrogateescape``: the byte 0xff as ``\\udcff``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from neve.castore.directories.base import DirectoryService
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.castore.traverse import Children, open_root
from neve.nix.nar import framing

_PIECE_CHARACTERS = 256 * 1024


def listing(directories: DirectoryService, root: Node) -> Iterator[bytes]:
    """The listing in pieces of about 256 KiB; holds one Directory for each level. Raises ``NotFound``."""
    parts: list[str] = []
    size = 0
    for part in _parts(directories, root):
        parts.append(part)
        size += len(part)
        if size >= _PIECE_CHARACTERS:
            yield "".join(parts).encode("ascii")
            parts, size = [], 0
    yield "".join(parts).encode("ascii")


def _parts(directories: DirectoryService, root: Node) -> Iterator[str]:
    yield '{"version":1,"root":'
    at = framing.MAGIC_SIZE
    if not isinstance(root, DirectoryNode):
        yield from (_leaf(root, at), "}")
        return
    yield _OPEN
    at += len(framing.DIRECTORY_OPEN)
    levels = [Children(directories, open_root(directories, root.digest))]
    comma = ""
    while levels:
        for name, node in levels[-1].entries:
            yield f"{comma}{_text(name)}:"
            at += len(framing.entry_open(name))
            if isinstance(node, DirectoryNode):
                yield _OPEN
                comma = ""
                at += len(framing.DIRECTORY_OPEN)
                levels.append(levels[-1].below(node))
                break
            yield _leaf(node, at)
            comma = ","
            at += _leaf_size(node) + len(framing.ENTRY_CLOSE)
        else:
            levels.pop()
            yield _CLOSE
            comma = ","
            at += len(framing.DIRECTORY_CLOSE) + len(framing.ENTRY_CLOSE)
    yield "}"


_OPEN = '{"type":"directory","entries":{'
_CLOSE = "}}"


def _text(data: bytes) -> str:
    return json.dumps(os.fsdecode(data))


def _leaf(node: FileNode | SymlinkNode, at: int) -> str:
    if isinstance(node, SymlinkNode):
        return f'{{"type":"symlink","target":{_text(node.target)}}}'
    executable = ',"executable":true' if node.executable else ""
    at += len(framing.file_head(node.size, node.executable))
    return f'{{"type":"regular","size":{node.size}{executable},"narOffset":{at}}}'


def _leaf_size(node: FileNode | SymlinkNode) -> int:
    if isinstance(node, SymlinkNode):
        return framing.symlink_size(len(node.target))
    return framing.file_size(node.size, node.executable)
