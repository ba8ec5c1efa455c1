"""Where a follower's log and the leader's meet."""

from __future__ import annotations

from jobs.consensus.journal import Journal
from jobs.consensus.messages import Append


class RaftError(Exception):
    """What no crash and no network explains: this member's log and the leader's disagree on what is committed."""


def take_entries(journal: Journal, commit_index: int, sent: Append) -> int | None:
    """Take in entries and return the index of the last one that both have; None when they do not follow. Only where
    terms conflict is anything truncated, and never what is committed."""
    index, entries = sent.prev_index, sent.entries
    if index < commit_index:
        # What is committed is the same everywhere; the entries before it may be gone here.
        entries = entries[commit_index - index :]
        if not entries:
            return commit_index
        index = commit_index
    elif journal.term_at(index) != sent.prev_term:
        return None
    for term, payload in entries:
        index += 1
        known = journal.term_at(index)
        if known == term:
            continue
        if known is not None:
            if index <= commit_index:
                raise RaftError(f"entry {index} is committed here in term {known}, and term {term} was sent for it")
            journal.truncate_from(index)
        journal.add(payload, index, term)
    return index


def last_possible(journal: Journal, commit_index: int, sent: Append) -> int:
    """Return the last entry before those sent that may be the same in the leader's log: terms never fall."""
    index = min(sent.prev_index - 1, journal.last_index)
    while index > commit_index and (journal.term_at(index) or 0) > sent.prev_term:
        index -= 1
    return max(index, commit_index)
