//! From what is known of an ended job to what is said of it; pure.

use rustix::io::Errno;

use crate::cgroup::Shortage;
use crate::child::{Ended, Report, Step};
use crate::protocol::Reason;

/// What is known of a job that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Why this launcher ended it, if it did.
    pub ended_for: Option<Reason>,
    /// The job's timeout, for the message.
    pub timeout_s: Option<f64>,
    /// The silence on its own descriptor that it was ended for, if it was.
    pub silence_s: Option<f64>,
    /// What its first process reported, if it could.
    pub report: Option<Report>,
    /// Its limits, as far as an end can tell of them.
    pub bounds: Bounds,
    /// What there was too little memory in when the kernel killed in its cgroup, if it did.
    pub out_of_memory: Option<Shortage>,
    /// Whether its cgroup refused a process.
    pub out_of_pids: bool,
    /// Name of its program.
    pub program: &'a str,
    /// Its working directory.
    pub working_directory: &'a str,
}

/// Limits of which one is to be named if it was the reason of the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Of stdout and stderr together.
    pub output_bytes: u64,
    /// Of its memory file system.
    pub tmp_bytes: u64,
    /// Of each file.
    pub file_bytes: Option<u64>,
    /// Seconds of CPU of each process.
    pub cpu_s: Option<u64>,
}

impl Evidence<'_> {
    /// Evidence of nothing but the report.
    #[must_use]
    pub const fn of_report(report: Option<Report>) -> Self {
        Self {
            ended_for: None,
            timeout_s: None,
            silence_s: None,
            report,
            bounds: Bounds {
                output_bytes: 0,
                tmp_bytes: 0,
                file_bytes: None,
                cpu_s: None,
            },
            out_of_memory: None,
            out_of_pids: false,
            program: "",
            working_directory: "",
        }
    }
}

/// What is said of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    pub reason: Option<Reason>,
    pub message: Option<String>,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
}

/// Judges how a job ended.
#[must_use]
pub fn judge(evidence: &Evidence<'_>) -> Verdict {
    let (exit_code, signal) = match evidence.report {
        Some(Report::Ended(Ended { status, .. })) if libc::WIFSIGNALED(status) => (None, Some(libc::WTERMSIG(status))),
        Some(Report::Ended(Ended { status, .. })) => (Some(libc::WEXITSTATUS(status)), None),
        Some(Report::Failed(..)) => (None, None),
        None => (None, Some(libc::SIGKILL)),
    };
    let (reason, message) = match (evidence.ended_for, evidence.report) {
        (Some(reason), _) => (Some(reason), Some(words_of_end(reason, evidence))),
        (None, Some(Report::Failed(step, errno))) => {
            let (reason, message) = failure(step, errno, evidence);
            (Some(reason), Some(message))
        }
        (None, _) if exit_code == Some(0) => (None, None),
        (None, report) => {
            let ended = match report {
                Some(Report::Ended(ended)) => Some(ended),
                _ => None,
            };
            let (reason, message) = limit_reached(evidence, exit_code, signal, ended)
                .unwrap_or_else(|| own_end(exit_code, signal, ended.is_some()));
            (Some(reason), Some(message))
        }
    };
    Verdict {
        reason,
        message,
        exit_code,
        signal,
    }
}

fn words_of_end(reason: Reason, evidence: &Evidence<'_>) -> String {
    match (reason, evidence.silence_s, evidence.timeout_s) {
        (Reason::Timeout, Some(silence_s), _) => format!("no heartbeat for {silence_s} s"),
        (Reason::Timeout, None, Some(timeout_s)) => format!("ran longer than its timeout of {timeout_s} s"),
        (Reason::OutputLimit, ..) => format!(
            "wrote more output than its limit of {} bytes",
            evidence.bounds.output_bytes
        ),
        (Reason::Deadline, ..) => "its deadline passed".into(),
        (Reason::WorkerLost, ..) => "its worker lost the node".into(),
        _ => "cancelled".into(),
    }
}

/// The limit that a job which failed had reached, if there is one.
fn limit_reached(
    evidence: &Evidence<'_>,
    exit_code: Option<i32>,
    signal: Option<i32>,
    ended: Option<Ended>,
) -> Option<(Reason, String)> {
    let bounds = &evidence.bounds;
    match evidence.out_of_memory {
        Some(Shortage::Own) => return Some((Reason::Oom, "used more memory than its limit".into())),
        Some(Shortage::Around) => {
            let message = "the kernel ended it because the machine, or its workers together, ran out of memory";
            return Some((Reason::Oom, message.into()));
        }
        None => {}
    }
    if evidence.out_of_pids {
        return Some((Reason::PidsLimit, "had more processes than its limit".into()));
    }
    if let Some(cpu_s) = bounds.cpu_s
        && has_used_up(cpu_s, exit_code, signal, ended)
    {
        return Some((
            Reason::CpuLimit,
            format!("used more CPU time than its limit of {cpu_s} s"),
        ));
    }
    if let Some(file_bytes) = bounds.file_bytes
        && signal == Some(libc::SIGXFSZ)
    {
        let message = format!("wrote a file larger than its limit of {file_bytes} bytes");
        return Some((Reason::DiskLimit, message));
    }
    ended.filter(|ended| ended.scratch_is_full).map(|_| {
        let message = format!(
            "its file system was full: /work, /tmp and /dev/shm have {} bytes together",
            bounds.tmp_bytes
        );
        (Reason::DiskLimit, message)
    })
}

/// Whether the kernel ended the job's main process, or one that its shell waited for, for its limit of CPU time: by a
/// signal that it may also have sent itself, so that what it used has a say.
fn has_used_up(cpu_s: u64, exit_code: Option<i32>, signal: Option<i32>, ended: Option<Ended>) -> bool {
    let used_us = ended.map_or(0, |ended| ended.usage.user_us + ended.usage.system_us);
    let limit_us = cpu_s.saturating_mul(1_000_000);
    match (signal, exit_code) {
        (Some(libc::SIGXCPU), _) => true,
        // It had a handler, and went on.
        (Some(libc::SIGKILL), _) => used_us >= limit_us,
        // The limit is kept by the ticks of the kernel's clock, which may count more than was used.
        (None, Some(code)) => code == SHELL_SIGNAL + libc::SIGXCPU && used_us >= limit_us / 2,
        _ => false,
    }
}

/// What a shell adds to the number of the signal that ended what it ran.
const SHELL_SIGNAL: i32 = 128;

fn own_end(exit_code: Option<i32>, signal: Option<i32>, was_reported: bool) -> (Reason, String) {
    match (exit_code, signal) {
        _ if !was_reported => (Reason::Signal, "killed from outside of the sandbox".into()),
        (_, Some(signal)) => (
            Reason::Signal,
            format!("ended by signal {signal}{}", signal_hint(signal)),
        ),
        (code, None) => {
            let code = code.unwrap_or_default();
            let hint = match code - SHELL_SIGNAL {
                libc::SIGXFSZ => ", as a shell does of a process that wrote a file larger than its limit",
                _ => "",
            };
            (Reason::ExitCode, format!("exited with code {code}{hint}"))
        }
    }
}

fn signal_hint(signal: i32) -> &'static str {
    match signal {
        libc::SIGSYS => ": made a system call of a foreign architecture",
        _ => "",
    }
}

fn failure(step: Step, errno: Errno, evidence: &Evidence<'_>) -> (Reason, String) {
    let errno = errno_words(errno);
    match step {
        Step::Execute => (Reason::SpawnFailed, format!("{errno}: {}", evidence.program)),
        Step::WorkingDirectory => (
            Reason::SpawnFailed,
            format!("working directory: {errno}: {}", evidence.working_directory),
        ),
        Step::Files | Step::Limits | Step::Fork => (Reason::SpawnFailed, format!("{}: {errno}", step.words())),
        step => (Reason::SandboxUnavailable, format!("{}: {errno}", step.words())),
    }
}

/// The C library's words for an error, to stand inside a sentence.
#[must_use]
pub fn errno_words(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syscall::Usage;

    const NOTHING: Evidence<'static> = Evidence {
        ended_for: None,
        timeout_s: None,
        silence_s: None,
        report: None,
        bounds: Bounds {
            output_bytes: 10,
            tmp_bytes: 4096,
            file_bytes: Some(100),
            cpu_s: Some(2),
        },
        out_of_memory: None,
        out_of_pids: false,
        program: "foo",
        working_directory: "/work",
    };

    fn ended(status: i32) -> Report {
        Report::Ended(Ended {
            status,
            ..Ended::default()
        })
    }

    fn of(report: Report) -> Verdict {
        judge(&Evidence {
            report: Some(report),
            ..NOTHING
        })
    }

    #[test]
    fn own_exit_137_is_not_our_kill() {
        let own = of(ended(137 << 8));
        assert_eq!(
            (own.reason, own.exit_code, own.signal),
            (Some(Reason::ExitCode), Some(137), None)
        );
        let cancelled = judge(&Evidence {
            ended_for: Some(Reason::Cancelled),
            ..NOTHING
        });
        assert_eq!(
            (cancelled.reason, cancelled.exit_code, cancelled.signal),
            (Some(Reason::Cancelled), None, Some(9))
        );
        let outside = judge(&NOTHING);
        assert_eq!((outside.reason, outside.signal), (Some(Reason::Signal), Some(9)));
    }

    #[test]
    fn success_has_no_reason() {
        let verdict = of(ended(0));
        assert_eq!(
            verdict,
            Verdict {
                reason: None,
                message: None,
                exit_code: Some(0),
                signal: None
            }
        );
    }

    #[test]
    fn a_job_that_answers_sigterm_with_success_was_ended_all_the_same() {
        let timed_out = Evidence {
            ended_for: Some(Reason::Timeout),
            timeout_s: Some(1.5),
            ..NOTHING
        };
        let verdict = judge(&Evidence {
            report: Some(ended(0)),
            ..timed_out
        });
        assert_eq!((verdict.reason, verdict.exit_code), (Some(Reason::Timeout), Some(0)));
        assert_eq!(verdict.message.as_deref(), Some("ran longer than its timeout of 1.5 s"));
        let silent = judge(&Evidence {
            silence_s: Some(0.5),
            ..timed_out
        });
        assert_eq!(silent.reason, Some(Reason::Timeout));
        assert_eq!(silent.message.as_deref(), Some("no heartbeat for 0.5 s"));
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let verdict = of(Report::Failed(Step::Execute, Errno::NOENT));
        assert_eq!(verdict.reason, Some(Reason::SpawnFailed));
        assert_eq!(verdict.message.as_deref(), Some("no such file or directory: foo"));
    }

    #[test]
    fn a_wall_that_could_not_be_built_is_the_sandbox_s_failure() {
        let verdict = of(Report::Failed(Step::Seccomp, Errno::INVAL));
        assert_eq!(verdict.reason, Some(Reason::SandboxUnavailable));
        assert_eq!(
            verdict.message.as_deref(),
            Some("install the seccomp filter: invalid argument")
        );
    }

    #[test]
    fn limits_of_the_cgroup_explain_a_failure_but_not_a_success() {
        let killed = Evidence {
            out_of_memory: Some(Shortage::Own),
            report: Some(ended(9)),
            ..NOTHING
        };
        assert_eq!(judge(&killed).reason, Some(Reason::Oom));
        assert_eq!(
            judge(&Evidence {
                report: Some(ended(0)),
                ..killed
            })
            .reason,
            None
        );
        let refused = Evidence {
            out_of_pids: true,
            report: Some(ended(1 << 8)),
            ..NOTHING
        };
        assert_eq!(judge(&refused).reason, Some(Reason::PidsLimit));
    }

    fn used(status: i32, cpu_us: u64) -> Verdict {
        let usage = Usage {
            user_us: cpu_us,
            ..Usage::default()
        };
        of(Report::Ended(Ended {
            status,
            usage,
            scratch_is_full: false,
        }))
    }

    #[test]
    fn the_limit_of_cpu_time_is_told_from_a_signal_of_the_job_s_own() {
        let by_signal = used(libc::SIGXCPU, 2_000_000);
        assert_eq!(
            (by_signal.reason, by_signal.signal),
            (Some(Reason::CpuLimit), Some(libc::SIGXCPU))
        );
        assert_eq!(
            by_signal.message.as_deref(),
            Some("used more CPU time than its limit of 2 s")
        );
        assert_eq!(used(libc::SIGKILL, 3_000_000).reason, Some(Reason::CpuLimit));
        assert_eq!(used(libc::SIGKILL, 1_000_000).reason, Some(Reason::Signal));
        assert_eq!(
            used((128 + libc::SIGXCPU) << 8, 1_900_000).reason,
            Some(Reason::CpuLimit)
        );
        assert_eq!(used((128 + libc::SIGXCPU) << 8, 10_000).reason, Some(Reason::ExitCode));
        assert_eq!(
            used((128 + libc::SIGKILL) << 8, 3_000_000).reason,
            Some(Reason::ExitCode)
        );
    }

    #[test]
    fn a_file_system_that_is_full_explains_a_failure_but_not_a_success() {
        let full = |status| {
            of(Report::Ended(Ended {
                status,
                scratch_is_full: true,
                ..Ended::default()
            }))
        };
        assert_eq!(full(1 << 8).reason, Some(Reason::DiskLimit));
        assert_eq!(full(libc::SIGBUS).reason, Some(Reason::DiskLimit));
        assert_eq!(full(0).reason, None);
        assert_eq!(of(ended(libc::SIGXFSZ)).reason, Some(Reason::DiskLimit));
        let by_shell = of(ended((128 + libc::SIGXFSZ) << 8));
        assert_eq!(by_shell.reason, Some(Reason::ExitCode));
        assert!(by_shell.message.unwrap().contains("larger than its limit"));
    }

    #[test]
    fn too_much_output_fails_a_job_that_succeeded_otherwise() {
        let verdict = judge(&Evidence {
            ended_for: Some(Reason::OutputLimit),
            report: Some(ended(0)),
            ..NOTHING
        });
        assert_eq!(
            (verdict.reason, verdict.exit_code),
            (Some(Reason::OutputLimit), Some(0))
        );
        assert_eq!(
            verdict.message.as_deref(),
            Some("wrote more output than its limit of 10 bytes")
        );
    }

    #[test]
    fn a_machine_without_memory_is_not_the_job_s_limit() {
        let verdict = judge(&Evidence {
            out_of_memory: Some(Shortage::Around),
            ..NOTHING
        });
        assert_eq!(verdict.reason, Some(Reason::Oom));
        assert!(verdict.message.unwrap().contains("machine"));
    }
}
