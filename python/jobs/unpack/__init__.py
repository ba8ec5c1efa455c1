"""Unpacks images of root file systems: squashfs files, and tar files of layouts of the Open Container Initiative.

It runs in a process of its own that has given up everything but the directory to fill, which is its root
(`jobs_sandbox::confine`), so no path of an image leads anywhere else. Nothing but the standard library is imported:
what an image says is read by what cannot overrun memory. See `main`.
"""
