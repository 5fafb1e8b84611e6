"""Blobs: file contents, addressed by their BLAKE3 digest.

base.py     the interface: BlobService, BlobReader, BlobWriter, BlobBatch
memory.py   a dict
local.py    the embedded store
chunks.py   cutting large blobs, chunk lists, reading over chunks
urls.py     addresses
"""
