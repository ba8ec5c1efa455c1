//! One running job in the launcher: its pipes, its clock and its end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::fstat;
use rustix::io::{Errno, read};
use rustix::process::{Signal, pidfd_send_signal};
use serde_bytes::ByteBuf;

use crate::bare;
use crate::cgroup::JobCgroup;
use crate::child::{Ended, Report};
use crate::netns::Network;
use crate::notes::Notes;
use crate::outcome::{Bounds, Evidence, judge};
use crate::output::{Output, Stream};
use crate::plan::Plan;
use crate::protocol::{Event, Level, Outcome, Reason, RootKind, Secret, Spawn, encode};
use crate::redact::{Patterns, Redactor};
use crate::spawn::Process;
use crate::syscall::{self, Usage};

/// Pipes of a job, by their place in [`Process::pipes`].
pub const PIPES: usize = 3;
/// The one that carries notes.
pub const NOTES: usize = 2;
const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];
/// Notes are put off while this much waits for the worker: unlike output they are not bounded by its acknowledgements.
const BACKLOG_BYTES: usize = 1 << 20;
/// Reads of the notes that a job has left at its end: as much as the kernel lets it make its pipe hold.
const LAST_NOTES_READS: usize = 64;
const NEVER: Duration = Duration::from_secs(1 << 32);

/// Why and when a job is ended.
#[derive(Clone, Copy, Debug)]
struct Ending {
    reason: Reason,
    for_silence: bool,
    kill_at: Option<Instant>,
}

/// What came of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Something; there may be more.
    More,
    /// Nothing for now.
    Nothing,
    /// Nothing ever again.
    Ended,
}

/// A job that has been started.
pub struct Job {
    id: String,
    attempt: u32,
    program: String,
    working_directory: String,
    level: Level,
    root: Option<RootKind>,
    process: Process,
    output: Output,
    notes: Notes,
    redaction: Option<Redaction>,
    announced: bool,
    started: Instant,
    started_ms: u64,
    timeout_s: Option<f64>,
    timeout_at: Option<Instant>,
    heartbeat_s: Option<f64>,
    silent_at: Option<Instant>,
    grace: Duration,
    bounds: Bounds,
    fail_on_output_limit: bool,
    ending: Option<Ending>,
}

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A duration from outside: negative ones and what is no number are none, endless ones very long.
fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0))
        .unwrap_or(NEVER)
        .min(NEVER)
}

/// What hides a job's secrets in what it writes.
struct Redaction {
    patterns: Rc<Patterns>,
    streams: [Redactor; STREAMS.len()],
}

impl Redaction {
    fn of(spawn: &Spawn) -> Option<Self> {
        let patterns = Patterns::new(spawn.secrets.values().map(Secret::value))?;
        let streams = STREAMS.map(|_| Redactor::new(&patterns));
        Some(Self { patterns, streams })
    }

    fn stream(&mut self, stream: Stream) -> &mut Redactor {
        &mut self.streams[stream as usize - 1]
    }
}

/// Names what is run, and where it is looked for when that is not the host.
fn program_of(spawn: &Spawn) -> String {
    let name = spawn.argv.first().map_or("/bin/sh", String::as_str);
    if spawn.root.is_none() {
        name.into()
    } else {
        format!("{name}, or what it needs to be run, in its root image")
    }
}

impl Job {
    /// Takes charge of a process that was started at `started` for `spawn`.
    #[must_use]
    pub fn new(spawn: &Spawn, plan: &Plan, process: Process, window_bytes: usize, started: Instant) -> Self {
        Self {
            id: spawn.job.clone(),
            attempt: spawn.attempt,
            program: program_of(spawn),
            working_directory: plan.working_directory.to_string_lossy().into_owned(),
            level: plan.level,
            root: plan.root.as_ref().map(|root| {
                if root.is_writable {
                    RootKind::Writable
                } else {
                    RootKind::ReadOnly
                }
            }),
            process,
            output: Output::new(spawn.limits.output_bytes, window_bytes),
            notes: Notes::default(),
            redaction: Redaction::of(spawn),
            announced: false,
            started,
            started_ms: unix_ms(),
            timeout_s: spawn.timeout_s,
            timeout_at: spawn.timeout_s.map(|timeout_s| started + duration(timeout_s)),
            heartbeat_s: spawn.heartbeat_s,
            silent_at: spawn.heartbeat_s.map(|heartbeat_s| started + duration(heartbeat_s)),
            grace: duration(spawn.grace_s),
            bounds: Bounds {
                output_bytes: spawn.limits.output_bytes,
                tmp_bytes: spawn.limits.tmp_bytes,
                file_bytes: spawn.limits.file_bytes,
                cpu_s: spawn.limits.cpu_s,
            },
            fail_on_output_limit: spawn.fail_on_output_limit,
            ending: None,
        }
    }

    /// Whether this is the attempt of the job.
    #[must_use]
    pub fn is(&self, id: &str, attempt: u32) -> bool {
        self.id == id && self.attempt == attempt
    }

    /// Readable once the first process has reported, after which nothing of the job runs.
    #[must_use]
    pub fn report_pipe(&self) -> BorrowedFd<'_> {
        self.process.report.as_fd()
    }

    /// Readable once nothing of the job runs any more, not even its first process.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.pidfd.as_fd()
    }

    /// Our end of stdout (0), stderr (1) or the notes (2), while the job holds the other.
    #[must_use]
    pub fn pipe(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.process.pipes[index].as_ref().map(AsFd::as_fd)
    }

    /// How many bytes may be read from the pipe now.
    #[must_use]
    pub fn room(&self, index: usize) -> usize {
        if index == NOTES {
            self.notes.room()
        } else {
            self.output.room()
        }
    }

    /// Notes that `count` bytes of output are safe.
    pub fn acknowledge(&mut self, count: usize) {
        self.output.acknowledge(count);
    }

    /// Reads once from a pipe.
    pub fn read_pipe(&mut self, index: usize, buffer: &mut [u8], now: Instant) -> Reading {
        let Some(pipe) = &self.process.pipes[index] else {
            return Reading::Ended;
        };
        match read(pipe, &mut *buffer) {
            Ok(count) if count > 0 => {
                match STREAMS.get(index) {
                    Some(stream) => self.take_output(*stream, &buffer[..count], now),
                    None => self.take_note(&buffer[..count], now),
                }
                Reading::More
            }
            Err(Errno::AGAIN | Errno::INTR) => Reading::Nothing,
            Ok(_) | Err(_) => Reading::Ended,
        }
    }

    fn take_output(&mut self, stream: Stream, bytes: &[u8], now: Instant) {
        match &mut self.redaction {
            None => self.output.push(stream, bytes, now),
            Some(redaction) => {
                let told = redaction.stream(stream).push(bytes);
                self.output.push(stream, &told, now);
            }
        }
        self.end_if_over(now);
    }

    /// Takes what was held back of a stream of which nothing comes any more.
    fn end_output(&mut self, index: usize, now: Instant) {
        if let (Some(redaction), Some(stream)) = (&mut self.redaction, STREAMS.get(index)) {
            let told = redaction.stream(*stream).finish();
            self.output.push(*stream, &told, now);
            self.end_if_over(now);
        }
    }

    fn end_if_over(&mut self, now: Instant) {
        if self.fail_on_output_limit && self.output.is_over() {
            self.end(Reason::OutputLimit, false, now);
        }
    }

    fn take_note(&mut self, bytes: &[u8], now: Instant) {
        if self.notes.push(bytes, now) {
            self.silent_at = self.heartbeat_s.map(|heartbeat_s| now + duration(heartbeat_s));
        }
    }

    /// Closes our end of a pipe.
    pub fn close_pipe(&mut self, index: usize, now: Instant) {
        self.end_output(index, now);
        self.process.pipes[index] = None;
    }

    /// When [`Self::on_time`] has to be called next.
    #[must_use]
    pub fn next_time(&self) -> Option<Instant> {
        let announce_at = (!self.announced).then(|| self.started + crate::output::FLUSH_AFTER);
        let end_at = match self.ending {
            None => [self.timeout_at, self.silence_at()].into_iter().flatten().min(),
            Some(ending) => ending.kill_at,
        };
        [announce_at, end_at, self.output.flush_at(), self.notes.flush_at()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due: flush, timeout, kill.
    pub fn on_time(&mut self, now: Instant, buffer: &mut [u8], outbox: &mut Vec<u8>) {
        if !self.announced && now >= self.started + crate::output::FLUSH_AFTER {
            self.announce(outbox);
        }
        if self.flush_is_due(now) {
            self.flush(outbox);
        }
        if self.notes.flush_at().is_some_and(|at| at <= now) {
            if outbox.len() < BACKLOG_BYTES {
                self.flush_notes(outbox);
            } else {
                self.notes.put_off(now);
            }
        }
        match self.ending {
            None if self.timeout_at.is_some_and(|at| at <= now) => self.end(Reason::Timeout, false, now),
            None if self.silence_at().is_some_and(|at| at <= now) => {
                // What it has said and we have not read counts: it may be us who were held up.
                let room = self.notes.room().min(buffer.len());
                self.read_pipe(NOTES, &mut buffer[..room], now);
                if self.silent_at.is_some_and(|at| at <= now) {
                    self.end(Reason::Timeout, false, now);
                    self.ending = self.ending.map(|ending| Ending {
                        for_silence: true,
                        ..ending
                    });
                }
            }
            Some(Ending { kill_at: Some(at), .. }) if at <= now => self.kill(),
            _ => {}
        }
    }

    /// When its silence is judged: not while more of its notes may not be read.
    fn silence_at(&self) -> Option<Instant> {
        let may_read_at = self.notes.flush_at().filter(|_| self.notes.room() == 0);
        self.silent_at
            .map(|at| may_read_at.map_or(at, |may_read_at| at.max(may_read_at)))
    }

    /// Ends the job for `reason`: SIGTERM and after its grace SIGKILL, or SIGKILL `at_once`. The first reason stands; a
    /// later call can only hasten the end.
    pub fn end(&mut self, reason: Reason, at_once: bool, now: Instant) {
        let first = self.ending.is_none();
        if first {
            self.ending = Some(Ending {
                reason,
                for_silence: false,
                kill_at: Some(now + self.grace),
            });
        }
        if at_once || self.grace.is_zero() {
            self.kill();
        } else if first {
            // The namespace's first process passes it on to all others.
            let _ = pidfd_send_signal(&self.process.pidfd, Signal::TERM);
        }
    }

    /// Kills everything of the job. Its end is seen by the pidfd.
    pub fn kill(&mut self) {
        if let Some(ending) = &mut self.ending {
            ending.kill_at = None;
        }
        if self.level == Level::None {
            bare::end(self.pidfd());
        } else {
            let _ = pidfd_send_signal(&self.process.pidfd, Signal::KILL);
        }
        if let Some(cgroup) = &self.process.cgroup {
            cgroup.kill();
        }
    }

    /// Of its first process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid.as_raw_nonzero().get()
    }

    fn announce(&mut self, outbox: &mut Vec<u8>) {
        self.announced = true;
        encode(
            &Event::Started {
                job: &self.id,
                attempt: self.attempt,
                pid: self.pid(),
                started_ms: self.started_ms,
            },
            outbox,
        );
    }

    /// Whether output has to be sent now.
    #[must_use]
    pub fn flush_is_due(&self, now: Instant) -> bool {
        self.output.flush_at().is_some_and(|at| at <= now)
    }

    /// Sends what output there is.
    pub fn flush(&mut self, outbox: &mut Vec<u8>) {
        let segments = self.output.segments();
        encode(
            &Event::Output {
                job: &self.id,
                attempt: self.attempt,
                segments,
            },
            outbox,
        );
        self.output.sent();
    }

    /// Sends what notes there are.
    fn flush_notes(&mut self, outbox: &mut Vec<u8>) {
        if let Some(lines) = self.notes.take() {
            let lines = match &self.redaction {
                None => lines,
                Some(redaction) => redaction.patterns.redact(&lines),
            };
            encode(
                &Event::Notes {
                    job: &self.id,
                    attempt: self.attempt,
                    lines: ByteBuf::from(lines),
                },
                outbox,
            );
        }
    }

    /// Reads what is left in the pipes, judges the end and reports it; nothing of the job runs any more. `usage` counts
    /// where the first process could not report one. What is returned is that process on its way out, and the file system
    /// that the worker is to be given.
    pub fn finish(
        mut self,
        report: Option<Report>,
        usage: Usage,
        buffer: &mut [u8],
        now: Instant,
        outbox: &mut Vec<u8>,
    ) -> (Leaving, Option<OwnedFd>) {
        for index in 0..STREAMS.len() {
            while self.read_pipe(index, buffer, now) == Reading::More {
                if self.flush_is_due(now) {
                    self.flush(outbox);
                }
            }
            self.end_output(index, now);
        }
        let mut reads = 0;
        while reads < LAST_NOTES_READS && self.read_pipe(NOTES, buffer, now) == Reading::More {
            reads += 1;
        }
        self.flush_notes(outbox);
        let outcome = self.outcome(report, usage, now);
        let kept = self.process.kept.as_ref();
        let kept = kept
            .and_then(|directory| fstat(directory).ok())
            .map(|status| (status.st_dev, status.st_ino));
        let (job, attempt, segments) = (self.id.as_str(), self.attempt, self.output.segments());
        encode(
            &Event::Exited {
                job,
                attempt,
                outcome,
                segments,
                kept,
            },
            outbox,
        );
        if let Some(directory) = &self.process.directory {
            bare::reclaim(directory.as_fd());
        }
        let leaving = Leaving {
            pidfd: self.process.pidfd,
            network: self.process.network,
            _cgroup: self.process.cgroup,
        };
        (leaving, self.process.kept)
    }

    fn outcome(&self, report: Option<Report>, usage: Usage, now: Instant) -> Outcome {
        let account = self.process.cgroup.as_ref().map(JobCgroup::account).unwrap_or_default();
        let usage = match (report, account.cpu_us) {
            (Some(Report::Ended(Ended { usage, .. })), _) => usage,
            // A first process that was killed has taken what it knew with it.
            (_, Some((user_us, system_us))) => Usage {
                user_us,
                system_us,
                ..usage
            },
            _ => usage,
        };
        let verdict = judge(&Evidence {
            ended_for: self.ending.map(|ending| ending.reason),
            timeout_s: self.timeout_s,
            silence_s: self.ending.filter(|ending| ending.for_silence).and(self.heartbeat_s),
            report,
            bounds: self.bounds,
            out_of_memory: account.out_of_memory,
            out_of_pids: account.out_of_pids,
            program: &self.program,
            working_directory: &self.working_directory,
        });
        let [stdout, stderr] = self.output.totals();
        Outcome {
            reason: verdict.reason,
            message: verdict.message,
            exit_code: verdict.exit_code,
            signal: verdict.signal,
            started_ms: self.started_ms,
            finished_ms: unix_ms(),
            wall_s: now.saturating_duration_since(self.started).as_secs_f64(),
            cpu_user_s: Duration::from_micros(usage.user_us).as_secs_f64(),
            cpu_system_s: Duration::from_micros(usage.system_us).as_secs_f64(),
            peak_memory_bytes: account.peak_bytes.unwrap_or(usage.peak_bytes),
            sandbox: self.level,
            stdout,
            stderr,
            root: self.root,
        }
    }

    /// What the first process has reported so far.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        self.process.read_report()
    }
}

/// The first process of a job that has ended, until it is reaped; its cgroup goes after it.
pub struct Leaving {
    pidfd: OwnedFd,
    network: Option<Network>,
    _cgroup: Option<JobCgroup>,
}

impl Leaving {
    /// Readable once it has gone.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits until it has gone, and reaps it.
    pub fn reap(&self) {
        let _ = syscall::wait_readable(self.pidfd()).and_then(|()| syscall::reap(self.pidfd()));
    }

    /// The job's network namespace, where another may have it once it has gone.
    #[must_use]
    pub fn into_network(self) -> Option<Network> {
        self.network
    }
}
