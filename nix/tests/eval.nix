# The module on one machine, as data: `nix-instantiate --eval --strict --json nix/tests/eval.nix --arg machine ./some.nix`.
{
  machine,
  lib ? import ./stubs/lib.nix,
  canExecute ? true,
}:

let
  inherit (lib.evalModules {
    modules = [
      ./stubs/nixos.nix
      ../module.nix
      machine
    ];
    specialArgs.pkgs = import ./stubs/pkgs.nix { inherit lib canExecute; };
  })
    config
    ;
  file = built: {
    inherit (built) script;
    inherit (built.environment.file) value;
  };
  declarations = config.systemd.services.jobs-declarations or null;
in
{
  failed = map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
  inherit (config) warnings;
  settings =
    if config.environment.etc ? "jobs/node.toml" then
      file config.environment.etc."jobs/node.toml".source
    else
      null;
  declaration = if declarations == null then null else file (lib.head declarations.restartTriggers);
  services = lib.mapAttrs (_: service: removeAttrs service [ "restartTriggers" ]) config.systemd.services;
  inherit (config.systemd) sockets paths targets;
  packages = map (one: one.name) config.systemd.packages;
  tmpfiles = {
    packages = map (one: one.name) config.systemd.tmpfiles.packages;
    inherit (config.systemd.tmpfiles) rules;
  };
  inherit (config.users) users groups;
  inherit (config.networking) firewall;
}
