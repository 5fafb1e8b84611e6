"""Closures of store paths: those in a store, and those that Nix describes."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping, Sequence

from neve.castore.node import Node
from neve.errors import InvalidRequest, NotFound
from neve.nix.export_graph import ExportedPath
from neve.nix.hashes import CAHash, CAType
from neve.nix.store_path import StorePath, content_addressed_path
from neve.store.path_info import NarDetails, PathInfo, sorted_references
from neve.store.pathinfos.base import PathInfoService, path_not_found

Graph = Mapping[StorePath, Sequence[StorePath]]
"""What each path refers to."""


def closure_of(path_infos: PathInfoService, digests: Iterable[bytes]) -> list[bytes]:
    """The digests of the stored paths with these digests and of all that they refer to, each once.

    Raises ``NotFound`` for one that is not stored, naming a path that refers to it.
    """
    found: dict[bytes, None] = {}
    pending = [(digest, "") for digest in digests]
    while pending:
        digest, referrer = pending.pop()
        if digest in found:
            continue
        path_info = path_infos.get(digest)
        if path_info is None:
            error = path_not_found(digest)
            raise NotFound(f"{error}, to which {referrer} refers") if referrer else error
        found[digest] = None
        pending += [(reference, path_info.store_path.absolute) for reference in path_info.references]
    return list(found)


def dependencies(entries: Iterable[ExportedPath]) -> Graph:
    """Which of ``entries`` each of them refers to, itself left out."""
    entries = tuple(entries)
    listed = {entry.path for entry in entries}
    return {
        entry.path: [path for path in entry.references if path in listed and path != entry.path]
        for entry in entries
    }


def sorted_paths(graph: Graph) -> list[StorePath]:
    """The paths, each after those that it refers to. Raises ``InvalidRequest`` for a cycle."""
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        cycle = " -> ".join(path.base_name for path in reversed(error.args[1]))
        raise InvalidRequest(f"store paths refer to each other in a circle: {cycle}") from error


def inverted(graph: Graph) -> dict[StorePath, list[StorePath]]:
    """Who refers to each path."""
    referrers: dict[StorePath, list[StorePath]] = {}
    for path, references in graph.items():
        for reference in references:
            referrers.setdefault(reference, []).append(path)
    return referrers


def check_content_address(entry: ExportedPath) -> None:
    """Raises ``InvalidRequest`` if an entry's ``ca`` does not give its store path, or not its NAR."""
    check_address_of(entry.path, entry.references, entry.nar_sha256, entry.ca)


def check_address_of(
    path: StorePath, references: Sequence[StorePath], nar_sha256: bytes, ca: CAHash | None
) -> None:
    """Raises ``InvalidRequest`` if a content address does not give the store path, or not the NAR.

    What a flat file or a NAR with a self reference hashes to is not looked at.
    """
    if ca is None:
        return
    others = [reference for reference in references if reference != path]
    refers_to_itself = len(others) < len(references)
    computed = content_addressed_path(path.name, ca, others, self_reference=refers_to_itself, strict=False)
    if computed != path:
        raise InvalidRequest(f"its content address {ca} belongs to {computed}")
    if ca.type is CAType.NAR_SHA256 and not refers_to_itself and ca.digest != nar_sha256:
        raise InvalidRequest(f"its content address {ca} is not the hash of its NAR")


def path_info_of(entry: ExportedPath, node: Node) -> PathInfo:
    """What is registered for an entry whose contents are ``node``."""
    references = sorted_references(entry.references)
    details = NarDetails(
        size=entry.nar_size,
        sha256=entry.nar_sha256,
        reference_names=references,
        signatures=entry.signatures,
        deriver=entry.deriver,
        ca=entry.ca,
    )
    return PathInfo(entry.path, node, tuple(path.digest for path in references), details)
