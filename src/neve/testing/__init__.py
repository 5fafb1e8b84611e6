"""What tests of neve and of backends outside of it share: contracts, strategies, fixtures.

Only tests import this package; it may import everything of neve but ``cli``, and needs the ``dev``
dependency group.
"""
