"""Addresses of blob services."""

from __future__ import annotations

from neve.castore.blobs.base import BlobService
from neve.registry import Schemes
from neve.telemetry.services import traced

BLOB_SERVICES: Schemes[BlobService] = Schemes(
    "blob service",
    {
        "memory": "neve.castore.blobs.memory:open_memory",
        "local": "neve.castore.blobs.local:open_local",
        "cache": "neve.castore.blobs.combined:open_cached",
        "combined": "neve.castore.blobs.combined:open_combined",
        "grpc+unix": "neve.castore.blobs.grpc:open_grpc",
        "grpc+http": "neve.castore.blobs.grpc:open_grpc",
        "grpc+https": "neve.castore.blobs.grpc:open_grpc",
        "objectstore+file": "neve.castore.blobs.objectstore:open_objectstore",
        "objectstore+memory": "neve.castore.blobs.objectstore:open_objectstore",
        "objectstore+s3": "neve.castore.blobs.objectstore:open_objectstore",
        "objectstore+gs": "neve.castore.blobs.objectstore:open_objectstore",
        "objectstore+az": "neve.castore.blobs.objectstore:open_objectstore",
        "objectstore+http": "neve.castore.blobs.objectstore:open_objectstore",
        "objectstore+https": "neve.castore.blobs.objectstore:open_objectstore",
    },
    opened=lambda service, scheme: traced(service, "blobs", scheme),
)
