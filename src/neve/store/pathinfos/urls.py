"""Addresses of path info services."""

from __future__ import annotations

from neve.registry import Schemes
from neve.store.pathinfos.base import PathInfoService

PATH_INFO_SERVICES: Schemes[PathInfoService] = Schemes(
    "path info service",
    {
        "memory": "neve.store.pathinfos.memory:open_memory",
        "local": "neve.store.pathinfos.local:open_local",
        "grpc+unix": "neve.store.pathinfos.grpc:open_grpc",
        "grpc+http": "neve.store.pathinfos.grpc:open_grpc",
        "grpc+https": "neve.store.pathinfos.grpc:open_grpc",
    },
)
