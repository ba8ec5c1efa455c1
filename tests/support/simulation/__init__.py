"""A deterministic simulation of a group of members in one process, under faults.

Each member is the real consensus (`jobs.consensus`, its driver included), the real log over a simulated disk, and the
real state machine in memory, on an event loop of its own whose time is virtual. Chance is seeded, so a seed says
everything: the same seed gives the same trace, byte for byte. What holds always is checked after every step; what is
broken raises `Violation` with the seed and a trace.

- `world`: virtual time, the queue of events, the trace.
- `loop`: the event loop of one process, which can be paused, slowed and killed.
- `plan`: what a seed means: how many members, which faults, how bad the network is.
- `network`: messages between hosts: lost, late, twice, in another order, cut off.
- `storage`: the log and the store of a host, watched, and as a crash leaves them.
- `host`: a member as a process on a machine.
- `clients`: those who write and read, and what they were promised.
- `faults`: who makes things go wrong.
- `checks`: what must hold.
- `bugs`: faults planted in the consensus, which the simulation must find.
- `run`: one seed from its beginning to its end.
"""
