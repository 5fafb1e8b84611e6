"""Store paths over the castore: path infos, NAR in and out, imports.

path_info.py   the model: PathInfo, validation, the rule of two puts
wire.py        model and messages
pathinfos/     PathInfoService, a file a backend
nar_nodes.py   which tree has which NAR hash
nar/           rendering NARs from stored trees, taking NARs in
importer.py    files, folders, archives and NARs to store paths
scanning.py    which store paths an imported NAR mentions
copying.py     closures from a local Nix store
closures.py    closures: their order, what of them is stored
signing.py     signing stored paths, files of keys
export.py      stored trees back to disk
services.py    addresses to services
remote.py      what a server does as a whole: administration, NAR hashes
check.py       verification of everything
"""
