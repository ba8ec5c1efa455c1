# What can be said of the worker of each type, and what comes of it in its settings and its unit.
{ lib }:

let
  inherit (lib) mkOption types;
in
{
  types = [
    "shell"
    "sql"
    "blob"
    "maintenance"
    "replication"
  ];

  options = type: {
    enable = mkOption {
      type = types.bool;
      default = true;
      description = "Run a worker of type ${type} on this machine.";
    };
    slots = mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      description = "Jobs at a time; null: as many as docs/config.md says.";
    };
    labels = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = {
        gpu = "yes";
      };
      description = "Capabilities: what jobs can require of the worker.";
    };
    resources = mkOption {
      type = types.attrsOf types.ints.positive;
      default = { };
      example = {
        gpu = 1;
      };
      description = "Counts of things that jobs can require in all.";
    };
    cpuMilli = mkOption {
      type = types.nullOr types.ints.unsigned;
      default = null;
      description = "Thousandths of a core that jobs can require in all; null: what the machine has.";
    };
    memory = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "16GiB";
      description = "Memory that jobs can require in all; null: what the machine has.";
    };
    readWritePaths = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Directories that the unit may write to, for what the settings allow in `allow_files`.";
    };
    credentials = mkOption {
      type = types.attrsOf types.str;
      default = { };
      description = "Files with secrets that the worker is given (LoadCredential), by name. Paths on the machine.";
    };
  };

  settings =
    worker:
    lib.filterAttrs (_: value: value != null && value != { }) {
      inherit (worker) slots labels resources;
      cpu_milli = worker.cpuMilli;
      memory_bytes = worker.memory;
    };

  serviceConfig =
    worker:
    lib.optionalAttrs (worker.readWritePaths != [ ]) { ReadWritePaths = worker.readWritePaths; }
    // lib.optionalAttrs (worker.credentials != { }) {
      LoadCredential = lib.mapAttrsToList (name: path: "${name}:${path}") worker.credentials;
    };
}
