# Jobs with its commands, units and documents. The Rust crates are those of rust/Cargo.lock and the Python packages the
# files of python/requirements.lock (nix/wheels.json names them): the versions that the project's tests run with. DataFusion
# has to be of one release with the crate that hands tables over to it, so nixpkgs' own would not do.
{
  lib,
  stdenv,
  python313,
  rustPlatform,
  cargo,
  rustc,
  maturin,
  autoPatchelfHook,
  installShellFiles,
}:

let
  inherit (python313.pkgs) buildPythonPackage fetchPypi;
  inherit (stdenv.hostPlatform) system;

  project = (lib.importTOML ../pyproject.toml).project;
  locked = lib.importJSON ./wheels.json;

  packages = lib.mapAttrs (
    name: entry:
    let
      file = entry.files.${system} or (throw "jobs: ${name} has no file for ${system} in nix/wheels.json");
      isWheel = file.format == "wheel";
    in
    buildPythonPackage (
      {
        pname = name;
        inherit (file) version;
        src = fetchPypi file;
        dependencies = map (needed: packages.${needed}) entry.needs;
        doCheck = false;
      }
      // (
        if isWheel then
          {
            format = "wheel";
            nativeBuildInputs = [ autoPatchelfHook ];
            buildInputs = [ stdenv.cc.cc.lib ];
          }
        else
          {
            pyproject = true;
            build-system = [ python313.pkgs.setuptools ];
          }
      )
    )
  ) locked.packages;

  library = buildPythonPackage {
    pname = "jobs";
    inherit (project) version;
    pyproject = true;

    src = lib.fileset.toSource {
      root = ../.;
      fileset = lib.fileset.unions [
        ../pyproject.toml
        ../README.md
        ../LICENSE
        (lib.fileset.fileFilter (file: !file.hasExt "so") ../python)
        (lib.fileset.difference ../rust (lib.fileset.maybeMissing ../rust/target))
        # python/jobs/systemd is links to it.
        ../systemd
      ];
    };

    cargoRoot = "rust";
    cargoDeps = rustPlatform.importCargoLock { lockFile = ../rust/Cargo.lock; };
    nativeBuildInputs = [
      rustPlatform.cargoSetupHook
      cargo
      rustc
      maturin
    ];
    buildPhase = ''
      runHook preBuild
      maturin build --release --frozen --strip --manylinux off --interpreter ${python313.interpreter} \
        --jobs "$NIX_BUILD_CORES" --out dist
      runHook postBuild
    '';

    dependencies = map (name: packages.${name}) locked.direct;
    doCheck = false;
    pythonImportsCheck = [
      "jobs"
      "jobs._native"
    ];
  };

  # Workers start processes of the same Python: it has to be one that finds all of this by itself.
  env = python313.withPackages (_: [ library ]);
in
stdenv.mkDerivation {
  pname = "jobs";
  inherit (project) version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../docs
      ../systemd
      ./install-units.sh
    ];
  };
  nativeBuildInputs = [ installShellFiles ];
  dontConfigure = true;
  dontBuild = true;

  installPhase = ''
    runHook preInstall
    mkdir -p "$out/bin"
    for command in ${lib.concatStringsSep " " (lib.attrNames project.scripts)}; do
      ln -s "${env}/bin/$command" "$out/bin/$command"
    done
    bash nix/install-units.sh . "$out"
    for shell in bash zsh; do
      "$out/bin/jobctl" completion "$shell" > "jobctl.$shell"
    done
    installShellCompletion --bash --name jobctl.bash jobctl.bash --zsh --name _jobctl jobctl.zsh
    runHook postInstall
  '';

  doInstallCheck = true;
  installCheckPhase = ''
    runHook preInstallCheck
    "$out/bin/jobctl" --version | grep -F "jobctl ${project.version}"
    "$out/bin/jobs-node" check-config systemd/node.toml
    runHook postInstallCheck
  '';

  passthru = { inherit env library packages; };

  meta = {
    inherit (project) description;
    license = lib.licenses.asl20;
    mainProgram = "jobctl";
    platforms = lib.attrNames (lib.head (lib.attrValues locked.packages)).files;
  };
}
