"""The daemon: the services of a store over gRPC. Adapters only, no rule of the model lives here.

=================  ==================================================================
``limits``         what a client may cost, by name
``calls``          a call's way: counted, paced, its work in threads, errors to statuses
``blobs``          BlobService
``directories``    DirectoryService
``pathinfos``      PathInfoService
``batches``        many small objects per message
``admin``          what needs the permission to administer; ``verification`` is its longest call
``long_work``      work that ends when its call is gone
``reflection``     lists all of it, v1 and v1alpha
``app``            one process: handlers, health, start and stop
=================  ==================================================================
"""
