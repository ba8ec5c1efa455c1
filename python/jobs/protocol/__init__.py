"""Typed messages: what crosses a socket or is kept in the store. Types and codecs only, no behaviour."""
