# What nix/package.nix would build on one system, as data.
{
  system ? "x86_64-linux",
}:

let
  lib = import ./stubs/lib.nix // {
    fileset = {
      toSource = { root, fileset }: map toString fileset;
      unions = lib.concatMap (one: if builtins.isList one then one else [ one ]);
      difference = one: _: one;
      fileFilter = _: one: one;
      maybeMissing = one: one;
    };
  };
  made = arguments: arguments // { outPath = "/nix/store/stub-${arguments.pname}"; };
  package = import ../package.nix {
    inherit lib;
    stdenv = {
      hostPlatform.system = system;
      mkDerivation = made;
      cc.cc.lib = "libstdc++";
    };
    python313 = {
      interpreter = "/nix/store/stub-python/bin/python3.13";
      pkgs = {
        buildPythonPackage = made;
        fetchPypi = file: file;
        setuptools = "setuptools";
      };
      withPackages = choose: { outPath = "/nix/store/stub-env-${lib.concatStringsSep "-" (map (one: one.pname) (choose { }))}"; };
    };
    rustPlatform = {
      importCargoLock = { lockFile }: toString lockFile;
      cargoSetupHook = "cargoSetupHook";
    };
    cargo = "cargo";
    rustc = "rustc";
    maturin = "maturin";
    autoPatchelfHook = "autoPatchelfHook";
    installShellFiles = "installShellFiles";
  };
  inherit (package.passthru) library packages;
  names = map (one: one.pname);
in
{
  inherit (package) pname version installPhase src;
  inherit (package.meta) description platforms;
  library = {
    inherit (library) version cargoDeps cargoRoot buildPhase src;
    dependencies = names library.dependencies;
  };
  packages = lib.mapAttrs (_: one: {
    inherit (one) version src;
    dependencies = names one.dependencies;
  }) packages;
}
