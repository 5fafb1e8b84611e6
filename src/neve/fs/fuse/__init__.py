"""The FUSE protocol: requests and replies as bytes, who answers them, and the ways they travel.

``protocol`` is the codec and does no I/O; ``session`` answers requests, wherever they come from; ``device``
is the way to the kernel of this machine. A virtio-fs device speaks the same protocol with a guest.
"""
