//! From what is known of an ended job to what is said of it; pure.

use rustix::io::Errno;

use crate::child::{Report, Step};
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
    /// Whether the kernel killed for lack of memory in its cgroup.
    pub out_of_memory: bool,
    /// Whether its cgroup refused a process.
    pub out_of_pids: bool,
    /// Name of its program.
    pub program: &'a str,
    /// Its working directory.
    pub working_directory: &'a str,
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
            out_of_memory: false,
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
        Some(Report::Ended(status, _)) if libc::WIFSIGNALED(status) => (None, Some(libc::WTERMSIG(status))),
        Some(Report::Ended(status, _)) => (Some(libc::WEXITSTATUS(status)), None),
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
        (None, _) if evidence.out_of_memory => (Some(Reason::Oom), Some("used more memory than its limit".into())),
        (None, _) if evidence.out_of_pids => (
            Some(Reason::PidsLimit),
            Some("had more processes than its limit".into()),
        ),
        (None, Some(_)) => match (exit_code, signal) {
            (_, Some(signal)) => (
                Some(Reason::Signal),
                Some(format!("ended by signal {signal}{}", signal_hint(signal))),
            ),
            (code, None) => (
                Some(Reason::ExitCode),
                code.map(|code| format!("exited with code {code}")),
            ),
        },
        (None, None) => (Some(Reason::Signal), Some("killed from outside of the sandbox".into())),
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
        (Reason::Deadline, ..) => "its deadline passed".into(),
        (Reason::WorkerLost, ..) => "its worker lost the node".into(),
        _ => "cancelled".into(),
    }
}

fn signal_hint(signal: i32) -> &'static str {
    match signal {
        libc::SIGXCPU => ": used more CPU time than its limit",
        libc::SIGXFSZ => ": wrote a file larger than its limit",
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
        out_of_memory: false,
        out_of_pids: false,
        program: "foo",
        working_directory: "/work",
    };

    fn ended(status: i32) -> Report {
        Report::Ended(status, Usage::default())
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
            out_of_memory: true,
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
}
