"""Claim: being a binary cache costs little more than having nginx send plain files.

``neve serve`` and nginx on this machine, over loopback, all in the page cache: the NAR of a kernel tree to
one client and to sixteen, ranges deep inside it, narinfos, transfers compressed with zstd, and ``nix copy``
of a closure of many paths from and to both. Needs curl, nginx, wrk and Nix.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from common import (
    NEVE,
    NIX,
    add_tree_argument,
    arguments,
    fresh,
    kernel_tree,
    median_of,
    need,
    neve,
    run,
    table,
    workspace,
)

MIB = 1024 * 1024
NGINX = """
{user}daemon off; worker_processes 2; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: Sequence[str | Path], port: int, log: Path) -> Iterator[int]:
    """A server, once it listens; its process."""
    with log.open("wb") as output:
        process = subprocess.Popen([str(c) for c in command], stdout=output, stderr=output)
    try:
        while True:
            if process.poll() is not None:
                sys.exit(log.read_text())
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@contextlib.contextmanager
def nginx(root: Path, folder: Path) -> Iterator[str]:
    """What nginx serves of ``root``."""
    port = free_port()
    configuration = folder / "nginx.conf"
    user = "" if os.geteuid() else "user root; "  # Else its workers could not read our folder.
    configuration.write_text(NGINX.format(user=user, folder=folder, port=port, root=root))
    with running(["nginx", "-c", configuration, "-p", folder], port, folder / "nginx.out"):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def serve(store: Path, folder: Path, *options: str) -> Iterator[tuple[str, int]]:
    """Our cache over the embedded store in ``store``: its address and its process."""
    port = free_port()
    command = [*NEVE, "serve", "-l", f"127.0.0.1:{port}", "--store", f"local://{store}", *options]
    with running(command, port, folder / "serve.log") as pid:
        yield f"http://127.0.0.1:{port}", pid


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url) as response:
        body: bytes = response.read()
        return body


def download_seconds(url: str, *options: str) -> float:
    """One curl, to nowhere."""
    command = ["curl", "-sSf", "-o", "/dev/null", "-w", "%{time_total}", *options, url]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def together_seconds(url: str, connections: int, *options: str) -> float:
    """Many curls at once, until the last one is done."""
    command = ["curl", "-sSf", "-o", "/dev/null", *options, url]
    started = time.perf_counter()
    processes = [subprocess.Popen(command) for _ in range(connections)]
    for process in processes:
        if process.wait():
            sys.exit(f"curl {url} failed")
    return time.perf_counter() - started


def nar_url(base: str, path: str) -> str:
    """Where the narinfo says that the NAR is."""
    digest = path.removeprefix("/nix/store/").partition("-")[0]
    lines = fetch(f"{base}/{digest}.narinfo").decode().splitlines()
    return f"{base}/" + next(line for line in lines if line.startswith("URL: ")).removeprefix("URL: ")


def measure_nar(tree: Path, large: Path, work: Path, runs: int) -> None:
    store, plain = work / "store", fresh(work / "plain")
    plain.mkdir()
    paths = {}
    for name, source in (("kernel", tree), ("large", large)):
        run(neve(store, "import", source), output=work / "path")
        paths[name] = (work / "path").read_text().strip()
        run(neve(store, "nar", "export", paths[name]), output=plain / f"{name}.nar")
    size = {name: (plain / f"{name}.nar").stat().st_size for name in paths}
    with nginx(plain, work) as theirs, serve(store, work, "--workers", "2") as (ours, _pid):
        urls = {name: nar_url(ours, path) for name, path in paths.items()}

        def rate(seconds: Callable[[], float], amount: int) -> float:
            seconds()
            return amount / median_of([seconds() for _ in range(runs)]) / 1e6

        nginx_one = rate(lambda: download_seconds(f"{theirs}/kernel.nar"), size["kernel"])
        one = rate(lambda: download_seconds(urls["kernel"]), size["kernel"])
        many = rate(lambda: together_seconds(urls["kernel"], 16), 16 * size["kernel"])
        zstd = ("-H", "Accept-Encoding: zstd")
        packed = rate(lambda: download_seconds(urls["kernel"], *zstd), size["kernel"])
        large_plain = rate(lambda: download_seconds(urls["large"]), size["large"])
        large_packed = rate(lambda: download_seconds(urls["large"], *zstd), size["large"])
        noise = random.Random(1)
        starts = []
        for _ in range(20):
            start = noise.randrange(size["kernel"] // 2, size["kernel"] - 1000)
            options = ("-r", f"{start}-{start + 999}")
            starts.append(download_seconds(urls["kernel"], *options) * 1000)
    table("NARs, MB/s of NAR (10^6 bytes)", ["what", "measured", "goal"], [
        ["nginx, the kernel tree's NAR as a file, 1 connection", nginx_one, "-"],
        ["neve, the same NAR, 1 connection", one, "-"],
        ["  ratio to nginx", one / nginx_one, "0.15"],
        ["neve, 16 connections together", many, "-"],
        ["  ratio to 1 connection", many / one, "1.00"],
        ["neve, kernel tree, Accept-Encoding: zstd", packed, "250"],
        ["neve, NAR of large files, plain", large_plain, "-"],
        ["neve, NAR of large files, Accept-Encoding: zstd", large_packed, "faster"],
        ["1,000 bytes deep in the NAR, ms", median_of(starts), "20"],
    ])  # fmt: skip


def measure_narinfo(paths: Sequence[str], store: Path, work: Path, seconds: int) -> None:
    need("wrk")
    digests = [path.removeprefix("/nix/store/").partition("-")[0] for path in paths]
    script = work / "paths.lua"
    script.write_text(
        f"local d = {{{', '.join(json.dumps(digest) for digest in digests)}}}\n"
        "local i = 0\n"
        'request = function() i = i % #d + 1; return wrk.format("GET", "/" .. d[i] .. ".narinfo") end\n'
    )
    with serve(store, work, "--workers", "2") as (ours, _pid):
        command = ["wrk", "-t2", "-c32", f"-d{seconds}s", "-s", str(script), ours]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = float(next(line for line in output.splitlines() if "Requests/sec" in line).split()[1])
    table("narinfos", ["what", "measured", "goal"], [["narinfos a second, two workers", found, "10000"]])


def add_paths(tree: Path, root: Path, count: int) -> list[str]:
    """Folders of the tree as store paths of a Nix store below ``root``."""
    store = ["--store", f"local?root={root}"]
    folders = sorted(p for p in tree.glob("*/*") if p.is_dir() and any(p.iterdir()))
    folders += sorted(p for p in tree.glob("drivers/*/*") if p.is_dir() and any(p.iterdir()))
    paths = []
    for number, folder in enumerate(folders[:count]):
        name = f"{number}-{folder.name}".replace("@", "-")
        add = [*NIX, *store, "store", "add-path", "--name", name, str(folder)]
        paths.append(subprocess.run(add, check=True, capture_output=True, text=True).stdout.strip())
    return paths


def nix_copy(paths: Sequence[str], source: str | None, target: str | None) -> float:
    command = [*NIX, "copy", "--no-check-sigs"]
    command += ["--from", source] if source else []
    command += ["--to", target] if target else []
    os.sync()
    started = time.perf_counter()
    run([*command, *paths])
    return time.perf_counter() - started


def nix_store(root: Path) -> str:
    return f"local?root={root}"


def push(paths: Sequence[str], root: Path, target: str) -> float:
    command = [*NIX, "--store", nix_store(root), "copy", "--no-check-sigs", "--to", target, *paths]
    os.sync()  # Who syncs must not have to wait for what others have left behind.
    return run(command).wall


def measure_copy(tree: Path, work: Path, runs: int, count: int) -> tuple[list[str], Path]:
    root = work / "nix"
    paths = add_paths(tree, root, count)
    store = work / "pushed"
    pushes: dict[str, list[float]] = {"neve": [], "file": []}
    pulls: dict[str, list[float]] = {"neve": [], "nginx": []}
    plain = work / "cache"
    for _ in range(runs):
        pushes["file"].append(push(paths, root, f"file://{fresh(plain)}?compression=none"))
        with serve(fresh(store), work, "--workers", "2", "--insecure-allow-upload") as (ours, _pid):
            os.environ["XDG_CACHE_HOME"] = str(fresh(work / "nix-cache"))
            pushes["neve"].append(push(paths, root, f"{ours}?compression=none"))
    with nginx(plain, work) as theirs, serve(store, work, "--workers", "2") as (ours, _pid):
        for _ in range(runs):
            for name, url in (("nginx", theirs), ("neve", ours)):
                os.environ["XDG_CACHE_HOME"] = str(fresh(work / "nix-cache"))
                pulls[name].append(nix_copy(paths, url, nix_store(fresh(work / "pulled"))))
    medians = {
        "pull, nginx": median_of(pulls["nginx"]),
        "pull, neve": median_of(pulls["neve"]),
        "push, file://": median_of(pushes["file"]),
        "push, neve": median_of(pushes["neve"]),
    }
    table(f"nix copy of {len(paths)} paths, seconds", ["what", "measured", "goal"], [
        *[[name, seconds, "-"] for name, seconds in medians.items()],
        ["pull, neve / nginx", medians["pull, neve"] / medians["pull, nginx"], "1.30"],
        ["push, neve / file://", medians["push, neve"] / medians["push, file://"], "3.00"],
    ])  # fmt: skip
    return paths, store


def memory_mib(pid: int) -> float:
    """What a process held at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measure_memory(tree: Path, work: Path, clients: int, size: int) -> None:
    """Slow clients: each takes, or sends, a few MiB and then waits for all others."""
    store = work / "store"
    run(neve(store, "import", tree), output=work / "path")
    path = (work / "path").read_text().strip()
    rows = []
    with serve(store, work, "--insecure-allow-upload") as (ours, pid):
        rows.append(["at rest, MiB", memory_mib(pid)])
        url = nar_url(ours, path)
        download_seconds(url)
        rows.append(["after one download, MiB", memory_mib(pid)])
        together_seconds(url, clients, "--limit-rate", "4M", "--max-time", "3600", "-r", f"0-{size}")
        rows.append([f"{clients} slow downloads at once, MiB", memory_mib(pid)])
        upload_together(ours, clients, size)
        rows.append([f"{clients} uploads at once, MiB", memory_mib(pid)])
    table("memory of the server, at most", ["what", "MiB"], rows)


def upload_together(base: str, clients: int, size: int) -> None:
    """Uploads of NARs of one file each, all open at once, from curls that send what is made for them."""
    import hashlib

    from neve.nix import base32

    def frame(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text + bytes(-len(text) % 8)

    def upload(number: int) -> None:
        contents = number.to_bytes(8, "little") + os.urandom(1 << 16) * (size >> 16)
        words = (b"nix-archive-1", b"(", b"type", b"regular", b"contents", contents, b")")
        nar = b"".join(map(frame, words))
        name = base32.encode(hashlib.sha256(nar).digest())
        curl = ["curl", "-sSf", "-T", "-", "-o", "/dev/null", f"{base}/nar/{name}.nar"]
        if subprocess.run(curl, input=nar, check=False).returncode:
            failed.append(number)

    failed: list[int] = []
    threads = [threading.Thread(target=upload, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        sys.exit(f"{len(failed)} uploads failed")


def large_files(folder: Path) -> Path:
    """A folder of a few large files that compress like programs do."""
    folder.mkdir()
    block = b"".join(base64.b85encode(os.urandom(40)) * 3 for _ in range(8000))
    for number in range(4):
        with (folder / f"{number}.bin").open("wb") as file:
            for i in range(128):
                file.write(bytes([number, i]) + block)
    return folder


def main() -> None:
    parser = arguments(__doc__ or "")
    add_tree_argument(parser)
    parser.add_argument("--paths", type=int, default=200, help="paths of the closure (default 200)")
    parser.add_argument("--seconds", type=int, default=8, help="how long narinfos are asked for (default 8)")
    parser.add_argument("--clients", type=int, default=200, help="clients at once (default 200)")
    parser.add_argument("--only", choices=["nar", "copy", "memory"], help="one part only")
    args = parser.parse_args()
    need("curl", "nginx", "nix", "wrk")
    with workspace(args.dir) as work:
        measure(args, kernel_tree(args.tree, work), work)


def measure(args: argparse.Namespace, tree: Path, work: Path) -> None:
    if args.only in (None, "nar"):
        measure_nar(tree, large_files(work / "large"), work, args.runs)
        shutil.rmtree(work / "plain")
    if args.only in (None, "copy"):
        paths, store = measure_copy(tree, work, args.runs, args.paths)
        measure_narinfo(paths, store, work, args.seconds)
    if args.only in (None, "memory"):
        measure_memory(tree, work, args.clients, 16 * MIB)


if __name__ == "__main__":
    main()
