"""Backups of a cluster: what a node gives for them, their files, and how a store is made of them again.

- `frames`: a checksummed file, or stream, of records. `manifest`: what a backup says of itself. `crypt`: encryption.
- `shelf`: files of a directory that others may change. `series`: the backups of a directory.
- `replay`: changes as commands of a store (pure). `rebuild`: a series as a store again.
- `source`: what a node gives to the worker that makes backups.
"""
