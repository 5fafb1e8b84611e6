"""The embedded engine: append-only packs of compressed frames with an LMDB index.

It knows tables, keys and bytes; what a blob or a Directory is, the layers above know.

    pack.py     the pack file: frames, commit marks, scanning, recovery of a tail
    index.py    the LMDB environment: locations, checksummed values, growth, error translation
    writer.py   one process's pack: staging, group commit, updates
    reader.py   frames to bytes: file descriptors, decompression, the frame cache
    layout.py   the folder: format version, locks, settings
    check.py    verification of packs against index, rebuilding the index from packs
    store.py    PackStore: all of it behind one object

Invariants (tests/packstore shows each):

1. An index entry points only to bytes that were durable before the entry was committed.
2. Bytes behind the last commit mark of a pack were never acknowledged and may be dropped.
3. Only the process that holds a pack's lock appends to it or truncates it.
4. A pack is self-describing: the packs alone are enough to rebuild the index.
"""
