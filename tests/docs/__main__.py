"""Lists what of the documents no test here runs, and why: `python -m tests.docs`."""

from __future__ import annotations

from tests.docs.guides import JOB, TEST, blocks, documents

for document in documents():
    for block in blocks(document):
        if block.mark not in ("", JOB, TEST):
            print(f"{block.place}: {block.mark}: {block.why}")
