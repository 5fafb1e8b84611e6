"""What targets have opened, and use again and again."""

from __future__ import annotations

import contextlib

opened = contextlib.ExitStack()
"""To be closed when nothing is fed any more."""
