"""One commit for all that makes up a tree, where it goes to one embedded store."""

from __future__ import annotations

import contextlib

from neve.castore.blobs.base import BlobService
from neve.castore.directories.base import DirectoryService
from neve.store.nar_nodes import LocalNarNodes, NarNodes


def one_commit(
    blobs: BlobService, directories: DirectoryService, nar_nodes: NarNodes
) -> contextlib.AbstractContextManager[None]:
    """Within the block nothing of what this thread stores in these services has become durable or visible
    for certain; at its end everything has, by one commit instead of three.

    Where they do not all lie in one embedded store, each commits by itself, in the order in which it is
    called: nothing may be durable before what it refers to.
    """
    if isinstance(nar_nodes, LocalNarNodes):
        # Imported for those who have an embedded store only.
        from neve.castore.blobs.local import LocalBlobService
        from neve.castore.directories.local import LocalDirectoryService

        if isinstance(blobs, LocalBlobService) and isinstance(directories, LocalDirectoryService):
            store = nar_nodes.store
            if blobs.store is store and directories.store is store:
                return store.one_commit()
    return contextlib.nullcontext()
