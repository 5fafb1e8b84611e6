"""What path info services are opened with that need more than their address."""

from __future__ import annotations

from dataclasses import dataclass

from neve.castore.blobs.base import BlobService
from neve.castore.directories.base import DirectoryService
from neve.castore.directory import SizeRule
from neve.store.nar_nodes import NarNodes


@dataclass(frozen=True)
class PathInfoContext:
    """The services that path infos lie beside: where contents go that are fetched for them, and where those
    are that they tell of. Whoever opened them closes them, after the path infos."""

    blobs: BlobService
    directories: DirectoryService
    nar_nodes: NarNodes
    size_rule: SizeRule = SizeRule.EXACT
    netrc_file: str | None = None
    """The user's file of passwords, whether there is one or not."""
