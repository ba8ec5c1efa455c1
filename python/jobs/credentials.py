"""What the service manager gives a service in confidence (LoadCredential=)."""

from __future__ import annotations

import os
from pathlib import Path


def credentials_directory() -> Path | None:
    """Return where systemd has put what it gives this service; None where it has given nothing."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return None if directory is None else Path(directory)
