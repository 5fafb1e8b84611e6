"""Claim: whoever has an import traced waits at most 5 % longer; who does not, not at all.

An import of a kernel source tree into a fresh store, without a collector, with one that takes every span, and
with one that does not answer. In turns, all with the tree in the page cache.
"""

from __future__ import annotations

import contextlib
import os
import threading
import timeit
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from common import (
    Run,
    add_tree_argument,
    arguments,
    fresh,
    kernel_tree,
    median,
    need,
    neve,
    run,
    table,
    warm,
    workspace,
)

from neve import telemetry

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_CALLS = 100_000


class _Collector(BaseHTTPRequestHandler):
    """Takes everything, and looks at nothing."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@contextlib.contextmanager
def collector() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def nanoseconds(statement: str) -> float:
    """What one execution takes, with nobody to tell."""
    return min(timeit.repeat(statement, globals={"telemetry": telemetry}, number=_CALLS)) / _CALLS * 1e9


def main() -> None:
    parser = arguments(__doc__ or "")
    add_tree_argument(parser)
    args = parser.parse_args()
    need("nix-hash")
    results: dict[str, list[Run]] = {"off": [], "on": [], "nobody": []}
    with workspace(args.dir) as work, collector() as url:
        tree = kernel_tree(args.tree, work)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        warm(tree)
        for _ in range(args.runs):
            for name, endpoint in (("off", ""), ("on", url), ("nobody", "http://127.0.0.1:9")):
                os.environ[_ENDPOINT] = endpoint
                results[name].append(run(neve(fresh(work / "store"), "import", tree)))
    off, on, nobody = (median(results[name]) for name in ("off", "on", "nobody"))
    table(
        f"import of {tree.name}, seconds (median)",
        ["what", "wall", "cpu", "peak MiB"],
        [["without traces", *off], ["with traces", *on], ["with traces that nobody takes", *nobody]],
    )
    table(
        "ratios",
        ["what", "ratio", "goal"],
        [
            ["with / without traces, wall", on.wall / off.wall, "1.05"],
            ["with / without traces, cpu", on.cpu / off.cpu, "1.05"],
            ["with traces that nobody takes / without", nobody.wall / off.wall, "reported"],
        ],
    )
    table(
        "with nobody to tell, nanoseconds",
        ["what", "each"],
        [
            ["with telemetry.span(...)", nanoseconds("with telemetry.span('a'): pass")],
            ["telemetry.count(...)", nanoseconds("telemetry.count('blobs_new', 1)")],
        ],
    )


if __name__ == "__main__":
    main()
