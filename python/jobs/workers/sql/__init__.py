"""The worker that runs queries: each of its slots has a process of its own, which imports DataFusion and is kept warm.

What crashes, exceeds its memory or will not stop is killed alone: the process of one query.
"""
