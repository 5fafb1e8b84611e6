"""What both sides of a gRPC connection share, and the client's side of it.

=============  =====================================================================
``status``     errors of ``neve.errors`` as gRPC statuses, and back
``methods``    the methods of a service, from its descriptor
``channel``    connections: options, deadlines, retries, what the other side has
``target``     what an address says
``upload``     streams that the client sends
``watch``      ends calls on which nothing happens any more
``tuning``     how gRPC's library is set up, for our own programs
=============  =====================================================================
"""
