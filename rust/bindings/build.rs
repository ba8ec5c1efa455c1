//! Builds the launcher, which is carried in the extension: a wheel has one file of machine code, and a launcher that fits.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    // Asked for now, and not compiled in: two copies of this tree may share the directory of what is built.
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")).join("..");
    for input in ["sandbox/src", "sandbox/Cargo.toml", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed=../{input}");
    }
    let (host, target) = (variable("HOST"), variable("TARGET"));
    // Of its own: the directory of the build that runs this is locked by it.
    let directory = PathBuf::from(variable("OUT_DIR")).join("launcher");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args([
            "build",
            "--release",
            "--locked",
            "--quiet",
            "--package",
            "jobs-sandbox",
            "--bin",
            "jobs-launcher",
        ])
        .arg("--manifest-path")
        .arg(workspace.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&directory)
        // Clippy checks in the place of the compiler; here a program is needed.
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    let mut program = directory;
    if target != host {
        cargo.args(["--target", &target]);
        program.push(target);
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "building the launcher: {status}");
    println!(
        "cargo::rustc-env=JOBS_LAUNCHER={}",
        program.join("release/jobs-launcher").display()
    );
}
