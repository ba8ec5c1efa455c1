//! The way out for a job that may reach a few addresses and nothing else: a process of the launcher's listens at them in
//! the job's own network, where they are addresses of its loopback, and passes what comes on to the real ones.
//!
//! The job has no route to anywhere, so there is nothing to be filtered: what is not listened at cannot be reached.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read, retry_on_intr, write};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, SocketFlags, SocketType, accept_with, bind, connect, listen, recv, recvmsg, send, sendmsg,
    shutdown, socket_with, socketpair, sockopt,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::child::drop_capabilities;
use crate::netns::raise_loopback;
use crate::syscall::{self, Instruction};

/// Addresses of one job.
pub const MAX_TARGETS: usize = 32;
/// Connections of one job at a time; more wait to be taken.
const MAX_CONNECTIONS: usize = 128;
const BACKLOG: i32 = 64;
const BUFFER_BYTES: usize = 64 << 10;
/// The loopback's number in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// The process; it ends with this, and with the launcher.
pub struct Relay {
    process: OwnedFd,
}

impl Relay {
    /// Starts to listen in a network of a job, which has its loopback up then. Returns when it does.
    ///
    /// # Errors
    /// What the kernel says, such as for an address that no host can have.
    pub fn start(
        network: BorrowedFd<'_>,
        targets: &[SocketAddr],
        filter: Option<&[Instruction]>,
    ) -> Result<Self, Errno> {
        let (answer, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        let (_, process) = syscall::fork(0, None, || {
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            let made = keep_only([theirs.as_fd(), network])
                .and_then(|()| listeners(syscall::borrow_fd(1), targets))
                .and_then(|listeners| become_unprivileged(filter).map(|()| listeners));
            let errno = made.as_ref().err().map_or(0, |errno| errno.raw_os_error());
            let _ = write(syscall::borrow_fd(0), &errno.to_le_bytes());
            if let Ok(listeners) = made {
                let _ = pass_on(&listeners, targets);
            }
            syscall::exit_now(0)
        })?;
        drop(theirs);
        let relay = Self { process };
        let mut errno = [0; 4];
        match retry_on_intr(|| read(&answer, &mut errno))? {
            4 => match i32::from_le_bytes(errno) {
                0 => Ok(relay),
                errno => Err(Errno::from_raw_os_error(errno)),
            },
            _ => Err(Errno::PIPE),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        let _ = syscall::wait_readable(self.process.as_fd()).and_then(|()| syscall::reap(self.process.as_fd()));
    }
}

/// Leaves the two under 0 and 1, and nothing else of the launcher's open.
fn keep_only(kept: [BorrowedFd<'_>; 2]) -> Result<(), Errno> {
    // Above what they will be, so that neither takes the other's place.
    let moved = kept.map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 2));
    let [first, second] = moved;
    let (first, second) = (first?, second?);
    syscall::duplicate_to(first.as_fd(), 0)?;
    syscall::duplicate_to(second.as_fd(), 1)?;
    // They are closed below, by number.
    std::mem::forget((first, second));
    syscall::close_from(2)
}

fn become_unprivileged(filter: Option<&[Instruction]>) -> Result<(), Errno> {
    drop_capabilities()?;
    filter.map_or(Ok(()), syscall::set_seccomp_filter)
}

/// Has a process go into the job's network and make listeners there: this one stays where the host's network is.
fn listeners(network: BorrowedFd<'_>, targets: &[SocketAddr]) -> Result<Vec<OwnedFd>, Errno> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let (_, process) = syscall::fork(0, None, || {
        let made = listen_inside(network, targets).and_then(|listeners| hand_over(theirs.as_fd(), &listeners));
        if let Err(errno) = made {
            let _ = send(&theirs, &errno.raw_os_error().to_le_bytes(), SendFlags::NOSIGNAL);
        }
        syscall::exit_now(0)
    })?;
    drop(theirs);
    let taken = take_over(ours.as_fd());
    let _ = syscall::reap(process.as_fd());
    taken
}

fn listen_inside(network: BorrowedFd<'_>, targets: &[SocketAddr]) -> Result<Vec<OwnedFd>, Errno> {
    move_into_link_name_space(network, Some(LinkNameSpaceType::Network))?;
    raise_loopback()?;
    targets
        .iter()
        .map(|target| {
            if !target.ip().is_loopback() {
                add_address(target.ip())?;
            }
            let listener = stream_socket(target)?;
            bind(&listener, target)?;
            listen(&listener, BACKLOG)?;
            Ok(listener)
        })
        .collect()
}

fn stream_socket(target: &SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if target.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// Gives the loopback of this network one more address (rtnetlink(7), `RTM_NEWADDR`).
fn add_address(address: IpAddr) -> Result<(), Errno> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None, // NETLINK_ROUTE is 0
    )?;
    send(&socket, &address_message(address), SendFlags::empty())?;
    let mut answer = [0; 64];
    let (count, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    let error = answer[..count].get(16..20).and_then(|bytes| bytes.first_chunk());
    match -i32::from_ne_bytes(*error.ok_or(Errno::PROTO)?) {
        0 => Ok(()),
        errno => match Errno::from_raw_os_error(errno) {
            Errno::EXIST => Ok(()),
            other => Err(other),
        },
    }
}

fn address_message(address: IpAddr) -> Vec<u8> {
    const RTM_NEWADDR: u16 = 20;
    const REQUEST_ACK_CREATE: u16 = 0x1 | 0x4 | 0x400;
    const NO_DUPLICATE_DETECTION: u8 = 0x2;
    const HOST_SCOPE: u8 = 254;
    let (family, octets): (u8, Vec<u8>) = match address {
        IpAddr::V4(address) => (2, address.octets().to_vec()),
        IpAddr::V6(address) => (10, address.octets().to_vec()),
    };
    let bits = u8::try_from(octets.len() * 8).unwrap_or(u8::MAX);
    let mut body = vec![family, bits, NO_DUPLICATE_DETECTION, HOST_SCOPE];
    body.extend(LOOPBACK_INDEX.to_ne_bytes());
    // IFA_ADDRESS and IFA_LOCAL
    for kind in [1u16, 2] {
        let length = u16::try_from(4 + octets.len()).unwrap_or(u16::MAX);
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(&octets);
    }
    let mut message = u32::try_from(16 + body.len())
        .unwrap_or(u32::MAX)
        .to_ne_bytes()
        .to_vec();
    message.extend(RTM_NEWADDR.to_ne_bytes());
    message.extend(REQUEST_ACK_CREATE.to_ne_bytes());
    message.extend([0; 8]); // number and sender
    message.extend(body);
    message
}

fn hand_over(channel: BorrowedFd<'_>, listeners: &[OwnedFd]) -> Result<(), Errno> {
    let rights: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_TARGETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&rights)) {
        return Err(Errno::TOOMANYREFS);
    }
    sendmsg(
        channel,
        &[IoSlice::new(&0i32.to_le_bytes())],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

fn take_over(channel: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_TARGETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut errno = [0; 4];
    let received = recvmsg(
        channel,
        &mut [IoSliceMut::new(&mut errno)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    match (received.bytes, i32::from_le_bytes(errno)) {
        (4, 0) => {}
        (4, errno) => return Err(Errno::from_raw_os_error(errno)),
        _ => return Err(Errno::PIPE),
    }
    let taken = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    Ok(taken.flatten().collect())
}

// --- passing on -----------------------------------------------------------------------------------------------------

/// What goes one way.
struct Flow {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    is_over: bool,
    is_shut: bool,
}

impl Flow {
    fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            is_over: false,
            is_shut: false,
        }
    }

    const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    const fn wants_more(&self) -> bool {
        self.is_empty() && !self.is_over
    }

    /// Reads what there is. An error is the end of the connection.
    fn fill(&mut self, from: &OwnedFd) -> Result<(), Errno> {
        match read(from, self.buffer.as_mut_slice()) {
            Ok(0) => self.is_over = true,
            Ok(count) => (self.start, self.end) = (0, count),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    /// Writes what it takes, and tells the other side of the end once that is all.
    fn drain(&mut self, to: &OwnedFd) -> Result<(), Errno> {
        while !self.is_empty() {
            match send(to, &self.buffer[self.start..self.end], SendFlags::NOSIGNAL) {
                Ok(count) => self.start += count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        if self.is_over && !self.is_shut {
            self.is_shut = true;
            shutdown(to, Shutdown::Write)?;
        }
        Ok(())
    }
}

struct Connection {
    job: OwnedFd,
    target: OwnedFd,
    is_made: bool,
    outward: Flow,
    inward: Flow,
}

impl Connection {
    fn open(job: OwnedFd, address: &SocketAddr) -> Result<Self, Errno> {
        let target = stream_socket(address)?;
        let is_made = match connect(&target, address) {
            Ok(()) => true,
            Err(Errno::INPROGRESS) => false,
            Err(errno) => {
                reset(&job);
                return Err(errno);
            }
        };
        Ok(Self {
            job,
            target,
            is_made,
            outward: Flow::new(),
            inward: Flow::new(),
        })
    }

    fn wanted(&self) -> [PollFlags; 2] {
        if !self.is_made {
            return [PollFlags::empty(), PollFlags::OUT];
        }
        let flags = |reads: &Flow, writes: &Flow| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, reads.wants_more());
            flags.set(PollFlags::OUT, !writes.is_empty());
            flags
        };
        [flags(&self.outward, &self.inward), flags(&self.inward, &self.outward)]
    }

    /// Does what can be done; false at the end.
    fn go_on(&mut self, job: PollFlags, target: PollFlags) -> bool {
        let result = self.try_go_on(job, target);
        if result.is_err() {
            reset(&self.job);
        }
        result.is_ok() && !(self.outward.is_shut && self.inward.is_shut)
    }

    fn try_go_on(&mut self, job: PollFlags, target: PollFlags) -> Result<(), Errno> {
        if !self.is_made {
            if target.is_empty() {
                return if job.intersects(PollFlags::ERR | PollFlags::HUP) {
                    Err(Errno::PIPE)
                } else {
                    Ok(())
                };
            }
            sockopt::socket_error(&self.target)??;
            self.is_made = true;
            return Ok(());
        }
        let ends = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        if job.intersects(ends) && self.outward.wants_more() {
            self.outward.fill(&self.job)?;
        }
        if target.intersects(ends) && self.inward.wants_more() {
            self.inward.fill(&self.target)?;
        }
        self.outward.drain(&self.target)?;
        self.inward.drain(&self.job)
    }
}

/// Has the job see that its connection came to nothing, instead of a tidy end.
fn reset(job: &OwnedFd) {
    let _ = sockopt::set_socket_linger(job, Some(std::time::Duration::ZERO));
}

/// Passes on until it is killed.
fn pass_on(listeners: &[OwnedFd], targets: &[SocketAddr]) -> Result<(), Errno> {
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let accepting = if connections.len() < MAX_CONNECTIONS {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let mut fds: Vec<PollFd<'_>> = listeners.iter().map(|fd| PollFd::new(fd, accepting)).collect();
        for connection in &connections {
            let [job, target] = connection.wanted();
            fds.extend([
                PollFd::new(&connection.job, job),
                PollFd::new(&connection.target, target),
            ]);
        }
        retry_on_intr(|| poll(&mut fds, None))?;
        let seen: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        let (arrivals, events) = seen.split_at(listeners.len());
        let mut events = events.chunks_exact(2);
        connections.retain_mut(|connection| events.next().is_none_or(|seen| connection.go_on(seen[0], seen[1])));
        for ((listener, target), arrived) in listeners.iter().zip(targets).zip(arrivals) {
            if arrived.contains(PollFlags::IN) && connections.len() < MAX_CONNECTIONS {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                if let Ok(connection) = accept_with(listener, flags).and_then(|job| Connection::open(job, target)) {
                    connections.push(connection);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_asked_for_as_rtnetlink_has_it() {
        let message = address_message("192.0.2.7".parse().unwrap());
        assert_eq!(message.len(), 16 + 8 + 2 * 8);
        assert_eq!(
            u32::from_ne_bytes(*message.first_chunk().unwrap()) as usize,
            message.len()
        );
        assert_eq!(message[16..20], [2, 32, 2, 254]);
        assert_eq!(message[24..32], [8, 0, 1, 0, 192, 0, 2, 7]);
        assert_eq!(address_message("2001:db8::1".parse().unwrap()).len(), 16 + 8 + 2 * 20);
    }
}
