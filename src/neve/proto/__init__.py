"""The messages of the wire protocol, generated from ``protos/`` by ``scripts/gen_protos.py``.

``tvix`` and ``snix`` hold the same messages under two sets of names: the same numbers and types, so
the bytes of one parse as the other. Everything below the two packages is generated.
"""
