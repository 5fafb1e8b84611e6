"""What the address of a binary cache says: where it is, who is believed, how to deal with it."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from neve.errors import InvalidRequest, Unsupported
from neve.nix.signing import PublicKey
from neve.registry import Address
from neve.store.substitute.credentials import NIX_NETRC, Credentials, basic, netrc_files, token_file
from neve.store.substitute.files import CacheFiles
from neve.store.substitute.folder import FolderCache

PARAMETERS = ("trusted-public-keys",)
HTTP_PARAMETERS = (*PARAMETERS, "netrc-file", "token-file", "ca", "timeout", "attempts")

_SCHEMES = {"nix+http": "http", "nix+https": "https"}
_MAX_ATTEMPTS = 100


def open_files(address: Address, netrc_file: str | None) -> CacheFiles:
    """The files of the cache at an address; of those, nothing is read yet.

    ``netrc_file`` is where passwords may be, beside where Nix has them. Raises ``InvalidRequest``, and
    ``PermissionDenied`` if credentials may not be read.
    """
    if address.scheme == "nix+file":
        address.check_parameters(*PARAMETERS)
        if address.host:
            raise address.refuse("a folder has no host; write nix+file:///folder")
        if not address.path.strip("/"):
            raise address.refuse("the folder is missing; write nix+file:///folder")
        return FolderCache(address.path)
    address.check_parameters(*HTTP_PARAMETERS)
    return _open_http(address, netrc_file)


def _open_http(address: Address, netrc_file: str | None) -> CacheFiles:
    try:
        from neve.store.substitute.http import DEFAULT_ATTEMPTS, DEFAULT_TIMEOUT, HttpCache, HttpOptions
    except ImportError as error:
        raise Unsupported(f"{error.name} is not installed, which caches need: install neve[http]") from error
    options = HttpOptions(
        timeout=address.seconds("timeout", DEFAULT_TIMEOUT),
        attempts=address.number("attempts", DEFAULT_ATTEMPTS, most=_MAX_ATTEMPTS),
        ca=address.parameters.get("ca"),
    )
    if options.ca is not None and address.scheme != "nix+https":
        raise address.refuse("parameter 'ca' belongs to nix+https")
    if not address.host.rpartition("@")[2]:
        raise address.refuse(f"the host is missing; write {address.scheme}://host/path")
    # As it was written: an encoded character of the path may mean something else than the plain one.
    parts = urlsplit(address.url)
    url = f"{_SCHEMES[address.scheme]}://{address.host.rpartition('@')[2]}{parts.path}"
    credentials = _credentials(address, netrc_file)
    credentials()  # Whether they can be read is best known now.
    try:
        return HttpCache(url, credentials=credentials, options=options)
    except InvalidRequest as error:
        raise address.refuse(str(error)) from error


def _credentials(address: Address, netrc_file: str | None) -> Credentials:
    parts = urlsplit(address.url)
    token = address.parameters.get("token-file")
    netrc = address.parameters.get("netrc-file")
    given = [parts.username is not None, token is not None, netrc is not None]
    if sum(given) > 1:
        raise address.refuse(
            "a user name, 'token-file' and 'netrc-file' are three ways to say who you are; choose one"
        )
    if parts.username is not None:
        return basic(unquote(parts.username), unquote(parts.password or ""))
    if token is not None:
        return token_file(token)
    others = [NIX_NETRC] if netrc_file is None else [netrc_file, NIX_NETRC]
    return netrc_files(parts.hostname or "", netrc, others)


def trusted_keys(address: Address) -> tuple[PublicKey, ...]:
    """The keys in ``trusted-public-keys``. Raises ``InvalidRequest``; giving none is one, too.

    In an address a plain ``+`` means a blank, and keys are full of it. No key lacks a colon, so what does
    is the rest of the one before.
    """
    text = address.parameters.get("trusted-public-keys")
    if text is None:
        return ()
    try:
        keys = PublicKey.parse_many(_with_pluses(text.strip()))
    except InvalidRequest as error:
        raise address.refuse(f"parameter 'trusted-public-keys': {error}") from error
    if not keys:
        raise address.refuse(
            "parameter 'trusted-public-keys' is empty; leave it out to trust whoever answers"
        )
    return keys


def _with_pluses(text: str) -> str:
    first, *others = re.split(r"(\s+)", text)
    result = first
    for blank, word in zip(others[::2], others[1::2], strict=True):
        result += (blank if ":" in word else "+" * len(blank)) + word
    return result
