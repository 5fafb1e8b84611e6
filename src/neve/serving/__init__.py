"""What every server of neve shares, whatever it speaks.

=============  ====================================================================
``addresses``  where to listen, as it is written
``sockets``    claims paths and ports; the sockets that systemd passed on
``listeners``  all the addresses of a server, claimed and published
``tls``        certificates, read and checked
``renewed``    what files hold, read again when they change
``metrics``    figures that processes count together, as Prometheus reads them
``metrics_server``  gives them out, for who speaks no HTTP
``pools``      threads, and how much waits for them
``workers``    processes: started, watched, replaced, ended
``main``       the process that somebody started: serves, or has workers that do
``manager``    the service manager that waits to hear how it goes
``process``    one that serves: its event loop, and what it has to do with its parent
``stopping``   signals, and the time that is left after one
=============  ====================================================================
"""
