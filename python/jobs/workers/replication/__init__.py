"""The worker for replication: it has the node keep sides in step, and reads and writes backups and exports itself."""
