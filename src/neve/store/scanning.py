"""Which store paths an imported content mentions: that is how the references of builds come about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from neve.nix.references import ReferenceScanner
from neve.nix.store_path import StorePath


class ReferenceScan:
    """Finds which of ``candidates`` a NAR mentions: in contents, names or targets of symlinks.

    Holds all candidates: about 500 bytes each. Of two with the same digest, the first counts. Not
    thread-safe.
    """

    def __init__(self, candidates: Iterable[StorePath]) -> None:
        self._candidates: dict[bytes, StorePath] = {}
        for path in candidates:
            self._candidates.setdefault(path.digest, path)
        self._scanner = ReferenceScanner(self._candidates)

    def feed(self, piece: bytes) -> None:
        """Looks at the next bytes of the NAR."""
        self._scanner.feed(piece)

    def passed(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The pieces of a NAR as they come, each looked at."""
        for piece in pieces:
            self._scanner.feed(piece)
            yield piece

    def found(self) -> tuple[StorePath, ...]:
        """The candidates that were mentioned so far."""
        return tuple(self._candidates[digest] for digest in self._scanner.found())
