"""Path infos: the descriptions of store paths, by store path digest.

base.py     the interface
memory.py   a dict
local.py    the embedded store
grpc.py     a server
urls.py     addresses
"""
