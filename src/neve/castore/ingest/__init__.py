"""Trees into the store: producers of tree events, and the sink that stores them.

entries.py     the sink: events to blobs, Directories and a root node
filesystem.py  a walk over files on disk
exclude.py     what such a walk leaves out
archive.py     tar archives
statcache.py   recognizing a tree on disk that was imported before
stampwalk.py   a walk that only looks, for the stat cache
"""
