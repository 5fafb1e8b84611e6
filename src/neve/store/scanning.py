"""Which store paths an imported content mentions: that is how the references of builds come about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from neve.nix.nar.writer import NarEncoder
from neve.nix.references import ReferenceScanner
from neve.nix.store_path import StorePath
from neve.tree import Event


class ReferenceScan:
    """Finds which of ``candidates`` a content mentions. Not thread-safe.

    It takes either the events of a tree, as a sink, or the pieces of a NAR. Holds all candidates: about
    500 bytes each. Of two with the same digest, the first counts.
    """

    def __init__(self, candidates: Iterable[StorePath]) -> None:
        self._candidates: dict[bytes, StorePath] = {}
        for path in candidates:
            self._candidates.setdefault(path.digest, path)
        self._scanner = ReferenceScanner(self._candidates)
        self._encoder = NarEncoder()

    def feed(self, events: Sequence[Event]) -> None:
        """Looks at the next events of a tree. Raises NarTreeError."""
        # As a NAR, which is what Nix looks at: names and targets of symlinks count like contents.
        self._scanner.feed(b"".join(self._encoder.encode(events)))

    def passed(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The pieces of a NAR as they come, each looked at."""
        for piece in pieces:
            self._scanner.feed(piece)
            yield piece

    def found(self) -> tuple[StorePath, ...]:
        """The candidates that were mentioned."""
        return tuple(self._candidates[digest] for digest in self._scanner.found())
