"""Tables of Google Cloud Bigtable, or its emulator, in the layout that tvix and snix have too.

A row has one cell, whose column qualifier is the row's key: the lower-case hex digest of what lies there.
``address`` reads addresses, ``messages`` makes requests and takes answers apart without I/O, ``client`` talks
to the server, ``table`` has what services ask of rows. What the cells hold, the services know.

Google's library is used for its messages and its credentials. Its own client keeps threads that report
figures about every call to the cloud, and cannot be told how long messages may be.
"""

from __future__ import annotations

from neve.errors import Unsupported

try:
    import google.cloud.bigtable_v2.types  # noqa: F401 - all modules here need it
except ImportError as error:
    raise Unsupported(
        f"{error.name} is not installed, which bigtable:// addresses need: install neve[bigtable]"
    ) from error
