# NixOS module `services.jobs`: see docs/nixos.md. The units are those of systemd/, which the package holds; here is only what
# a machine adds to them.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkIf mkOption types;

  cfg = config.services.jobs;
  workers = import ./module/workers.nix { inherit lib; };
  addresses = import ./module/addresses.nix { inherit lib; };

  toml = pkgs.formats.toml { };
  json = pkgs.formats.json { };

  nodeId = cfg.settings.node.id;
  listen = cfg.settings.cluster.listen;
  members = cfg.cluster.members;
  others = removeAttrs members [ nodeId ];
  enabled = lib.filter (type: cfg.workers.${type}.enable) workers.types;
  declares = cfg.queues != { } || cfg.schedules != { } || cfg.backups != { };
  canRun = pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform;

  # A mistake in the settings or in what is declared fails the build, with the file, the key and what would be right.
  checked =
    name: file: check:
    pkgs.runCommand name { inherit file; } ''
      ${lib.optionalString canRun (check "$file")}
      cp "$file" "$out"
    '';
  configFile = checked "jobs-node.toml" (toml.generate "jobs-node-unchecked.toml" cfg.settings) (
    file: "${cfg.package}/bin/jobs-node check-config \"${file}\""
  );
  declaration =
    checked "jobs-declaration.json"
      (json.generate "jobs-declaration-unchecked.json" {
        name = cfg.declarations.name;
        inherit (cfg) queues schedules;
      })
      (file: "${cfg.package}/bin/jobctl apply --check --file \"${file}\"");

  # What the two services below need of the machine: the API's socket.
  client = {
    User = "root";
    SupplementaryGroups = [ "jobs" ];
    Type = "oneshot";
    RemainAfterExit = true;
    Restart = "on-failure";
    RestartSec = "1s";
    RestartSteps = 6;
    RestartMaxDelaySec = "60s";
    Slice = "jobs.slice";
    CapabilityBoundingSet = "";
    DevicePolicy = "closed";
    IPAddressDeny = "any";
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    NoNewPrivileges = true;
    PrivateDevices = true;
    PrivateNetwork = true;
    PrivateTmp = true;
    ProcSubset = "pid";
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    RestrictAddressFamilies = [ "AF_UNIX" ];
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
    ];
    UMask = "0077";
  };

  # NixOS restarts what has changed. As a restart, and not as a stop and a start: the sockets stay, and nobody is turned away.
  restarted = {
    stopIfChanged = false;
    restartTriggers = [ configFile ];
  };
in
{
  options.services.jobs = {
    enable = lib.mkEnableOption "Jobs, a distributed job execution framework";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The package: commands and units.";
    };

    settings = mkOption {
      type = types.submodule {
        freeformType = toml.type;
        options = {
          node.id = mkOption {
            type = types.str;
            default = config.networking.hostName;
            defaultText = lib.literalExpression "config.networking.hostName";
            description = "Name of this node, unique in its cluster.";
          };
          cluster.listen = mkOption {
            type = types.listOf types.str;
            default = (members.${nodeId} or { addresses = [ ]; }).addresses;
            defaultText = lib.literalExpression "config.services.jobs.cluster.members.\${node.id}.addresses";
            description = "Addresses and ports on which other nodes reach this one; without any it is alone.";
          };
        };
      };
      default = { };
      example = {
        retention.keep_s = 2592000;
        workers.shell.limits.memory_bytes = "4GiB";
      };
      description = "/etc/jobs/node.toml: every key of docs/config.md. Checked when the system is built.";
    };

    workers = lib.genAttrs workers.types workers.options;

    cluster = {
      members = mkOption {
        type = types.attrsOf (
          types.submodule {
            options.addresses = mkOption {
              type = types.listOf types.str;
              example = [ "10.0.0.1:7420" ];
              description = "Where the others reach it: address and port (UDP).";
            };
          }
        );
        default = { };
        example = {
          alpha.addresses = [ "10.0.0.1:7420" ];
          beta.addresses = [ "10.0.0.2:7420" ];
          gamma.addresses = [ "10.0.0.3:7420" ];
        };
        description = ''
          Every node by its `settings.node.id`, the same on all of them. Says on what this one listens, where it looks for
          the others, and from which addresses the firewall lets them in. It makes nobody a member: a key does, let in
          once by a ticket.
        '';
      };
      bootstrap = mkOption {
        type = types.bool;
        default = false;
        description = "Found the cluster on this node, unless it is in one already. On one node only.";
      };
      ticketFile = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "/run/secrets/jobs-ticket";
        description = ''
          File with what `jobctl cluster ticket` printed on a member: this node joins when the file is there, unless it is in
          a cluster already. A path on the machine, not one of the Nix store, which everybody can read.
        '';
      };
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Let other nodes in (UDP): from the addresses of `cluster.members`, or from anywhere where none are declared. Who is not
        a member is refused in any case, by its key.
      '';
    };

    credentials = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = {
        "jobs.secrets-key" = "/run/secrets/jobs-key";
      };
      description = "Files with secrets that the node is given (LoadCredential), by name. Paths on the machine.";
    };

    users = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Users that may submit jobs: members of the group `jobs`.";
    };

    admins = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Users that administer, too: members of `jobs` and `jobs-admin`.";
    };

    queues = mkOption {
      type = types.attrsOf json.type;
      default = { };
      example = {
        batch.max_running = 8;
      };
      description = "Settings of queues, as in docs/declarations.md. What is not declared any more is taken back.";
    };

    schedules = mkOption {
      type = types.attrsOf json.type;
      default = { };
      example = {
        nightly = {
          cron = "30 2 * * *";
          timezone = "Europe/Berlin";
          job = {
            type = "shell";
            payload.argv = [ "/run/current-system/sw/bin/true" ];
          };
        };
      };
      description = "Schedules, as in docs/declarations.md. What is not declared any more is deleted.";
    };

    backups = mkOption {
      type = types.attrsOf (types.submodule (import ./module/backup.nix { inherit lib; }));
      default = { };
      description = "Backups of the whole cluster, each a series in a directory of this machine (docs/backup.md).";
    };

    declarations = {
      enable = mkOption {
        type = types.bool;
        default = declares || listen == [ ];
        defaultText = lib.literalExpression "something is declared, or the node is alone";
        description = ''
          Make the cluster's queues and schedules as this machine declares them. In a cluster declare them on one node, or the
          same on all: the last that applied its own wins. With `true` and nothing declared, all that was is removed.
        '';
      };
      name = mkOption {
        type = types.str;
        default = "nixos";
        description = "Name of the declaration: what carries another name, or none, is left alone unless it is declared here.";
      };
    };
  };

  config = mkIf cfg.enable (
    lib.mkMerge [
      {
        assertions = import ./module/assertions.nix {
          inherit
            lib
            cfg
            config
            nodeId
            listen
            ;
        };
        warnings =
          lib.optional (members != { } && lib.mod (lib.length (lib.attrNames members)) 2 == 0)
            "services.jobs.cluster.members has an even number of nodes: it can lose no more of them than with one less. Declare three or five.";

        environment.systemPackages = [ cfg.package ];
        environment.etc."jobs/node.toml".source = configFile;

        services.jobs.settings = {
          cluster.moved = mkIf (others != { }) (lib.mapAttrs (_: member: member.addresses) others);
          workers = lib.mapAttrs (_: workers.settings) cfg.workers;
        };

        # The same as in systemd/sysusers.d.
        users.users = {
          jobs = {
            isSystemUser = true;
            group = "jobs-node";
            home = "/var/lib/jobs";
            description = "Jobs: node";
          };
        }
        // lib.genAttrs (map (type: "jobs-${type}") workers.types) (name: {
          isSystemUser = true;
          group = name;
          home = "/var/lib/${name}";
          description = "Jobs: worker";
          extraGroups = [ "jobs-workers" ];
        });
        users.groups =
          lib.genAttrs ([ "jobs-workers" "jobs-node" ] ++ map (type: "jobs-${type}") workers.types) (_: { })
          // {
            jobs.members = lib.unique (cfg.users ++ cfg.admins);
            jobs-admin.members = cfg.admins;
          };

        systemd.packages = [ cfg.package ];
        systemd.tmpfiles.packages = [ cfg.package ];
        systemd.targets.jobs.wantedBy = [ "multi-user.target" ];
        systemd.sockets = lib.genAttrs [ "jobs-node" "jobs-node-workers" ] (_: {
          wantedBy = [ "sockets.target" ];
        });
        systemd.services = {
          jobs-node = restarted // {
            wantedBy = [
              "jobs.target"
              "multi-user.target"
            ];
            wants = [ "network-online.target" ];
            serviceConfig = lib.optionalAttrs (cfg.credentials != { }) {
              LoadCredential = lib.mapAttrsToList (name: path: "${name}:${path}") cfg.credentials;
            };
          };
        }
        // lib.listToAttrs (
          map (
            type:
            lib.nameValuePair "jobs-worker@${type}" (
              restarted
              // {
                overrideStrategy = "asDropin";
                wantedBy = [
                  "jobs-node.service"
                  "jobs.target"
                ];
                serviceConfig = workers.serviceConfig cfg.workers.${type};
              }
            )
          ) enabled
        );
      }

      (mkIf (cfg.backups != { }) {
        services.jobs = {
          settings.workers.replication.allow_files = map (backup: backup.directory) (lib.attrValues cfg.backups);
          schedules = lib.mapAttrs' (
            name: backup: lib.nameValuePair "backup-${name}" backup.schedule
          ) cfg.backups;
          workers.replication.readWritePaths = map (backup: backup.directory) (lib.attrValues cfg.backups);
        };
        systemd.tmpfiles.rules = map (
          backup: "d ${backup.directory} 0700 jobs-replication jobs-replication -"
        ) (lib.attrValues cfg.backups);
      })

      (mkIf (cfg.cluster.bootstrap || cfg.cluster.ticketFile != null) {
        systemd.services.jobs-cluster = {
          description = "Jobs: found the cluster, or join it";
          after = [ "jobs-node.service" ];
          # Not more: where the node's first start fails, this one goes on trying until a later one does not.
          wants = [ "jobs-node.service" ];
          wantedBy = [ "jobs.target" ];
          startLimitIntervalSec = 0;
          unitConfig = lib.optionalAttrs (cfg.cluster.ticketFile != null) {
            ConditionPathExists = cfg.cluster.ticketFile;
          };
          script =
            if cfg.cluster.bootstrap then
              "exec ${cfg.package}/bin/jobctl cluster init --if-unformed"
            else
              "exec ${cfg.package}/bin/jobctl cluster join - --if-unformed < \"$CREDENTIALS_DIRECTORY/ticket\"";
          serviceConfig =
            client
            // lib.optionalAttrs (cfg.cluster.ticketFile != null) {
              LoadCredential = [ "ticket:${cfg.cluster.ticketFile}" ];
            };
        };
      })

      (mkIf (cfg.cluster.ticketFile != null) {
        # The ticket may come long after the node: by hand, or from a service for secrets.
        systemd.paths.jobs-cluster = {
          description = "Jobs: wait for a ticket";
          wantedBy = [ "jobs.target" ];
          pathConfig.PathExists = cfg.cluster.ticketFile;
        };
      })

      (mkIf cfg.declarations.enable {
        systemd.services.jobs-declarations = {
          description = "Jobs: queues and schedules as they are declared";
          after = [
            "jobs-node.service"
            "jobs-cluster.service"
          ];
          wants = [ "jobs-node.service" ];
          wantedBy = [ "jobs.target" ];
          # Until the node is in a cluster that has a leader.
          startLimitIntervalSec = 0;
          restartTriggers = [ declaration ];
          serviceConfig = client // {
            ExecStart = "${cfg.package}/bin/jobctl apply --file ${declaration} --take-over";
            # Of these none gets better by itself: bad input, not allowed.
            RestartPreventExitStatus = "65 77";
          };
        };
      })

      (mkIf cfg.openFirewall {
        networking.firewall = addresses.firewall {
          inherit listen;
          sources = lib.concatMap (member: member.addresses) (lib.attrValues others);
          nftables = config.networking.nftables.enable;
        };
      })
    ]
  );
}
