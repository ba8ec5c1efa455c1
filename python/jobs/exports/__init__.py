"""Exports: a range of keys as they were at one revision, as files with a manifest. What they are; workers make them."""
