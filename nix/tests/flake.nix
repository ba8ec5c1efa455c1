# The names that the flake gives, with a stub in place of nixpkgs. Whatever is built is shown as its name.
let
  flake = import ../../flake.nix;
  lib = import ./stubs/lib.nix;
  pkgs = system: {
    inherit lib;
    stdenv = {
      hostPlatform.system = system;
      cc.cc.lib = "libstdc++";
    };
    callPackage = file: _: {
      name = baseNameOf file;
      outPath = "/nix/store/stub-package";
      env = "/nix/store/stub-env";
    };
    mkShell = arguments: {
      name = "shell";
      inherit (arguments) packages;
    };
    writeShellScript = name: text: "${name}: ${text}";
    testers.runNixOSTest = arguments: { inherit (arguments) name; };
    python313 = "python313";
    cargo = "cargo";
    rustc = "rustc";
    clippy = "clippy";
    rustfmt = "rustfmt";
    gnumake = "gnumake";
    uv = "uv";
    nixfmt = "nixfmt";
  };
  outputs = flake.outputs {
    self = outputs;
    nixpkgs = {
      lib = lib // {
        makeLibraryPath = map (one: "${one}/lib");
      };
      legacyPackages = lib.genAttrs [
        "x86_64-linux"
        "aarch64-linux"
      ] (system: pkgs system // { lib = lib // { makeLibraryPath = toString; }; });
    };
  };
  module = outputs.nixosModules.default {
    inherit lib;
    pkgs = pkgs "x86_64-linux";
  };
in
{
  names = lib.mapAttrs (_: lib.attrNames) outputs;
  inherit (outputs) apps;
  checks = lib.mapAttrs (_: lib.mapAttrs (_: one: one.name)) outputs.checks;
  shells = lib.mapAttrs (_: shells: shells.default.packages) outputs.devShells;
  overlay = (outputs.overlays.default (pkgs "x86_64-linux") { }).jobs.name;
  module = map baseNameOf module.imports;
}
