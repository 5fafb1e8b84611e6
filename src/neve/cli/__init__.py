"""The command line: ``neve``. ``__main__`` is the way in, ``commands`` has the list of commands."""
