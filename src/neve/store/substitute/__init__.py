"""Substituting: store paths out of the binary caches of others. Nothing that a cache says is believed.

The map::

    files.py         what a cache is made of: files below one address; how a narinfo may name one
    folder.py        a cache in a folder
    http.py          a cache on a server: repeats, redirects, who is told the credentials
    pace.py          servers that say nothing, or next to nothing, are not waited for
    credentials.py   netrc, tokens, passwords
    nars.py          a NAR from a cache into blobs and Directories, hashed on the way
    single_flight.py what many ask for at the same time is done once

``neve.store.pathinfos.nix_cache`` makes path infos of it.
"""
