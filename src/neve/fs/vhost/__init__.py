"""virtio-fs: requests of FUSE that a guest puts into shared memory, over vhost-user.

==============  ===========================================================================
``messages``    what front-end (QEMU) and back-end (we) tell each other; no I/O
``memory``      the guest's memory: nothing outside of it is ever touched; no I/O
``virtqueue``   requests and answers in that memory; no I/O
``mapping``     maps the memory that came as descriptors
``ring``        a queue at work: requests in flight, stopping
``device``      what the front-end sets up: legal moves, memory, rings
``connection``  messages and descriptors on a socket
``server``      listens, and serves one front-end after the other
``run``         the whole of it as a process, with its socket and signals
==============  ===========================================================================
"""
