# What nix/module.nix asks of a package set. Nothing is built: what would be built is kept, to be looked at.
{
  lib,
  canExecute ? true,
}:

let
  inherit (lib) types;
  # As nixpkgs' pkgs.formats.json and pkgs.formats.toml have it.
  value = types.nullOr (
    types.oneOf [
      types.bool
      types.int
      types.float
      types.str
      types.path
      (types.attrsOf value)
      (types.listOf value)
    ]
  );
  format = {
    type = types.attrsOf value;
    generate = name: value: {
      outPath = "/nix/store/stub-${name}";
      inherit value;
    };
  };
in
{
  formats.toml = _: format;
  formats.json = _: format // { type = value; };
  stdenv.buildPlatform.canExecute = _: canExecute;
  stdenv.hostPlatform = { };
  runCommand = name: environment: script: {
    outPath = "/nix/store/stub-${name}";
    inherit environment script;
  };
  callPackage = _: _: {
    type = "derivation";
    name = "jobs";
    outPath = "/nix/store/stub-jobs";
  };
}
