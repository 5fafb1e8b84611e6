"""Repairing an embedded store from another store.

run.py      what is damaged, in which order it is repaired, and whether all is well in the end
objects.py  blobs, chunks and Directories, which prove themselves
records.py  what lies beside them

A damaged record is superseded by a change, as a path info is: the index leads to the new one, and whoever
makes the index anew finds that it is newer. What was damaged stays where it is, and nothing leads there.
"""

from neve.store.repair.run import RepairReport, repair

__all__ = ["RepairReport", "repair"]
