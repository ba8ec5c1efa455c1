//! Starts, watches and ends isolated commands: a request becomes a plan (pure), the plan a process in its own world.
//!
//! [`launcher::serve`] is the body of the launcher process; see docs/sandbox.md for what isolates a job and how.

mod bare;
pub mod calls;
mod cgroup;
mod child;
pub mod confine;
mod copy;
mod error;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod host;
mod identity;
mod inherited;
mod job;
mod landlock;
pub mod launcher;
mod netns;
mod notes;
mod outcome;
mod output;
mod plan;
mod protocol;
mod redact;
mod relay;
mod root;
pub mod seccomp;
mod spawn;
mod startup;
mod syscall;
mod view;

pub use error::LauncherError;
pub use identity::give_up_capabilities;
