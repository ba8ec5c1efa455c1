//! Network namespaces, made ahead of need by a process of their own: to make and to destroy one costs a third of the whole of
//! a job's start.
//!
//! One goes to one job at a time. A job that could make no socket of the internet's gives it back: then the maker looks
//! whether any socket is left in it, and if there is none it is as new, and the next job's. Any other is used once.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socket_with, socketpair,
};
use rustix::process::{Signal, pidfd_send_signal, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::syscall;

const MESSAGE: &[u8] = b"n";
/// Far more than the kernel takes to make a namespace.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// How the kernel's account of a namespace's sockets begins where there is none.
const NO_SOCKETS: &[u8] = b"sockets: used 0\n";

/// A bounded stock of network namespaces with nothing but a loopback interface, which is down.
pub struct NetworkPool {
    maker: OwnedFd,
    process: OwnedFd,
    stock: u32,
    /// Namespaces that were ordered and not taken yet.
    coming: u32,
}

/// What becomes of a namespace after its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It goes with the job.
    Once,
    /// It is given back, by [`NetworkPool::give_back`].
    Again,
}

impl NetworkPool {
    /// Starts the maker, and orders `stock` namespaces. It ends with the launcher.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn start(stock: u32) -> Result<Self, Errno> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (_, process) = syscall::fork(0, None, || {
            let _ = syscall::duplicate_to(theirs.as_fd(), 0).and_then(|()| syscall::close_from(1));
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            // What is made from here on belongs to a user namespace in which nobody is root: in the launcher's own that
            // is its uid, which may be the jobs' as well, and they could change modes of files in /proc/net.
            let _ = syscall::unshare(UnshareFlags::NEWUSER).and_then(|()| make(syscall::borrow_fd(0)));
            syscall::exit_now(0)
        })?;
        let mut pool = Self {
            maker: ours,
            process,
            stock,
            coming: 0,
        };
        for _ in 0..stock {
            pool.order(None)?;
        }
        Ok(pool)
    }

    fn order(&mut self, used: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        send_one(self.maker.as_fd(), used)?;
        self.coming += 1;
        Ok(())
    }

    /// Takes a namespace, waiting for it when the stock is used up. A maker that has ended, because somebody killed it or
    /// it could make no more, or that does not answer, because somebody stopped it, is followed by another.
    ///
    /// # Errors
    /// `EPIPE` or `ETIMEDOUT` when that one could make none either, `EPROTO` for an answer without one.
    pub fn take(&mut self, planned: Use) -> Result<OwnedFd, Errno> {
        match self.take_one(planned) {
            Err(Errno::PIPE | Errno::CONNRESET | Errno::TIMEDOUT) => {
                let former = std::mem::replace(self, Self::start(self.stock)?);
                let _ = pidfd_send_signal(&former.process, Signal::KILL);
                let _ = syscall::reap(former.process.as_fd());
                self.take_one(planned)
            }
            taken => taken,
        }
    }

    fn take_one(&mut self, planned: Use) -> Result<OwnedFd, Errno> {
        if self.coming == 0 {
            self.order(None)?;
        }
        // All jobs wait for this.
        let mut answer = [PollFd::new(&self.maker, PollFlags::IN)];
        if retry_on_intr(|| poll(&mut answer, Some(&PATIENCE)))? == 0 {
            return Err(Errno::TIMEDOUT);
        }
        let taken = receive_one(self.maker.as_fd())?.ok_or(Errno::PIPE)?;
        self.coming -= 1;
        // One that comes back is replaced only when so many run that those to come get few.
        if planned == Use::Once || self.coming < self.stock / 2 {
            // If that fails, the next to take one finds the maker gone.
            let _ = self.order(None);
        }
        taken.ok_or(Errno::PROTO)
    }

    /// Gives back a namespace in which nothing runs any more, and which nobody else has.
    pub fn give_back(&mut self, used: &OwnedFd) {
        if self.coming < self.stock + self.stock / 2 {
            let _ = self.order(Some(used.as_fd()));
        }
    }
}

/// Sends a message with or without a namespace.
fn send_one(to: BorrowedFd<'_>, namespace: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let rights = namespace.as_slice();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !rights.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(rights));
    }
    sendmsg(to, &[IoSlice::new(MESSAGE)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a message, with a namespace or without; none when the other end is closed.
#[expect(clippy::option_option, reason = "no message is not a message without a namespace")]
fn receive_one(from: BorrowedFd<'_>) -> Result<Option<Option<OwnedFd>>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    Ok(Some(rights))
}

fn make(orders: BorrowedFd<'_>) -> Result<(), Errno> {
    while let Some(used) = receive_one(orders)? {
        let namespace = match used {
            Some(used) if is_empty(used.as_fd()) == Ok(true) => used,
            _ => make_one()?,
        };
        send_one(orders, Some(namespace.as_fd()))?;
    }
    Ok(())
}

/// Enters a namespace to see whether there is no socket in it. One that the kernel has yet to throw away counts.
fn is_empty(namespace: BorrowedFd<'_>) -> Result<bool, Errno> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
    let account = open(
        c"/proc/self/net/sockstat",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut begin = [0; NO_SOCKETS.len()];
    Ok(read(&account, &mut begin)? == begin.len() && begin == *NO_SOCKETS)
}

/// Raises the loopback of the network namespace that this process is in.
///
/// # Errors
/// What the kernel says.
pub fn raise_loopback() -> Result<(), Errno> {
    syscall::raise_loopback(any_socket()?.as_fd())
}

/// A socket by which the kernel knows a network namespace: of the family that costs least.
fn any_socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
}

fn make_one() -> Result<OwnedFd, Errno> {
    syscall::unshare(UnshareFlags::NEWNET)?;
    syscall::network_namespace(any_socket()?.as_fd())
}
