"""Claim: scanning a NAR for references keeps up with rendering it, however many candidates there are.

Against: sha256 of the same bytes in this process, ``nix-store --dump`` of a file with them, and our own
rendering of the NAR from a store. Rates in MB/s of one thread; ratios are scanning / the other. What a new
scanner costs before the first byte is told apart.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from common import arguments, median_of, need, table, workspace

import neve as neve_library
from neve.nix import base32
from neve.nix.references import ReferenceScanner

PIECE = 1024 * 1024


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--mib", type=int, default=64, help="MiB of each kind of content (default 64)")
    parser.add_argument(
        "--candidates", type=int, nargs="+", default=[10, 1000, 10_000, 50_000], help="how many candidates"
    )
    args = parser.parse_args()
    need("nix-store")
    contents = {kind: pieces[: args.mib] for kind, pieces in kinds(args.mib).items()}
    rows: list[list[object]] = []
    ratios: list[list[object]] = []
    with workspace(args.dir) as work:
        for kind, pieces in contents.items():
            size = sum(map(len, pieces)) / 1e6
            hashed = size / seconds_of(args.runs, lambda pieces=pieces: hash_all(pieces))
            dumped, rendered = others(work, kind, pieces, args.runs)
            rates = [size / seconds_of(args.runs, scanning(count, pieces)) for count in args.candidates]
            rows.append([kind, hashed, dumped, rendered, *rates])
            ratios.append([kind, *(f"{rates[1] / other:.2f}" for other in (hashed, dumped, rendered))])
    counts = [f"{count} candidates" for count in args.candidates]
    cells = [[kind, *(f"{rate:.0f}" for rate in rates)] for kind, *rates in rows]
    starts = [
        [kind, *(seconds_of(args.runs, beginning(count, contents[kind][0])) for count in args.candidates)]
        for kind in ("text", "alphabet only")
    ]
    table("MB/s", ["contents", "sha256", "nix-store --dump", "neve rendering", *counts], cells)
    table(
        f"ratios, {args.candidates[1]} candidates", ["contents", "/ sha256", "/ dump", "/ rendering"], ratios
    )
    table("a new scanner and the first MiB, seconds", ["contents", *counts], starts)


def kinds(mib: int) -> dict[str, list[bytes]]:
    """Contents of each kind, in pieces of 1 MiB."""
    numbers = random.Random(5)
    alphabet = bytes(base32.ALPHABET.encode()[byte % 32] for byte in range(256))

    def hashes() -> bytes:
        return b"".join(
            b"/nix/store/%b-name-1.0\n" % base32.encode(numbers.randbytes(20)).encode()
            for _ in range(PIECE // 52)
        )

    return {
        "text": gathered(Path(sys.base_prefix).glob("lib/python3*/**/*.py"), mib),
        "programs": gathered(sorted(Path("/usr/bin").iterdir(), key=lambda path: path.name), mib),
        "noise": [numbers.randbytes(PIECE) for _ in range(mib)],
        "hex dump": [numbers.randbytes(PIECE // 2).hex().encode() for _ in range(mib)],
        "hashes of others": [hashes() for _ in range(mib)],
        "alphabet only": [numbers.randbytes(PIECE).translate(alphabet) for _ in range(mib)],
    }


def gathered(files: Iterable[Path], mib: int) -> list[bytes]:
    """The first ``mib`` MiB of what is in ``files``, repeated if that is less."""
    data = bytearray()
    for file in files:
        if file.is_file():
            data += file.read_bytes()
        if len(data) >= mib * PIECE:
            break
    if not data:
        sys.exit("this machine has no files of the kind that is to be scanned")
    data *= -(-mib * PIECE // len(data))
    return [bytes(data[start : start + PIECE]) for start in range(0, mib * PIECE, PIECE)]


def scanning(candidates: int, pieces: list[bytes]) -> Callable[[], None]:
    scanner = ReferenceScanner(digests(candidates))
    scanner.feed(pieces[0])  # What it makes once it needs it is there before anyone measures.

    def scan() -> None:
        for piece in pieces:
            scanner.feed(piece)
        assert not scanner.found()

    return scan


def digests(candidates: int) -> list[bytes]:
    numbers = random.Random(6)
    return [numbers.randbytes(20) for _ in range(candidates)]


def beginning(candidates: int, piece: bytes) -> Callable[[], None]:
    """Makes a scanner and lets it look at one piece."""
    some = digests(candidates)
    return lambda: ReferenceScanner(some).feed(piece)


def hash_all(pieces: list[bytes]) -> None:
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)


def others(work: Path, kind: str, pieces: list[bytes], runs: int) -> tuple[float, float]:
    """Rates of ``nix-store --dump`` and of our rendering, of a file with these contents."""
    file, size = work / kind.replace(" ", "-"), sum(map(len, pieces)) / 1e6
    file.write_bytes(b"".join(pieces))
    command = ["nix-store", "--dump", str(file)]
    dumped = seconds_of(runs, lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    with neve_library.open(f"local://{work}/store") as store:
        path = store.import_path(file).store_path
        rendered = seconds_of(runs, lambda: sum(map(len, store.nar(path))))
    file.unlink()
    return size / dumped, size / rendered


def seconds_of(runs: int, action: Callable[[], object]) -> float:
    """The median of the seconds that ``action`` takes."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return median_of(seconds)


if __name__ == "__main__":
    main()
