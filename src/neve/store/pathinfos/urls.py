"""Addresses of path info services. The context is a ``PathInfoContext``."""

from __future__ import annotations

from neve.registry import Schemes
from neve.store.pathinfos.base import PathInfoService
from neve.telemetry.services import traced

PATH_INFO_SERVICES: Schemes[PathInfoService] = Schemes(
    "path info service",
    {
        "bigtable": "neve.store.pathinfos.bigtable:open_bigtable",
        "memory": "neve.store.pathinfos.memory:open_memory",
        "local": "neve.store.pathinfos.local:open_local",
        "lru": "neve.store.pathinfos.lru:open_lru",
        "postgresql": "neve.store.pathinfos.postgresql:open_postgresql",
        "grpc+unix": "neve.store.pathinfos.grpc:open_grpc",
        "grpc+http": "neve.store.pathinfos.grpc:open_grpc",
        "grpc+https": "neve.store.pathinfos.grpc:open_grpc",
    },
    with_context={
        "cache": "neve.store.pathinfos.cached:open_cached",
        "keyfile-signing": "neve.store.pathinfos.signing:open_signing",
        "nix+file": "neve.store.pathinfos.nix_cache:open_nix_cache",
        "nix+http": "neve.store.pathinfos.nix_cache:open_nix_cache",
        "nix+https": "neve.store.pathinfos.nix_cache:open_nix_cache",
    },
    opened=lambda service, scheme: traced(service, "path_infos", scheme),
)
