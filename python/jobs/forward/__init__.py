"""Requests and workers' connections on their way from the node that they reached to the one that leads.

- `envelope`: what nodes say to each other for that, as bytes (pure).
- `follower`: the side of the node that was asked. `leader`: that of the one that answers. `tunnel`: workers.
- `reach` and `relay`: one hop through another member, to a leader that this node does not hear.
"""
