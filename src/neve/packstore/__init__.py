"""The embedded engine: append-only packs of compressed frames with an LMDB index.

It knows tables, keys and bytes; what a blob or a Directory is, the layers above know.

    pack.py          the pack file: frames, commit marks, scanning over damage
    frames.py        making frames: records together, compressed
    appender.py      one process's pack files: locks, appending, syncing
    location.py      where a record lies, as the index writes it down
    datafile.py      looking at LMDB's data file before LMDB does
    index.py         the LMDB environment: look-ups, growth, error translation
    index_writer.py  its write transactions
    locks.py         how the threads of one process wait for each other
    updates.py       reading and changing records while nobody else can write
    sessions.py      who stages what, until it is committed or given up
    staging.py       the packs that a process appends to, and what is staged in them
    writer.py        group commit
    joined.py        several commits of one thread as one
    recovery.py      what a process that died left behind
    reader.py        frames to bytes: descriptors, decompression, the frame cache
    layout.py        the folder: format version, locks, settings
    gate.py          a collection and everybody else: who waits for whom
    notes.py         files of what processes have promised to be there; uses.py: how they are kept
    dates.py         when records were last used
    survey.py        how much of the packs is in use
    moving.py        moving records to another pack
    removal.py       removing packs
    compaction.py    giving back the space of what is not in use
    check.py         verification; report.py: what it tells
    rebuild.py       a new index from the packs
    store.py         PackStore: all of it behind one object
    address.py       local: addresses

Invariants (tests/packstore shows each):

1. An index entry points only to bytes that were durable before the entry was committed.
2. Bytes behind the last commit mark of a pack were never acknowledged and may be dropped.
3. Only the process that holds a pack's lock appends to it or truncates it, and never in front of its last
   commit mark.
4. A pack is self-describing: the packs alone are enough to rebuild the index.
5. A pack is removed when neither of the index's two newest states points to it; its name is not used again.
6. What a process has answered to be there is not dropped while the process has the store open; what a server
   has answered, not before the grace of a collection is over.
"""
