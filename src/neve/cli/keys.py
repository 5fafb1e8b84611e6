"""Keys and signatures: ``key generate``, ``key public``, ``sign``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from neve.cli import output
from neve.cli.failures import tell
from neve.cli.ingest import BYTES_PATH, opened_input
from neve.cli.options import STORE_PATH, StoreOptions, store_options
from neve.cli.progress import progress_bar, result_lines
from neve.errors import NeveError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from neve.library import Store
    from neve.nix.signing import SecretKey
    from neve.nix.store_path import StorePath


@click.command("generate", short_help="Make a new secret key.")
@click.argument("name")
@click.option(
    "--output", "file", metavar="FILE", type=BYTES_PATH, help="Write it to a new file that only you can read."
)
def key_generate(name: str, file: bytes | None) -> None:
    """Make a new secret key called NAME; write it to stdout, or to a FILE that does not exist yet.

    The key is what 'nix key generate-secret' makes; Nix can sign with it too. Name it after the cache and a
    number, so that it can be replaced one day.

    \b
    Example:
      neve key generate cache.example.org-1 --output secret.key
    """
    from neve.nix.signing import SecretKey

    key = SecretKey.generate(name)
    if file is None:
        output.line(key.render())
    else:
        from neve.store.signing import write_secret_key

        write_secret_key(key, file)


@click.command("public", short_help="Tell the public key that belongs to a secret one.")
@click.argument("file", default="-", type=BYTES_PATH)
def key_public(file: bytes) -> None:
    """Write the public key for the secret key in FILE or on stdin.

    It is what 'trusted-public-keys' in nix.conf takes.

    \b
    Example:
      neve key public secret.key
    """
    from neve.store.signing import MAX_KEY_FILE_BYTES, parse_secret_key, read_secret_key

    if file != b"-":
        key = read_secret_key(file)
    else:
        with opened_input(file, "a secret key") as stream:
            key = parse_secret_key(stream.read(MAX_KEY_FILE_BYTES + 1))
    output.line(key.public_key().render())


@click.command(short_help="Sign store paths.")
@click.argument("paths", metavar="[STORE_PATH]...", nargs=-1, type=STORE_PATH)
@click.option(
    "--key",
    "keys",
    metavar="FILE",
    multiple=True,
    required=True,
    type=BYTES_PATH,
    help="The secret key. Can be repeated.",
)
@click.option("--recursive", is_flag=True, help="Also what they refer to.")
@click.option("--all", "sign_all", is_flag=True, help="Everything in the store.")
@store_options
def sign(
    store: StoreOptions,
    paths: tuple[StorePath, ...],
    keys: tuple[bytes, ...],
    recursive: bool,
    sign_all: bool,
) -> None:
    """Sign store paths; print each that carries the signature then.

    What is signed is the hash of the NAR as it is computed here; a path whose path info states another is
    refused. A path that is signed with the key already is left as it is.

    \b
    Example:
      neve sign --key secret.key --recursive /nix/store/...-hello
      neve sign --key secret.key --all
    """
    if sign_all == bool(paths):
        raise click.UsageError("give the store paths to sign, or --all")
    from neve.store.signing import read_secret_keys

    secret = read_secret_keys(keys)
    with store.open() as opened:  # Which makes no store where there is none.
        digests = _selected(opened, paths, recursive=recursive)
    with store.open(write=True) as opened:
        sign_paths(opened, digests, secret)


def _selected(store: Store, paths: Sequence[StorePath], *, recursive: bool) -> list[bytes]:
    """The digests of what is to be signed; of everything if there are no ``paths``."""
    from neve.store.closures import closure_of

    if not paths:
        # Not while the listing is open: a server does not wait for a slow reader.
        return [path_info.digest for path_info in store.path_infos]
    digests = [store.path_info(path).digest for path in paths]
    return closure_of(store.path_infos, digests) if recursive else list(dict.fromkeys(digests))


def sign_paths(store: Store, digests: Sequence[bytes], keys: Sequence[SecretKey]) -> None:
    """Signs one after the other and prints each; those that fail are told in the end."""
    from neve.store.signing import sign_many

    failures: list[NeveError] = []
    with result_lines() as write, progress_bar("signing") as progress:
        progress.start(len(digests))
        for result in sign_many(store.services, digests, keys):
            if isinstance(result, NeveError):
                failures.append(result)
                progress.advance(1)
                continue
            write(result.store_path.absolute)
            progress.advance(1, result.store_path.name)
    tell(failures, f"{len(failures)} of {len(digests)} store paths were not signed")
