"""What every server of neve shares, whatever it speaks.

=============  ====================================================================
``addresses``  where to listen, as it is written
``sockets``    claims paths and ports; the sockets that systemd passed on
``tls``        reads certificates
``workers``    processes: started, watched, replaced, ended
``process``    one of them: its event loop, and what it has to do with its parent
``stopping``   signals, and the time that is left after one
=============  ====================================================================
"""
