"""The formats of Nix: bytes or text in, values or errors out, no I/O.

``base32``        nixbase32, Nix's own base 32
``hashes``        ``NixHash`` (algorithm and digest) and ``CAHash`` (how content makes a path)
``store_path``    ``StorePath``: parse, render, calculate from contents
``signing``       Ed25519 keys and signatures by name
``narinfo``       ``NarInfo``: parse, render, fingerprint
``cache_info``    ``nix-cache-info``
``export_graph``  the JSON of ``exportReferencesGraph`` and ``nix path-info``
``references``    ``ReferenceScanner``: the store paths that contents mention
``nar``           the archive format: reader and writer

The reference is Nix itself. Every error derives from ``InvalidRequest`` and says which field or
position is at fault (``LimitExceeded`` where input is too large).
"""
