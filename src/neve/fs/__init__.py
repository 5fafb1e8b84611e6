"""Store paths as a read-only file system, for the kernel's FUSE and for the guests of virtual machines.

============  ==============================================================================
``roots``     what lies in the root: the one thing that this package knows of store paths
``inodes``    the numbers that the kernel knows files by
``tree``      looking up, listing and reading, over blobs and Directories
``loads``     what has to be fetched first, and the threads that do it
``fuse``      the protocol, who answers it, and the ways to the kernel
============  ==============================================================================
"""
