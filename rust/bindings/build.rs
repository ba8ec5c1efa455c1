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
            "rustc",
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
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        // Each job's first process is a copy of it: what it has not need not be copied.
        .envs([
            ("CARGO_PROFILE_RELEASE_LTO", "fat"),
            ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
            ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
        ]);
    let mut program = directory;
    if target != host {
        cargo.args(["--target", &target]);
        program.push(target);
    } else if has_static_libc() {
        cargo.args(["--", "-C", "target-feature=+crt-static"]);
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "building the launcher: {status}");
    println!(
        "cargo::rustc-env=JOBS_LAUNCHER={}",
        program.join("release/jobs-launcher").display()
    );
}

/// Whether the host's C library can be linked into a program: without libraries of its own the launcher has half of the
/// mappings, which every start of a job copies and every end takes down.
fn has_static_libc() -> bool {
    let asked = Command::new("cc").arg("-print-file-name=libc.a").output();
    // A name that the compiler does not find comes back as it was.
    asked.is_ok_and(|told| Path::new(String::from_utf8_lossy(&told.stdout).trim()).is_absolute())
}
