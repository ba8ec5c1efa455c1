# The machines of cluster.nix and its script, as data.
let
  lib = import ./stubs/lib.nix;
  stubs = import ./stubs/pkgs.nix { inherit lib; };
  test = import ./cluster.nix {
    pkgs = stubs // {
      testers.runNixOSTest = arguments: arguments;
    };
    package = stubs.callPackage null null;
  };
  # What NixOS and its test driver have besides.
  more =
    { lib, ... }:
    let
      inherit (lib) mkOption types;
    in
    {
      options.virtualisation.memorySize = mkOption { type = types.int; };
      options.specialisation = mkOption {
        type = types.attrsOf types.anything;
        default = { };
      };
    };
  machine = name: module: {
    imports = [
      more
      module
    ];
    networking.hostName = name;
  };
  evaluated = lib.mapAttrs (
    name: module:
    import ./eval.nix {
      inherit lib;
      machine = machine name module;
    }
  ) test.nodes;
in
{
  inherit (test) name testScript;
  machines = evaluated;
}
