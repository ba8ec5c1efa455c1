//! Network namespaces, made ahead of need by a process of their own: to make and to destroy one costs a third of the whole of
//! a job's start.
//!
//! One goes to one job at a time. A job that could make no socket of the internet's gives it back: if no socket at all is
//! left in it when another job wants one, it is as new. Any other is used once.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, pread, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socket_with, socketpair,
};
use rustix::process::{Signal, pidfd_send_signal, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;

use crate::syscall;

const MESSAGE: &[u8] = b"n";
/// Far more than the kernel takes to make a namespace.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// How the kernel's account of a namespace's sockets begins where there is none.
const NO_SOCKETS: &[u8] = b"sockets: used 0\n";

/// A network namespace with nothing but a loopback interface, which is down.
pub struct Network {
    namespace: OwnedFd,
    /// The kernel's account of its sockets.
    account: OwnedFd,
}

impl Network {
    /// The namespace, to be entered.
    #[must_use]
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Whether there is no socket in it. One that the kernel has yet to throw away counts.
    fn is_empty(&self) -> bool {
        let mut begin = [0; NO_SOCKETS.len()];
        pread(&self.account, &mut begin, 0) == Ok(begin.len()) && begin == *NO_SOCKETS
    }
}

/// A bounded stock of network namespaces.
pub struct NetworkPool {
    maker: OwnedFd,
    process: OwnedFd,
    stock: u32,
    /// Namespaces that were ordered and not taken yet.
    coming: u32,
    /// Those that were given back, in this order.
    used: VecDeque<Network>,
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
            used: VecDeque::new(),
        };
        for _ in 0..stock {
            pool.order()?;
        }
        Ok(pool)
    }

    fn order(&mut self) -> Result<(), Errno> {
        send(&self.maker, MESSAGE, SendFlags::NOSIGNAL)?;
        self.coming += 1;
        Ok(())
    }

    /// Takes a namespace: a new one if it is to be used once. Waits for it when the stock is used up. A maker that has
    /// ended, because somebody killed it or it could make no more, or that does not answer, because somebody stopped it,
    /// is followed by another.
    ///
    /// # Errors
    /// `EPIPE` or `ETIMEDOUT` when that one could make none either, `EPROTO` for an answer without one.
    pub fn take(&mut self, planned: Use) -> Result<Network, Errno> {
        if planned == Use::Again {
            // The oldest first: the kernel throws some sockets away a little after their end.
            while let Some(network) = self.used.pop_front() {
                if network.is_empty() {
                    return Ok(network);
                }
            }
        }
        match self.take_new(planned) {
            Err(Errno::PIPE | Errno::CONNRESET | Errno::TIMEDOUT) => {
                let mut former = std::mem::replace(self, Self::start(self.stock)?);
                self.used = std::mem::take(&mut former.used);
                self.take_new(planned)
            }
            taken => taken,
        }
    }

    fn take_new(&mut self, planned: Use) -> Result<Network, Errno> {
        if self.coming == 0 {
            self.order()?;
        }
        // All jobs wait for this.
        let mut answer = [PollFd::new(&self.maker, PollFlags::IN)];
        if retry_on_intr(|| poll(&mut answer, Some(&PATIENCE)))? == 0 {
            return Err(Errno::TIMEDOUT);
        }
        let taken = receive(self.maker.as_fd());
        self.coming -= 1;
        // One that comes back is replaced only when so many run that those to come get few.
        if planned == Use::Once || self.coming < self.stock / 2 {
            // If that fails, the next to take one finds the maker gone.
            let _ = self.order();
        }
        taken
    }

    /// Gives back a namespace in which nothing runs any more.
    pub fn give_back(&mut self, network: Network) {
        if self.used.len() < self.stock as usize {
            self.used.push_back(network);
        }
    }
}

impl Drop for NetworkPool {
    /// Ends the maker, however it is.
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        let _ = syscall::reap(self.process.as_fd());
    }
}

fn receive(from: BorrowedFd<'_>) -> Result<Network, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    if received.bytes == 0 {
        return Err(Errno::PIPE);
    }
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut rights) = message {
            let (Some(namespace), Some(account)) = (rights.next(), rights.next()) else {
                break;
            };
            return Ok(Network { namespace, account });
        }
    }
    Err(Errno::PROTO)
}

fn make(orders: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut byte = [0];
    while recv(orders, &mut byte, RecvFlags::empty())?.0 > 0 {
        let made = make_one()?;
        let rights = [made.namespace(), made.account.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&rights));
        sendmsg(orders, &[IoSlice::new(MESSAGE)], &mut control, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

fn make_one() -> Result<Network, Errno> {
    syscall::unshare(UnshareFlags::NEWNET)?;
    let namespace = syscall::network_namespace(any_socket()?.as_fd())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let account = open(c"/proc/self/net/sockstat", flags, Mode::empty())?;
    Ok(Network { namespace, account })
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
