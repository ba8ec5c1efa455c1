"""The keys with which secrets are encrypted: those that a node has, and how members come by them."""
