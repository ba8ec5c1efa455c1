# A flake in place of nixpkgs, for `nix flake show`: as much of it as the flake of Jobs asks for.
{
  outputs =
    { self }:
    let
      package =
        system: name:
        derivation {
          inherit name system;
          builder = "/bin/sh";
        }
        // {
          env = "/nix/store/stub-env";
        };
      pkgs = system: {
        stdenv = {
          hostPlatform.system = system;
          cc.cc.lib = "libstdc++";
        };
        lib.makeLibraryPath = toString;
        callPackage = file: _: package system (baseNameOf file);
        mkShell = _: package system "shell";
        nixfmt = package system "nixfmt";
        writeShellScript = name: _: "/nix/store/stub-${name}";
        testers.runNixOSTest = test: package system test.name;
        python313 = "python313";
        cargo = "cargo";
        rustc = "rustc";
        clippy = "clippy";
        rustfmt = "rustfmt";
        gnumake = "gnumake";
        uv = "uv";
      };
    in
    {
      lib.genAttrs =
        names: make:
        builtins.listToAttrs (
          map (name: {
            inherit name;
            value = make name;
          }) names
        );
      legacyPackages = {
        x86_64-linux = pkgs "x86_64-linux";
        aarch64-linux = pkgs "aarch64-linux";
      };
    };
}
