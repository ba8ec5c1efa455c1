"""The worker for blobs: it reads and writes files itself, and has its node do everything else.

Nothing of a job's owner is run, and the blobs of a node are opened by nobody but the node: so this is one thin process.
"""
