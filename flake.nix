{
  description = "Jobs: a distributed job execution framework with its own replicated store";

  # `nix flake lock` writes flake.lock; until then the newest nixpkgs is taken. Everything of Jobs' own is locked already, by
  # rust/Cargo.lock and nix/wheels.json.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forEach = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
    in
    {
      overlays.default = final: _: { jobs = final.callPackage ./nix/package.nix { }; };

      packages = forEach (pkgs: {
        default = pkgs.callPackage ./nix/package.nix { };
      });

      nixosModules.default =
        { pkgs, lib, ... }:
        {
          imports = [ ./nix/module.nix ];
          services.jobs.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        };

      apps = forEach (
        pkgs:
        let
          package = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        in
        {
          default = {
            type = "app";
            program = "${package}/bin/jobctl";
            meta.description = "The command line of Jobs";
          };
          demo = {
            type = "app";
            program = "${pkgs.writeShellScript "jobs-demo" "exec ${package.env}/bin/python -m jobs.demo"}";
            meta.description = "Run jobs on a node in a temporary directory: submit, queue, fail, kill, restart";
          };
        }
      );

      devShells = forEach (pkgs: {
        # `make setup` makes the rest, as everywhere.
        default = pkgs.mkShell {
          packages = [
            pkgs.python313
            pkgs.cargo
            pkgs.rustc
            pkgs.clippy
            pkgs.rustfmt
            pkgs.gnumake
            pkgs.uv
          ];
          # What wheels of PyPI expect of a Linux.
          LD_LIBRARY_PATH = pkgs.lib.makeLibraryPath [ pkgs.stdenv.cc.cc.lib ];
        };
      });

      checks = forEach (
        pkgs:
        let
          own = self.packages.${pkgs.stdenv.hostPlatform.system};
        in
        {
          package = own.default;
          cluster = import ./nix/tests/cluster.nix {
            inherit pkgs;
            package = own.default;
          };
        }
      );

      formatter = forEach (pkgs: pkgs.nixfmt);
    };
}
