//! Network namespaces made ahead of need by a process of their own, each used once.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socket_with, socketpair,
};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;

use crate::syscall;

const REQUEST: &[u8] = b"n";

/// A bounded stock of network namespaces with nothing but a loopback interface, which is down.
pub struct NetworkPool {
    maker: OwnedFd,
    process: OwnedFd,
    stock: u32,
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
            let _ = make(syscall::borrow_fd(0));
            syscall::exit_now(0)
        })?;
        let pool = Self {
            maker: ours,
            process,
            stock,
        };
        for _ in 0..stock {
            pool.order()?;
        }
        Ok(pool)
    }

    fn order(&self) -> Result<(), Errno> {
        send(&self.maker, REQUEST, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Takes a namespace (waiting for it when the stock is used up), and orders another. A maker that has ended, because
    /// somebody killed it or it could make no more, is followed by another.
    ///
    /// # Errors
    /// `EPIPE` when that one could make none either, `EPROTO` for an answer without one.
    pub fn take(&mut self) -> Result<OwnedFd, Errno> {
        match self.take_one() {
            Err(Errno::PIPE | Errno::CONNRESET) => {
                let former = std::mem::replace(self, Self::start(self.stock)?);
                let _ = syscall::reap(former.process.as_fd());
                self.take_one()
            }
            taken => taken,
        }
    }

    fn take_one(&self) -> Result<OwnedFd, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let received = recvmsg(
            &self.maker,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        if received.bytes == 0 {
            return Err(Errno::PIPE);
        }
        // If that fails, the next to take one finds the maker gone.
        let _ = self.order();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut rights) = message {
                return rights.next().ok_or(Errno::PROTO);
            }
        }
        Err(Errno::PROTO)
    }
}

fn make(orders: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut byte = [0];
    loop {
        let (count, _) = recv(orders, &mut byte, RecvFlags::empty())?;
        if count == 0 {
            return Ok(());
        }
        let namespace = make_one()?;
        let rights = [namespace.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&rights));
        sendmsg(orders, &[IoSlice::new(REQUEST)], &mut control, SendFlags::NOSIGNAL)?;
    }
}

/// Raises the loopback of the network namespace that this process is in.
///
/// # Errors
/// What the kernel says.
pub fn raise_loopback() -> Result<(), Errno> {
    syscall::raise_loopback(any_socket()?.as_fd())
}

/// A socket by which the kernel knows a network namespace.
fn any_socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
}

fn make_one() -> Result<OwnedFd, Errno> {
    syscall::unshare(UnshareFlags::NEWNET)?;
    syscall::network_namespace(any_socket()?.as_fd())
}
