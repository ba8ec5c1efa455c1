"""Configuration of nodes and workers. Imports pydantic, so only those processes and `check-config` import it."""

from jobs.config.load import (
    DEFAULT_FILE,
    FILE_VARIABLE,
    ConfigError,
    Problem,
    check_config,
    load_config,
)
from jobs.config.model import (
    BlobWorker,
    Credential,
    Logging,
    MaintenanceWorker,
    NodeConfig,
    PressureLimits,
    ReplicationWorker,
    ShellCaps,
    ShellWorker,
    SqlWorker,
    Workers,
    WorkerSettings,
)

__all__ = [
    "DEFAULT_FILE",
    "FILE_VARIABLE",
    "BlobWorker",
    "ConfigError",
    "Credential",
    "Logging",
    "MaintenanceWorker",
    "NodeConfig",
    "PressureLimits",
    "Problem",
    "ReplicationWorker",
    "ShellCaps",
    "ShellWorker",
    "SqlWorker",
    "WorkerSettings",
    "Workers",
    "check_config",
    "load_config",
]
