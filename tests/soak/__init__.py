"""One store, several processes that work on it for a while and are killed at random, and a model of what
must be there: nothing is lost, and nothing is wrong.

    trees.py      what is stored, and the digests of its NARs by other code than neve's
    model.py      which paths must be there, and which may be
    processes.py  processes that are started, and killed
    run.py        what is done; ``python -m tests.soak.run SECONDS``
"""
