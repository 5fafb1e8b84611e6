"""Content-addressed storage: blobs, Directories, and the services that hold them.

The data model, without any I/O, is in ``digest`` (content addresses), ``path`` (names and paths
inside a root), ``node`` and ``directory`` (one level of a tree), ``closure`` (trees sent as streams
of Directories) and ``wire`` (nodes as protobuf messages).
"""
