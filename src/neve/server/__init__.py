"""The daemon: the services of a store over gRPC. Adapters only, no rule of the model lives here.

=================  ==================================================================
``limits``         what a client may cost, by name
``calls``          a call's way: counted, paced, its work in threads, errors to statuses
``streams``        room for what uploads bring, work behind them, answers made in threads
``blobs``          BlobService
``directories``    DirectoryService
``pathinfos``      PathInfoService
``batches``        many small objects per message
``admin``          what needs the permission to administer; ``verification`` is its longest call
``long_work``      work that ends when its call is gone
``reflection``     lists all of it, v1 and v1alpha
``handlers``       which services answer on which address
``app``            one process: handlers, health, start and stop
``daemon``         the whole: listens, serves in this process or in several
``listen``         who may listen where
``process``        one of the processes
``settings``       what a worker is told; ``private`` is the folder of their sockets
``splice``         carries bytes from sockets that several processes share; ``carrying`` prepares them
=================  ==================================================================

What a server needs whatever it speaks (sockets, workers, signals) is in ``neve.serving``.
"""
