//! The launcher's loop: requests in, processes and pipes watched, events out. One thread; never blocks on a job.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::CString;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::{Errno, ioctl_fionbio, read};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
use rustix::thread::set_name;

use crate::bare;
use crate::child::Report;
use crate::error::{LauncherError, host, system};
use crate::job::{Job, Leaving, PIPES, Reading, unix_ms};
use crate::plan::{self, Means, Refusal};
use crate::protocol::{Decoder, End, Event, Outcome, Reason, Request, Spawn, StreamInfo, encode};
use crate::spawn::{Mode, Spawner};
use crate::startup::{Foundation, await_configuration};
use crate::syscall::{self, Usage};

const READ_BYTES: usize = 64 << 10;
const EVENTS_AT_ONCE: usize = 256;
const CONTROL: u64 = u64::MAX;
/// Bit of the tokens of processes whose jobs have ended.
const LEAVING: u64 = 1 << 63;
/// Bits of a token that name the source; those below are the job's pipes by their place.
const SOURCE_BITS: u32 = 3;
const SOURCE_MASK: u64 = (1 << SOURCE_BITS) - 1;
const SOURCE_REPORT: usize = PIPES;
const SOURCE_PROCESS: usize = PIPES + 1;

/// Serves the control socket `control_fd` until its other end is closed; every job has ended when this returns. The
/// process, which has one thread and no use for any other descriptor but the standard ones, and those that it starts
/// are called `name`.
///
/// # Errors
/// [`LauncherError`]; the worker has been told, and every job has ended.
pub fn serve(control_fd: i32, name: &str) -> Result<(), LauncherError> {
    match syscall::thread_count() {
        Ok(1) => {}
        Ok(count) => return Err(LauncherError::Threads(count)),
        Err(error) => return Err(host(format!("/proc: {error}"))),
    }
    let name = CString::new(name).map_err(|_| host("a NUL byte in the name"))?;
    set_name(&name).map_err(system("name the process"))?;
    let control = syscall::adopt_only(control_fd).map_err(system("control socket"))?;
    let mut decoder = Decoder::default();
    let Some(config) = await_configuration(&control, &mut decoder)? else {
        return Ok(());
    };
    let launcher = Foundation::lay(&config).and_then(|foundation| {
        Launcher::new(
            control.as_fd(),
            foundation,
            config.slots as usize,
            config.output_window_bytes,
        )
    });
    match launcher {
        Ok(mut launcher) => launcher.run(&mut decoder),
        Err(error) => {
            let mut frame = Vec::new();
            encode(
                &Event::Failed {
                    detail: error.to_string(),
                },
                &mut frame,
            );
            let _ = send(&control, &frame, SendFlags::NOSIGNAL);
            Err(error)
        }
    }
}

struct Launcher<'a> {
    control: BorrowedFd<'a>,
    epoll: OwnedFd,
    spawner: Spawner,
    means: Means,
    window_bytes: usize,
    jobs: Vec<Option<Job>>,
    watching: Vec<[bool; PIPES]>,
    leaving: BTreeMap<u64, Leaving>,
    left: u64,
    outbox: Vec<u8>,
    sent: usize,
    /// Descriptors that go with the outbox, each with the byte at this place of it.
    handles: VecDeque<(usize, OwnedFd)>,
    blocked: bool,
    buffer: Vec<u8>,
}

/// What an epoll event is about: a source of the job in a slot.
const fn token(slot: usize, source: usize) -> epoll::EventData {
    epoll::EventData::new_u64((slot as u64) << SOURCE_BITS | source as u64)
}

impl<'a> Launcher<'a> {
    fn new(
        control: BorrowedFd<'a>,
        foundation: Foundation,
        slots: usize,
        window_bytes: usize,
    ) -> Result<Self, LauncherError> {
        let Foundation {
            spawner,
            means,
            features,
        } = foundation;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(system("epoll"))?;
        ioctl_fionbio(control, true).map_err(system("control socket"))?;
        epoll::add(
            &epoll,
            control,
            epoll::EventData::new_u64(CONTROL),
            epoll::EventFlags::IN,
        )
        .map_err(system("epoll"))?;
        let mut outbox = Vec::new();
        encode(
            &Event::Ready {
                level: means.level,
                features,
            },
            &mut outbox,
        );
        Ok(Self {
            control,
            epoll,
            spawner,
            means,
            window_bytes,
            jobs: (0..slots).map(|_| None).collect(),
            watching: vec![[false; PIPES]; slots],
            leaving: BTreeMap::new(),
            left: 0,
            outbox,
            sent: 0,
            handles: VecDeque::new(),
            blocked: false,
            buffer: vec![0; READ_BYTES],
        })
    }

    fn run(&mut self, decoder: &mut Decoder) -> Result<(), LauncherError> {
        let result = self.serve_until_end(decoder);
        self.end_all();
        result
    }

    fn serve_until_end(&mut self, decoder: &mut Decoder) -> Result<(), LauncherError> {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        loop {
            if !self.send_outbox()? {
                return Ok(());
            }
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), self.timeout().as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(system("epoll")(errno)),
            }
            let now = Instant::now();
            let mut control_is_readable = false;
            for event in &events {
                match event.data.u64() {
                    CONTROL => control_is_readable = true,
                    token if token & LEAVING != 0 => self.on_left(token),
                    token => {
                        let source = (token & SOURCE_MASK) as usize;
                        self.on_job_event((token >> SOURCE_BITS) as usize, source, now);
                    }
                }
            }
            self.on_time(now);
            // Last: a slot that was freed above is not taken by another job while events of the old one are pending.
            if control_is_readable && !self.on_control(decoder)? {
                return Ok(());
            }
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let next = self.jobs.iter().flatten().filter_map(Job::next_time).min()?;
        let left = next.saturating_duration_since(Instant::now());
        // Rounded up to what the kernel waits in, so as not to wake a little early again and again.
        let left = Duration::from_millis(u64::try_from(left.as_millis()).unwrap_or(u64::MAX).saturating_add(1));
        Some(Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        })
    }

    fn on_job_event(&mut self, slot: usize, source: usize, now: Instant) {
        let Some(job) = self.jobs[slot].as_mut() else { return };
        match source {
            SOURCE_PROCESS => {
                let report = job.report();
                let usage = syscall::reap(job.pidfd()).unwrap_or_default();
                if report.is_none() {
                    self.end_orphans(slot);
                }
                if let Some(left) = self.finish(slot, report, usage, now) {
                    self.clear_up(left);
                }
            }
            SOURCE_REPORT => match job.report() {
                Some(report) => {
                    if let Some(leaving) = self.finish(slot, Some(report), Usage::default(), now) {
                        self.let_leave(leaving);
                    }
                }
                // Ended without a report: the pidfd tells the rest.
                None => {
                    let _ = epoll::delete(&self.epoll, job.report_pipe());
                }
            },
            index => {
                let room = job.room(index).min(READ_BYTES);
                if room > 0 && job.read_pipe(index, &mut self.buffer[..room], now) == Reading::Ended {
                    let _ = job.pipe(index).map(|pipe| epoll::delete(&self.epoll, pipe));
                    job.close_pipe(index, now);
                }
                if job.flush_is_due(now) {
                    job.flush(&mut self.outbox);
                }
                self.watch_pipes(slot);
            }
        }
    }

    /// Reports the end of the job and frees its slot.
    fn finish(&mut self, slot: usize, report: Option<Report>, usage: Usage, now: Instant) -> Option<Leaving> {
        let job = self.jobs[slot].take()?;
        self.unwatch(job.report_pipe());
        (0..PIPES)
            .filter_map(|index| job.pipe(index))
            .for_each(|pipe| self.unwatch(pipe));
        let start = self.outbox.len();
        let (leaving, kept) = job.finish(report, usage, &mut self.buffer, now, &mut self.outbox);
        self.handles.extend(kept.map(|kept| (start, kept)));
        Some(leaving)
    }

    /// Forgets a descriptor that is about to be closed. Closing alone would not do: a child that is just being started
    /// has a copy of it for a moment, which keeps the watch alive, and the slot's next job would be given its events.
    fn unwatch(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    fn on_left(&mut self, token: u64) {
        if let Some(left) = self.leaving.remove(&token) {
            left.reap();
            self.clear_up(left);
        }
    }

    /// Takes back what a job had whose first process has been reaped.
    fn clear_up(&mut self, left: Leaving) {
        self.unwatch(left.pidfd());
        if let Some(network) = left.into_network() {
            self.spawner.take_back(network);
        }
    }

    /// Keeps the first process of an ended job until it can be reaped.
    fn let_leave(&mut self, leaving: Leaving) {
        let token = LEAVING | self.left;
        self.left += 1;
        let watched = epoll::modify(
            &self.epoll,
            leaving.pidfd(),
            epoll::EventData::new_u64(token),
            epoll::EventFlags::IN,
        );
        match watched {
            Ok(()) => drop(self.leaving.insert(token, leaving)),
            Err(_) => leaving.reap(),
        }
    }

    fn on_time(&mut self, now: Instant) {
        for slot in 0..self.jobs.len() {
            let due = self.jobs[slot].as_mut();
            if let Some(job) = due.filter(|job| job.next_time().is_some_and(|at| at <= now)) {
                job.on_time(now, &mut self.buffer, &mut self.outbox);
                self.watch_pipes(slot);
            }
        }
    }

    /// Watches each of the job's pipes exactly while there is room for what it brings.
    fn watch_pipes(&mut self, slot: usize) {
        let Some(job) = &self.jobs[slot] else { return };
        for (index, watched) in self.watching[slot].iter_mut().enumerate() {
            let wanted = job.room(index) > 0;
            let Some(pipe) = job.pipe(index).filter(|_| wanted != *watched) else {
                continue;
            };
            *watched = wanted;
            // A watch that cannot be set leaves the pipe unread until the job's end, where it is read all the same.
            let _ = if wanted {
                epoll::add(&self.epoll, pipe, token(slot, index), epoll::EventFlags::IN)
            } else {
                epoll::delete(&self.epoll, pipe)
            };
        }
    }

    /// Returns false at the end of the worker.
    fn on_control(&mut self, decoder: &mut Decoder) -> Result<bool, LauncherError> {
        match read(self.control, self.buffer.as_mut_slice()) {
            Ok(0) | Err(Errno::CONNRESET) => return Ok(false),
            Ok(count) => decoder.feed(&self.buffer[..count]),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(true),
            Err(errno) => return Err(system("read the control socket")(errno)),
        }
        while let Some(request) = decoder.next()? {
            match request {
                Request::Configure(_) => return Err(host("configured twice")),
                Request::Spawn(spawn) => self.on_spawn(&spawn),
                Request::End(end) => self.on_end(&end),
                Request::Ack(ack) => {
                    if let Some(slot) = self.find(&ack.job, ack.attempt) {
                        self.jobs[slot].as_mut().expect("found").acknowledge(ack.count);
                        self.watch_pipes(slot);
                    }
                }
            }
        }
        Ok(true)
    }

    fn find(&self, id: &str, attempt: u32) -> Option<usize> {
        self.jobs
            .iter()
            .position(|job| job.as_ref().is_some_and(|job| job.is(id, attempt)))
    }

    fn on_end(&mut self, end: &End) {
        if let Some(slot) = self.find(&end.job, end.attempt) {
            self.jobs[slot]
                .as_mut()
                .expect("found")
                .end(end.reason.into(), end.now, Instant::now());
        }
    }

    fn on_spawn(&mut self, spawn: &Spawn) {
        if let Err(refusal) = self.try_spawn(spawn) {
            let now = unix_ms();
            let outcome = Outcome {
                reason: Some(refusal.reason),
                message: Some(refusal.message),
                exit_code: None,
                signal: None,
                started_ms: now,
                finished_ms: now,
                wall_s: 0.0,
                cpu_user_s: 0.0,
                cpu_system_s: 0.0,
                peak_memory_bytes: 0,
                sandbox: self.means.level,
                stdout: StreamInfo::default(),
                stderr: StreamInfo::default(),
                root: None,
            };
            let (job, attempt) = (spawn.job.as_str(), spawn.attempt);
            encode(
                &Event::Exited {
                    job,
                    attempt,
                    outcome,
                    segments: Vec::new(),
                    kept: None,
                },
                &mut self.outbox,
            );
        }
    }

    fn try_spawn(&mut self, spawn: &Spawn) -> Result<(), Refusal> {
        let refuse = |reason, message: String| Refusal { reason, message };
        if self.find(&spawn.job, spawn.attempt).is_some() {
            return Err(refuse(
                Reason::SpawnFailed,
                "this attempt of the job runs already".into(),
            ));
        }
        let slot = self.jobs.iter().position(Option::is_none);
        let slot =
            slot.ok_or_else(|| refuse(Reason::SpawnFailed, format!("all {} slots are taken", self.jobs.len())))?;
        let plan = plan::plan(spawn, &self.means)?;
        let started = Instant::now();
        let process = self.spawner.spawn(spawn, &plan, slot, Mode::Run);
        let process = process.map_err(|error| refuse(Reason::SandboxUnavailable, error.to_string()))?;
        let job = self.jobs[slot].insert(Job::new(spawn, &plan, process, self.window_bytes, started));
        let watched = [(job.pidfd(), SOURCE_PROCESS), (job.report_pipe(), SOURCE_REPORT)]
            .into_iter()
            .try_for_each(|(fd, source)| epoll::add(&self.epoll, fd, token(slot, source), epoll::EventFlags::IN));
        if let Err(errno) = watched {
            job.kill();
            let _ = syscall::wait_readable(job.pidfd()).and_then(|()| syscall::reap(job.pidfd()));
            self.jobs[slot] = None;
            return Err(refuse(Reason::SandboxUnavailable, format!("watch the job: {errno}")));
        }
        self.watching[slot] = [false; PIPES];
        self.watch_pipes(slot);
        Ok(())
    }

    /// Sends what it can of the outbox; returns false at the end of the worker.
    fn send_outbox(&mut self) -> Result<bool, LauncherError> {
        while self.sent < self.outbox.len() {
            match self.send_some() {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(false),
                Err(errno) => return Err(system("write the control socket")(errno)),
            }
        }
        let blocked = self.sent < self.outbox.len();
        // What is sent goes even if a reader that never catches up leaves always something: else this would only grow.
        if self.sent >= self.outbox.len() / 2 {
            self.outbox.drain(..self.sent);
            self.handles.iter_mut().for_each(|(place, _)| *place -= self.sent);
            self.sent = 0;
        }
        if blocked != self.blocked {
            self.blocked = blocked;
            let flags = if blocked {
                epoll::EventFlags::IN | epoll::EventFlags::OUT
            } else {
                epoll::EventFlags::IN
            };
            epoll::modify(&self.epoll, self.control, epoll::EventData::new_u64(CONTROL), flags)
                .map_err(system("epoll"))?;
        }
        Ok(true)
    }

    /// Sends once of the outbox, up to where the next descriptor goes.
    fn send_some(&mut self) -> Result<usize, Errno> {
        let due = self.handles.pop_front_if(|(place, _)| *place == self.sent);
        let end = self.handles.front().map_or(self.outbox.len(), |(place, _)| *place);
        let data = &self.outbox[self.sent..end];
        let Some((place, handle)) = due else {
            return send(self.control, data, SendFlags::NOSIGNAL);
        };
        let handles = [handle.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&handles));
        let result = sendmsg(self.control, &[IoSlice::new(data)], &mut control, SendFlags::NOSIGNAL);
        match result {
            // The worker has taken too few of those before; it finds that this one does not come.
            Err(Errno::TOOMANYREFS) => return Err(Errno::INTR),
            Err(_) => self.handles.push_front((place, handle)),
            Ok(_) => {}
        }
        result
    }

    /// At level `none`: the first process of the job in this slot was killed, and what it had is this process's now.
    /// Waits for it, as nothing of a job may run when its end is told.
    fn end_orphans(&self, slot: usize) {
        if self.spawner.is_bare() {
            let others: Vec<i32> = self
                .jobs
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != slot)
                .filter_map(|(_, job)| job.as_ref().map(Job::pid))
                .collect();
            bare::end_children(&|pid| others.contains(&pid), &mut |_, _| ());
        }
    }

    /// Kills every job and waits until nothing of them runs.
    fn end_all(&mut self) {
        self.jobs.iter_mut().flatten().for_each(Job::kill);
        for job in self.jobs.iter_mut().filter_map(Option::take) {
            let _ = syscall::wait_readable(job.pidfd()).and_then(|()| syscall::reap(job.pidfd()));
        }
        std::mem::take(&mut self.leaving).values().for_each(Leaving::reap);
        if self.spawner.is_bare() {
            bare::end_children(&|_| false, &mut |_, _| ());
        }
    }
}
