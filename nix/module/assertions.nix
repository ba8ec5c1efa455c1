# What cannot be as it is said, and what would be right.
{
  lib,
  cfg,
  config,
  nodeId,
  listen,
}:

let
  opt = "services.jobs";
  members = cfg.cluster.members;
  isOnMachine = path: lib.hasPrefix "/" path && !lib.hasPrefix "${builtins.storeDir}/" path;
  secrets = {
    "${opt}.cluster.ticketFile" = cfg.cluster.ticketFile;
  }
  // lib.mapAttrs' (name: lib.nameValuePair "${opt}.credentials.\"${name}\"") cfg.credentials
  // lib.foldl' (
    found: type:
    found
    // lib.mapAttrs' (
      name: lib.nameValuePair "${opt}.workers.${type}.credentials.\"${name}\""
    ) cfg.workers.${type}.credentials
  ) { } (lib.attrNames cfg.workers);

  # Keys that the units decide, which a file could only contradict.
  ofUnits = {
    "node.data_dir" = "mount the disk at /var/lib/jobs";
    "node.run_dir" = "leave it at /run/jobs";
    "api.socket" = "set systemd.sockets.jobs-node.socketConfig.ListenStream";
    "api.mode" = "set systemd.sockets.jobs-node.socketConfig.SocketMode";
    "api.group" = "set ${opt}.users, or systemd.sockets.jobs-node.socketConfig.SocketGroup";
    "worker_socket.path" = "leave it at /run/jobs/worker.sock";
    "worker_socket.mode" = "set systemd.sockets.jobs-node-workers.socketConfig.SocketMode";
    "worker_socket.group" = "set systemd.sockets.jobs-node-workers.socketConfig.SocketGroup";
  };
  isGiven = key: lib.hasAttrByPath (lib.splitString "." key) cfg.settings;
in
[
  {
    assertion = members == { } || members ? ${nodeId};
    message = "${opt}.cluster.members has no ${nodeId}: declare ${opt}.cluster.members.${nodeId}.addresses, or set ${opt}.settings.node.id to one of ${toString (lib.attrNames members)}.";
  }
  {
    assertion = lib.length (lib.attrNames members) <= 9;
    message = "${opt}.cluster.members has more than 9 nodes, and a cluster takes no more: declare fewer.";
  }
  {
    assertion = !(cfg.cluster.bootstrap && cfg.cluster.ticketFile != null);
    message = "${opt}.cluster.bootstrap founds a cluster and ${opt}.cluster.ticketFile joins one: set bootstrap on one node, and ticketFile on the others.";
  }
  {
    assertion = !(cfg.cluster.bootstrap || cfg.cluster.ticketFile != null) || listen != [ ];
    message = "a node in a cluster has to be reached: declare ${opt}.cluster.members.${nodeId}.addresses, or set ${opt}.settings.cluster.listen.";
  }
  {
    assertion = !cfg.openFirewall || listen != [ ];
    message = "${opt}.openFirewall has no port to open: set ${opt}.settings.cluster.listen, or leave it off, as a node alone needs none.";
  }
  {
    assertion = !cfg.workers.shell.enable || config.security.allowUserNamespaces;
    message = "the shell worker makes a user namespace for every job: set security.allowUserNamespaces = true, or ${opt}.workers.shell.enable = false.";
  }
  {
    assertion = cfg.backups == { } || cfg.workers.replication.enable;
    message = "${opt}.backups are written by the worker for replication: set ${opt}.workers.replication.enable = true.";
  }
]
++ lib.mapAttrsToList (name: backup: {
  assertion = lib.hasPrefix "/" backup.directory;
  message = "${opt}.backups.${name}.directory is no absolute path: name a directory such as /srv/backups/${name}.";
}) cfg.backups
++ lib.mapAttrsToList (name: path: {
  assertion = path == null || isOnMachine path;
  message = "${name} would be in the Nix store, which everybody can read, or is no absolute path: give the path, in quotes, of a file on the machine, such as /run/secrets/jobs.";
}) secrets
++ lib.mapAttrsToList (key: fix: {
  assertion = !isGiven key;
  message = "${opt}.settings.${key} is decided by the units: ${fix}.";
}) ofUnits
