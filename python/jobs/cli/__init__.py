"""The command `jobctl`."""
