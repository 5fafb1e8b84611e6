"""Parsers of bytes that strangers wrote, fed with bytes that nobody would write.

``targets`` is the table of them. Each has a folder below ``corpus``, of inputs that are kept: some that are
valid, to begin with, and every one that something was wrong with. The tests replay those and a fixed
number of variations on them (``variations``); ``make fuzz`` goes on for as long as one likes, and is led by
what code an input reaches.
"""
