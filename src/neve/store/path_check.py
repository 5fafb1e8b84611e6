"""What of a store is whole: path infos followed to the last blob, and which of them a bad object breaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from neve.castore.digest import Digest, b3_digest, format_digest
from neve.castore.directory import Directory
from neve.castore.node import DirectoryNode, FileNode, Node
from neve.castore.traverse import find_below
from neve.errors import NeveError, NotFound
from neve.store.gc.digest_set import DigestSet
from neve.store.path_info import PathInfo
from neve.store.services import Services
from neve.telemetry import Progress
from neve.tree import WHOLE_FILE_LIMIT

_SHOWN_PATHS = 10
_MISSING = "is missing"

_SETTLED_AT_ONCE = 1000
"""Files, and Directories, that are asked for together: a look into the index costs as much as ten of them."""


_NOTHING: frozenset[Digest] = frozenset()


class _Below:
    """What is bad at or below Directories that were looked at. Most are whole, and take 30 bytes each."""

    def __init__(self) -> None:
        self._whole = DigestSet()
        self._bad: dict[Digest, frozenset[Digest]] = {}

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._bad or digest in self._whole

    def add(self, found: Mapping[Digest, frozenset[Digest]]) -> None:
        """What is bad at or below Directories that are new."""
        self._bad |= {digest: bad for digest, bad in found.items() if bad}
        self._whole.add_new([digest for digest, bad in found.items() if not bad])

    def __getitem__(self, digest: Digest) -> frozenset[Digest]:
        return self._bad.get(digest, _NOTHING)


class PathCheck:
    """Follows path infos into the store and collects which of them each bad object breaks."""

    def __init__(self, services: Services, damaged: dict[Digest, str], progress: Progress) -> None:
        self._services = services
        self._progress = progress
        self._what = dict(damaged)
        self._read_blobs = services.packs is None
        self._below = _Below()
        self._pending: dict[Digest, Directory] = {}
        """Directories that were looked at, those below them first; of their files nothing is known yet."""
        self._pending_files = 0
        self._read = DigestSet()
        """Blobs that were read and are whole, by digest and size."""
        self._broken: dict[Digest, list[str]] = {digest: [] for digest in damaged}
        self._lacking: dict[Digest, list[bytes]] = {}
        """The paths that lack each object that is missing."""
        self.kinds: dict[Digest, str] = {}
        """What was found bad: a blob, chunk or Directory."""
        self.count = 0

    def check(self, path_info: PathInfo) -> None:
        """Follows one."""
        self.count += 1
        for digest in self._node(path_info.node):
            self._broken.setdefault(digest, []).append(path_info.store_path.absolute)
            if self._what[digest].endswith(_MISSING):
                self._lacking.setdefault(digest, []).append(path_info.digest)

    def lacking(self) -> list[bytes]:
        """The digests of the paths of which something is missing."""
        return list(dict.fromkeys(chain.from_iterable(self._lacking.values())))

    def problems(self, *, absences: bool) -> Iterator[str]:
        """A line for each object that is missing, or each other bad one, with the paths that it breaks."""
        for digest, paths in self._broken.items():
            if (digest in self._lacking) != absences:
                continue
            kind = self.kinds.get(digest, "object")
            shown = ", ".join(paths[:_SHOWN_PATHS])
            more = f" and {len(paths) - _SHOWN_PATHS} more" if len(paths) > _SHOWN_PATHS else ""
            breaks = f"; breaks {shown}{more}" if paths else "; breaks no store path"
            yield f"{kind} {format_digest(digest)}: {self._what[digest]}{breaks}"

    def _note(self, digest: Digest, kind: str, what: str) -> frozenset[Digest]:
        self._what.setdefault(digest, what)
        self.kinds.setdefault(digest, kind)
        return frozenset((digest,))

    def _node(self, node: Node) -> frozenset[Digest]:
        if isinstance(node, FileNode):
            return self._files([node], self._absent([node]))
        if isinstance(node, DirectoryNode):
            return self._directory(node.digest)
        return _NOTHING

    def _directory(self, root: Digest) -> frozenset[Digest]:
        """What is bad at or below a Directory; children first, without recursion."""
        stack: list[tuple[Digest, Directory, list[Digest]]] = []
        self._push(stack, root, root)
        while stack:
            digest, directory, children = stack[-1]
            while children and self._is_known(children[-1]):
                children.pop()
            if children:
                self._push(stack, root, children.pop())
                continue
            stack.pop()
            self._pend(digest, directory)
        self._settle()
        return self._below[root]

    def _is_known(self, digest: Digest) -> bool:
        return digest in self._pending or digest in self._below

    def _pend(self, digest: Digest, directory: Directory) -> None:
        self._pending[digest] = directory
        self._pending_files += len(directory)
        if self._pending_files >= _SETTLED_AT_ONCE or len(self._pending) >= _SETTLED_AT_ONCE:
            self._settle()

    def _settle(self) -> None:
        """Finds out what is bad in those that are pending, in order: what is below is settled before."""
        files = {
            digest: [node for _, node in directory if isinstance(node, FileNode)]
            for digest, directory in self._pending.items()
        }
        absent = self._absent(list(chain.from_iterable(files.values())))
        found: dict[Digest, frozenset[Digest]] = {}
        for digest, directory in self._pending.items():
            bad = self._files(files[digest], absent)
            found[digest] = self._bad_in(digest, directory, bad, found)
        self._below.add(found)
        self._pending = {}
        self._pending_files = 0

    def _push(
        self, stack: list[tuple[Digest, Directory, list[Digest]]], root: Digest, digest: Digest
    ) -> None:
        if self._is_known(digest):
            return
        self._progress.advance(0)
        try:
            directory = find_below(self._services.directories, root, digest)
            what = _MISSING
        except NeveError as error:
            directory, what = None, str(error)
        if directory is None:
            self._below.add({digest: self._note(digest, "Directory", what)})
        else:
            stack.append((digest, directory, [child.digest for _, child in directory.directories()]))

    def _bad_in(
        self,
        digest: Digest,
        directory: Directory,
        bad: frozenset[Digest],
        found: Mapping[Digest, frozenset[Digest]],
    ) -> frozenset[Digest]:
        """Of its files it is known what is ``bad``, of what is below it that is ``found``, or was before."""
        if digest in self._what:
            bad |= self._note(digest, "Directory", self._what[digest])
        for _, child in directory.directories() if self._what else ():
            bad |= found.get(child.digest) or self._below[child.digest]
        return bad or _NOTHING

    def _absent(self, nodes: Sequence[FileNode]) -> frozenset[Digest]:
        """Which of the files' contents are not there, as far as that can be asked."""
        # What is read shows by that whether it is there; and asking may keep it fresh (``castore.ages``).
        wanted = [] if self._read_blobs else list(dict.fromkeys([node.digest for node in nodes]))
        bad: set[Digest] = set()
        try:
            for digest in self._services.blobs.missing(wanted):
                bad |= self._note(digest, "blob", _MISSING)
        except NeveError:
            # One bad entry hides the rest of the answer: ask one by one.
            for digest in wanted:
                bad |= self._one_blob(digest)
        return frozenset(bad)

    def _files(self, nodes: Sequence[FileNode], absent: frozenset[Digest]) -> frozenset[Digest]:
        bad = _NOTHING
        if not self._what and not self._read_blobs:  # Nothing is wrong with the others.
            nodes = [node for node in nodes if node.size > WHOLE_FILE_LIMIT]
        for node in nodes:
            if node.digest in absent:
                bad |= {node.digest}
            elif node.digest in self._what:
                bad |= self._note(node.digest, "blob", self._what[node.digest])
            elif self._read_blobs or node.size > WHOLE_FILE_LIMIT:
                bad |= self._contents_once(node)
        return bad

    def _one_blob(self, digest: Digest) -> frozenset[Digest]:
        try:
            return _NOTHING if self._services.blobs.has(digest) else self._note(digest, "blob", _MISSING)
        except NeveError as error:
            return self._note(digest, "blob", str(error))

    def _contents_once(self, node: FileNode) -> frozenset[Digest]:
        """What ``_contents`` gives; of what is whole that is not asked again."""
        key = b3_digest(node.digest + node.size.to_bytes(8, "little"))
        if key in self._read:
            return _NOTHING
        if not (bad := self._contents(node)):
            self._read.add_new([key])
        return bad

    def _contents(self, node: FileNode) -> frozenset[Digest]:
        """Checks the chunks of a large blob, or reads it where nothing was re-hashed before."""
        blobs = self._services.blobs
        try:
            if self._read_blobs:
                size = 0
                for piece in blobs.stream(node.digest):
                    size += len(piece)
                    self._progress.advance(len(piece))
            else:
                chunks = blobs.chunks(node.digest) or []
                size = sum(chunk.size for chunk in chunks)
                digests = list(dict.fromkeys(chunk.digest for chunk in chunks))
                missing = set(blobs.missing(digests))
                if bad := [digest for digest in digests if digest in self._what or digest in missing]:
                    return self._bad_chunks(node, bad)
        except NotFound as error:
            return self._note(node.digest, "blob", _MISSING if self._read_blobs else str(error))
        except NeveError as error:
            return self._note(node.digest, "blob", str(error))
        if size != node.size:
            return self._note(node.digest, "blob", f"has {size} bytes, its node says {node.size}")
        return _NOTHING

    def _bad_chunks(self, node: FileNode, bad: list[Digest]) -> frozenset[Digest]:
        """What is damaged or missing of a large blob breaks it, and the paths that it breaks."""
        chunks = frozenset[Digest]().union(*[self._note(digest, "chunk", _MISSING) for digest in bad])
        what = f"its chunk {format_digest(bad[0])}: {self._what[bad[0]]}"
        return chunks | self._note(node.digest, "blob", what)
