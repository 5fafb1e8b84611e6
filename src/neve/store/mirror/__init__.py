"""Mirroring: one store gets what another one has, and nothing that it has already.

run.py       the order of things; what was done
compare.py   two listings side by side
pending.py   what is to be copied, on the disk
order.py     references before what refers to them
contents.py  groups of trees: blobs, then Directories
rest.py      what no path info reaches

A path info is put when all that it refers to is there. So whoever finds an equal one at the target knows that
its closure was complete when it came: of a store that has not changed nothing but path infos is looked at.
"""

from neve.store.mirror.run import MirrorOptions, MirrorReport, mirror

__all__ = ["MirrorOptions", "MirrorReport", "mirror"]
