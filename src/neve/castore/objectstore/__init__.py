"""What blobs and Directories in an object store have in common: where objects lie, what is in them, and
requests, many at once.

``layout`` is the format (shared with tvix and snix), without any I/O; ``bucket`` is one store of objects,
``settings`` how an address configures it, ``failures`` what its errors mean, ``files`` how folders of this
machine are written so that it lasts.
"""
