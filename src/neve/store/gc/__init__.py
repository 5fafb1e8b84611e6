"""Collecting: dropping what nobody wants any more, and giving its space back.

    rules.py      what a user asks for: which paths stay, for how long, how much
    digest_set.py millions of digests in little memory
    mark.py       what can be reached from roots; knows services and no engine
    paths.py      which store paths stay
    near.py       what stays of contents that no path info reaches
    fresh.py      what processes have promised since, and must not go
    sweep.py      dropping the rest from an embedded store, in the one safe order
    collect.py    all of it: the run
    parts.py      where services lie in several places: what may go from each of them
    mixed.py      the run there
    remote.py     having a server do it
    report.py     what came of it

A run marks what is reached from the path infos that stay, and from what is *fresh*: put or asked for not long
ago (``neve.packstore.uses``). What is not marked is condemned; it is dropped in *sweeps*, in each of which
what has become fresh meanwhile is looked at first, and spared with all that it refers to. What refers to
others goes before those: path infos and Directories at once, then lists of chunks, then contents. So at any
moment, and after a crash at any moment, everything that shows has all that it refers to. In the end packs of
which much is dead are rewritten (``neve.packstore.compaction``).

Nothing is dropped if something that stays cannot be read: what it refers to is not known.
"""
