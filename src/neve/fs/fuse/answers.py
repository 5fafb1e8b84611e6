"""What is answered to each kind of request, but for listings.

Each method takes a request and returns the body of its reply. It raises ``Failed`` with the error that the
kernel is to see, ``NotAtHand`` if something must be fetched first (it is called again then), or the errors
of ``neve.errors``.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from neve.castore.digest import Digest, format_digest, format_snix_digest
from neve.castore.node import DirectoryNode, FileNode, Node, SymlinkNode
from neve.castore.path import MAX_NAME_BYTES
from neve.fs.fuse import protocol
from neve.fs.fuse.opcodes import CACHE_DIR, KEEP_CACHE
from neve.fs.fuse.protocol import Attributes, GetXattr, Lseek, Read
from neve.fs.fuse.request import Kernel, Parts, Request
from neve.fs.inodes import ROOT, DirectoryInode, Inode
from neve.fs.loads import Loads, Unasked
from neve.fs.tree import Listing, Tree
from neve.tree import WHOLE_FILE_LIMIT

MAX_READ_BYTES: Final = 1024 * 1024
"""Most that is read at once, and longest reply but for its header."""

_SENT_FROM = 12
"""So many files at least must be fetched ahead, that they are sent to the kernel: only if files have been
read in order for a while."""

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_TRUNC

FILE_MODE: Final = stat.S_IFREG | 0o444
EXECUTABLE_MODE: Final = stat.S_IFREG | 0o555
DIRECTORY_MODE: Final = stat.S_IFDIR | 0o555
SYMLINK_MODE: Final = stat.S_IFLNK | 0o777


@dataclass(frozen=True)
class SessionOptions:
    """What a file system shows, and what it takes."""

    threads: int = 16
    """Most calls of backends at once."""
    list_root: bool = False
    """Whether the root can be listed."""
    show_xattr: bool = True
    """Whether extended attributes tell digests."""


class Failed(Exception):  # noqa: N818 - for the kernel, not for us
    """A request is answered with an error, a number of ``errno``."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def inode_of(request: Request) -> Inode:
    """The inode that a request is about."""
    inode = request.kernel.inodes.get(request.header.node)
    if inode is None:
        raise Failed(errno.ESTALE)
    return inode


def directory_of(request: Request) -> DirectoryInode:
    """The directory that a request is about."""
    inode = inode_of(request)
    if not isinstance(inode, DirectoryInode):
        raise Failed(errno.ENOTDIR)
    return inode


def root_above(request: Request) -> Digest | None:
    """The root of the tree that the directory is in which a request is about; None for the root of all."""
    inodes = request.kernel.inodes
    inode = inodes.get(request.header.node)
    while isinstance(inode, DirectoryInode) and inode.parent != ROOT:
        inode = inodes.get(inode.parent)
    if not isinstance(inode, DirectoryInode):
        return None  # Forgotten meanwhile.
    return inode.digest or None


def file_of(request: Request) -> FileNode:
    """The file that a request is about."""
    inode = inode_of(request)
    if not isinstance(inode, FileNode):
        raise Failed(errno.EISDIR if isinstance(inode, DirectoryInode) else errno.EINVAL)
    return inode


def attributes(number: int, inode: Inode | DirectoryNode, children: int = 0) -> Attributes:
    """What stat(2) tells; ``children`` counts if only the node of a directory is known."""
    if isinstance(inode, FileNode):
        return Attributes(number, inode.size, EXECUTABLE_MODE if inode.executable else FILE_MODE)
    if isinstance(inode, SymlinkNode):
        return Attributes(number, len(inode.target), SYMLINK_MODE)
    size = inode.children if isinstance(inode, DirectoryInode) else children
    return Attributes(number, size, DIRECTORY_MODE)


class Answers:
    """Answers over one tree."""

    def __init__(self, tree: Tree, loads: Loads, options: SessionOptions) -> None:
        self._tree = tree
        self._loads = loads
        self._options = options

    def lookup(self, request: Request) -> Parts:
        """The entry of a directory, by name."""
        name: bytes = request.body
        if len(name) > MAX_NAME_BYTES:
            raise Failed(errno.ENAMETOOLONG)
        if name in (b".", b"..") or b"/" in name:
            raise Failed(errno.EINVAL)  # Only for NFS, which was not offered.
        parent = directory_of(request)
        node = self._node(request, parent, name)
        if node is None:
            # What the root has not may come; for ever is what a Directory has not.
            if request.header.node == ROOT:
                raise Failed(errno.ENOENT)
            return [protocol.encode_missing_entry()]
        children = 0
        if isinstance(node, DirectoryNode):
            if parent.parent == ROOT and request.header.node != ROOT:
                self._tree.read_ahead(parent.digest, self._loads)
            children = len(self.directory(node.digest, request))
        else:
            request.kernel.looks.looked_up(request.header.node, parent.parent)
        request.settle()
        (number,) = request.kernel.inodes.remember(request.header.node, [(name, node, children)])
        return [protocol.encode_entry(attributes(number, node, children))]

    def _node(self, request: Request, parent: DirectoryInode, name: bytes) -> Node | None:
        if request.header.node == ROOT:
            return self._tree.root(name, request.held)
        return self.directory(parent.digest, request).directory.get(name)

    def directory(self, digest: Digest, request: Request) -> Listing:
        """The Directory that a request is about, or one in it. Raises ``NotFound``."""
        return self._tree.directory(digest, request.held, functools.partial(root_above, request))

    def forget(self, request: Request) -> Parts:
        """The kernel has no use for an inode any more."""
        request.kernel.inodes.forget(request.header.node, request.body)
        return ()

    def batch_forget(self, request: Request) -> Parts:
        """The same for many."""
        for number, lookups in request.body:
            request.kernel.inodes.forget(number, lookups)
        return ()

    def getattr(self, request: Request) -> Parts:
        """What stat(2) tells."""
        return [protocol.encode_attributes(attributes(request.header.node, inode_of(request)))]

    def readlink(self, request: Request) -> Parts:
        """The target of a symlink."""
        inode = inode_of(request)
        if not isinstance(inode, SymlinkNode):
            raise Failed(errno.EINVAL)
        return [inode.target]

    def access(self, request: Request) -> Parts:
        """As access(2): the same for everybody."""
        inode = inode_of(request)
        if request.body & os.W_OK:
            raise Failed(errno.EROFS)
        if request.body & os.X_OK and isinstance(inode, FileNode) and not inode.executable:
            raise Failed(errno.EACCES)
        return ()

    # Files.

    def open(self, request: Request) -> Parts:
        """Nothing has to be done to open a file. A kernel that can do without asking is told so."""
        if request.body & _WRITE_FLAGS:
            raise Failed(errno.EROFS)
        file_of(request)
        if not request.kernel.opens_files:
            raise Failed(errno.ENOSYS)
        return [protocol.encode_opened(KEEP_CACHE)]

    def read(self, request: Request) -> Parts:
        """Contents of a file."""
        wanted: Read = request.body
        node = file_of(request)
        if wanted.size > MAX_READ_BYTES:
            raise Failed(errno.EINVAL)  # More than was agreed on.
        start, stop = wanted.offset, min(wanted.offset + wanted.size, node.size)
        if start >= stop:
            return ()
        if node.size > WHOLE_FILE_LIMIT:
            return self._tree.contents.large(node, start, stop, request.held, self._loads)
        data = self._small(request, node)
        return [data if stop - start == len(data) else memoryview(data)[start:stop]]

    def _small(self, request: Request, node: FileNode) -> bytes:
        """A small file, and those that were listed after it: they may be read after it too."""
        contents, kernel, number = self._tree.contents, request.kernel, request.header.node
        kernel.read_walks.read(number)
        data = kernel.being_sent.get(node.digest) or contents.small_at_hand(node)
        if data is not None:
            following = kernel.neighbours.used(number)
            if following is not None:
                files = list(kernel.inodes.files(*following))
                nodes = [file for _, file in files]
                contents.small_ahead(nodes, self._loads, _sending(kernel, files, following.middle))
            return data
        if not request.held:
            window = kernel.neighbours.missed(number)
            files = [file for file in kernel.inodes.files(*window) if file[0] != number]
            unasked = _sending(kernel, files, window.middle)
            raise contents.with_neighbours(node, [file for _, file in files], unasked)
        return contents.small(node, request.held)

    def lseek(self, request: Request) -> Parts:
        """Where data and holes are: all of a file is data."""
        wanted: Lseek = request.body
        node = file_of(request)
        if wanted.whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise Failed(errno.EINVAL)
        if wanted.offset >= node.size:
            raise Failed(errno.ENXIO)
        return [protocol.encode_lseek(wanted.offset if wanted.whence == os.SEEK_DATA else node.size)]

    def opendir(self, request: Request) -> Parts:
        """The root may be closed to listing. Of what is below, the kernel is told not to ask, and may keep
        the listings; that of the root never."""
        directory_of(request)
        if request.header.node == ROOT:
            self.check_root_listing()
            return [protocol.encode_opened(0)]
        if not request.kernel.opens_directories:
            raise Failed(errno.ENOSYS)
        return [protocol.encode_opened(KEEP_CACHE | CACHE_DIR)]

    def check_root_listing(self) -> None:
        """Raises ``Failed`` unless the root may be listed."""
        if not self._options.list_root:
            raise Failed(errno.EPERM)

    def done(self, request: Request) -> Parts:
        """There is nothing to be done."""
        return ()

    def flush(self, request: Request) -> Parts:
        """What is asked for at every close: there is nothing to be done, and no need to ask again."""
        raise Failed(errno.ENOSYS)

    def statfs(self, request: Request) -> Parts:
        """What statfs(2) tells."""
        return [protocol.encode_statfs(MAX_NAME_BYTES)]

    # Extended attributes.

    def getxattr(self, request: Request) -> Parts:
        """A digest, as text."""
        wanted: GetXattr = request.body
        value = self._xattrs(request).get(wanted.name)
        if value is None:
            raise Failed(errno.ENODATA)
        return _fitting(value, wanted.size)

    def listxattr(self, request: Request) -> Parts:
        """Names, each ended by a NUL."""
        return _fitting(b"".join(name + b"\0" for name in self._xattrs(request)), request.body)

    def _xattrs(self, request: Request) -> dict[bytes, bytes]:
        if not self._options.show_xattr:
            raise Failed(errno.ENOSYS)  # So that the kernel asks no more.
        inode = inode_of(request)
        if isinstance(inode, SymlinkNode) or not inode.digest:
            return {}
        kind = b"directory" if isinstance(inode, DirectoryInode) else b"blob"
        return {
            b"user.tvix.castore.%b.digest" % kind: format_digest(inode.digest).encode(),
            b"user.snix.castore.%b.digest" % kind: format_snix_digest(inode.digest).encode(),
        }


def _fitting(value: bytes, room: int) -> Parts:
    """A value, if there is room for it, or how much room it takes to who asks for that."""
    if not room:
        return [protocol.encode_xattr_size(len(value))]
    if len(value) > room:
        raise Failed(errno.ERANGE)
    return [value]


def _sending(kernel: Kernel, files: Sequence[tuple[int, FileNode]], middle: int) -> Unasked | None:
    """What becomes of files that are fetched ahead: they are sent to the kernel. Only the one from ``middle``
    on is not: when the kernel asks for it, it is time to fetch the next ones."""
    if kernel.send is None or len(files) < _SENT_FROM:
        return None
    numbers = {node: number for number, node in files}
    for number, node in files:
        if number >= middle and 0 < node.size <= WHOLE_FILE_LIMIT:
            del numbers[node]
            break

    def send_one(node: FileNode, data: bytes) -> None:
        number = numbers.get(node)
        if number is not None:
            kernel.store(number, node.digest, data)

    return send_one
