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
  isInStore = path: builtins.isPath path || lib.hasPrefix "${builtins.storeDir}/" path;
  isOnMachine = path: lib.hasPrefix "/" path && !isInStore path;
  matches = pattern: text: builtins.match pattern text != null;
  addresses = lib.concatMap (member: member.addresses) (lib.attrValues members);
  isAddress = matches ''([0-9]+(\.[0-9]+){3}|\[[0-9a-fA-F:.]+]):[0-9]{1,5}'';
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

  # Files whose content is secret, which the settings name.
  secretFiles = {
    "secrets.key_file" = cfg.settings.secrets.key_file or null;
    "tracing.headers_file" = cfg.settings.tracing.headers_file or null;
    "workers.replication.identity_file" = cfg.settings.workers.replication.identity_file or null;
  }
  // lib.mapAttrs' (
    name: credential: lib.nameValuePair "workers.shell.credentials.${name}.path" (credential.path or null)
  ) (cfg.settings.workers.shell.credentials or { });

  # Directories that a unit is to write: it sees neither homes nor what a line of its own cannot name.
  backupDirectories = map (backup: backup.directory) (lib.attrValues cfg.backups);
  written =
    lib.mapAttrs' (
      name: backup: lib.nameValuePair "${opt}.backups.${name}.directory" [ backup.directory ]
    ) cfg.backups
    // lib.mapAttrs' (
      type: worker:
      lib.nameValuePair "${opt}.workers.${type}.readWritePaths" (
        lib.filter (path: !builtins.elem path backupDirectories) worker.readWritePaths
      )
    ) cfg.workers;
  isDirectory = matches ''/[^[:space:]%"'\]*'';
  isHidden = matches "/(home|root|run/user)(/.*)?";

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
    assertion = matches "[A-Za-z0-9][A-Za-z0-9._-]{0,62}" nodeId;
    message = "${opt}.settings.node.id, by default networking.hostName, is \"${nodeId}\", which is no name of a node: set it to letters, digits, dots, dashes and underscores, such as alpha.";
  }
  {
    assertion = lib.length (lib.unique addresses) == lib.length addresses;
    message = "${opt}.cluster.members has the same address twice: give each member its own.";
  }
  {
    assertion = lib.length (lib.unique backupDirectories) == lib.length backupDirectories;
    message = "${opt}.backups has the same directory twice, and it would hold one series: give each a directory of its own.";
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
++ lib.mapAttrsToList (name: member: {
  assertion = member.addresses != [ ] && lib.all isAddress member.addresses;
  message = "${opt}.cluster.members.${name}.addresses is ${
    if member.addresses == [ ] then "empty" else toString member.addresses
  }: list IP addresses with ports, such as 10.0.0.1:7420 or [fd00::1]:7420.";
}) members
++ lib.mapAttrsToList (name: directories: {
  assertion = lib.all (path: isDirectory path && !isHidden path) directories;
  message = "${name} is no absolute path without white space, or below /home, /root or /run/user, which the units do not see: name a directory such as /srv/jobs.";
}) written
++ lib.mapAttrsToList (key: path: {
  assertion = path == null || !isInStore path;
  message = "${opt}.settings.${key} would be in the Nix store, which everybody can read: give the path, in quotes, of a file on the machine, such as /run/secrets/jobs.";
}) secretFiles
++ map (name: {
  assertion = matches "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}" name;
  message = "\"${name}\" is no name of a credential: take letters, digits, dots, dashes and underscores, as in jobs.secrets-key.";
}) (lib.concatMap lib.attrNames ([ cfg.credentials ] ++ map (worker: worker.credentials) (lib.attrValues cfg.workers)))
++ lib.mapAttrsToList (name: path: {
  assertion = path == null || isOnMachine path;
  message = "${name} would be in the Nix store, which everybody can read, or is no absolute path: give the path, in quotes, of a file on the machine, such as /run/secrets/jobs.";
}) secrets
++ lib.mapAttrsToList (key: fix: {
  assertion = !isGiven key;
  message = "${opt}.settings.${key} is decided by the units: ${fix}.";
}) ofUnits
