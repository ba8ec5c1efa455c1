# The options of NixOS that nix/module.nix sets, under their names: what is not here cannot be set by mistake.
{ lib, ... }:

let
  inherit (lib) mkOption types;
  list =
    inner:
    mkOption {
      type = types.listOf inner;
      default = [ ];
    };
  set =
    inner:
    mkOption {
      type = types.attrsOf inner;
      default = { };
    };
  text = mkOption {
    type = types.str;
    default = "";
  };
  flag =
    default:
    mkOption {
      type = types.bool;
      inherit default;
    };

  # Of nixos/lib/systemd-unit-options.nix.
  unit = {
    enable = flag true;
    description = text;
    overrideStrategy = mkOption {
      type = types.enum [
        "asDropinIfExists"
        "asDropin"
      ];
      default = "asDropinIfExists";
    };
    wantedBy = list types.str;
    wants = list types.str;
    requires = list types.str;
    after = list types.str;
    unitConfig = set types.anything;
    startLimitIntervalSec = mkOption {
      type = types.nullOr types.int;
      default = null;
    };
  };
  service = unit // {
    serviceConfig = set types.anything;
    script = text;
    restartTriggers = list types.anything;
    stopIfChanged = flag true;
  };
  units =
    more:
    mkOption {
      type = types.attrsOf (types.submodule { options = unit // more; });
      default = { };
    };
in
{
  options = {
    assertions = list types.anything;
    warnings = list types.str;
    environment.systemPackages = list types.package;
    environment.etc = set (
      types.submodule {
        options.source = mkOption { type = types.anything; };
      }
    );
    networking.hostName = mkOption {
      type = types.str;
      default = "nixos";
    };
    networking.nftables.enable = flag false;
    networking.firewall = {
      allowedUDPPorts = list types.int;
      extraCommands = text;
      extraInputRules = text;
    };
    security.allowUserNamespaces = flag true;
    systemd = {
      packages = list types.package;
      tmpfiles.packages = list types.package;
      tmpfiles.rules = list types.str;
      services = units service;
      sockets = units { socketConfig = set types.anything; };
      paths = units { pathConfig = set types.anything; };
      targets = units { };
    };
    users.users = set (
      types.submodule {
        options = {
          isNormalUser = flag false;
          isSystemUser = flag false;
          group = text;
          home = text;
          description = text;
          extraGroups = list types.str;
        };
      }
    );
    users.groups = set (
      types.submodule {
        options.members = list types.str;
      }
    );
  };
}
