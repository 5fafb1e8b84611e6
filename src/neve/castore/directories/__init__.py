"""Directories: the inner nodes of the Merkle DAG, addressed by the digest of their encoding.

base.py     the interface: DirectoryService, DirectoryPutter
memory.py   a dict
local.py    the embedded store
urls.py     addresses
"""
