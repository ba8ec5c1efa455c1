//! The launcher: `jobs-launcher CONTROL_FD NAME`. Started by `jobs.workers.sandbox.Launcher`, which holds the other end
//! of the socket `CONTROL_FD`; `NAME` is what its processes are called. `jobs-launcher --filter` writes jobs' filter of
//! system calls as other sandboxes read it (`bwrap --seccomp`).

use std::io::{self, Write};
use std::process::ExitCode;

use jobs_sandbox::{launcher, seccomp};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if arguments == ["--filter"] {
        let written = io::stdout().write_all(&seccomp::to_bytes());
        return written.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let [control, name] = arguments.as_slice() else {
        eprintln!("usage: jobs-launcher CONTROL_FD NAME, or jobs-launcher --filter");
        return ExitCode::from(2);
    };
    let served = control
        .parse()
        .map_err(|error| format!("CONTROL_FD: {error}"))
        .and_then(|control| launcher::serve(control, name).map_err(|error| error.to_string()));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("jobs sandbox launcher: {error}");
            ExitCode::FAILURE
        }
    }
}
