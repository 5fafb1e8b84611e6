"""Addresses of directory services."""

from __future__ import annotations

from neve.castore.directories.base import DirectoryService
from neve.registry import Schemes
from neve.telemetry.services import traced

DIRECTORY_SERVICES: Schemes[DirectoryService] = Schemes(
    "directory service",
    {
        "bigtable": "neve.castore.directories.bigtable:open_bigtable",
        "memory": "neve.castore.directories.memory:open_memory",
        "local": "neve.castore.directories.local:open_local",
        "postgresql": "neve.castore.directories.postgresql:open_postgresql",
        "cache": "neve.castore.directories.cached:open_cached",
        "grpc+unix": "neve.castore.directories.grpc:open_grpc",
        "grpc+http": "neve.castore.directories.grpc:open_grpc",
        "grpc+https": "neve.castore.directories.grpc:open_grpc",
        "objectstore+file": "neve.castore.directories.objectstore:open_objectstore",
        "objectstore+memory": "neve.castore.directories.objectstore:open_objectstore",
        "objectstore+s3": "neve.castore.directories.objectstore:open_objectstore",
        "objectstore+gs": "neve.castore.directories.objectstore:open_objectstore",
        "objectstore+az": "neve.castore.directories.objectstore:open_objectstore",
        "objectstore+http": "neve.castore.directories.objectstore:open_objectstore",
        "objectstore+https": "neve.castore.directories.objectstore:open_objectstore",
    },
    opened=lambda service, scheme: traced(service, "directories", scheme),
)
