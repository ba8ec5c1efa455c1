"""The worker for maintenance: its node does all of it but for what workers of this machine have left in files."""
