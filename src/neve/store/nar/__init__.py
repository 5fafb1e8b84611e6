"""NARs and the store: ``render`` makes them from stored trees, ``ingest`` takes them in."""
