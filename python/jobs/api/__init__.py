"""The HTTP/JSON API on a Unix socket, over any `jobs.service.Backend`."""

from jobs.api.config import ApiConfig
from jobs.api.server import ApiServer, serve

__all__ = ["ApiConfig", "ApiServer", "serve"]
