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
    },
    opened=lambda service, scheme: traced(service, "blobs", scheme),
)
