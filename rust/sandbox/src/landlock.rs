//! Landlock as a second wall behind the mount namespace: the view is for reading, the job's own directories for all.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::syscall;

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_SOCK: u64 = 1 << 9;
const MAKE_FIFO: u64 = 1 << 10;
const MAKE_BLOCK: u64 = 1 << 11;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
/// Connections to abstract sockets and signals to processes outside.
const SCOPES: u64 = 0b11;

/// Accesses that version 1, 2, 3 and 5 of the kernel's interface know, as the number of bits.
const fn known_accesses(version: u32) -> u64 {
    let bits = match version {
        0 => 0,
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    (1 << bits) - 1
}

/// Which access is allowed beneath which directory of a job's view.
#[derive(Debug, PartialEq, Eq)]
pub struct Rules {
    handled: u64,
    scoped: u64,
    allowed: [(&'static CStr, u64); 7],
}

impl Rules {
    /// The rules for a kernel of this Landlock version.
    #[must_use]
    pub const fn new(version: u32) -> Self {
        let all = known_accesses(version);
        Self {
            handled: all,
            scoped: if version >= 6 { SCOPES } else { 0 },
            allowed: [
                (c"/", (READ_FILE | READ_DIR | EXECUTE) & all),
                (
                    c"/dev",
                    (READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | IOCTL_DEV) & all,
                ),
                (c"/proc", (READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE) & all),
                (c"/.job", all),
                (c"/work", all),
                (c"/tmp", all),
                (c"/dev/shm", all),
            ],
        }
    }

    /// The same for a job whose whole root lies below a layer of its own.
    #[must_use]
    pub const fn of_own_root(version: u32) -> Self {
        let mut rules = Self::new(version);
        rules.allowed[0].1 = known_accesses(version);
        rules
    }

    /// Puts the calling process under the rules, of whose paths some are open. Does not allocate.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn apply(&self, opened: &[(&CStr, BorrowedFd<'_>)]) -> Result<(), Errno> {
        let ruleset = syscall::landlock_ruleset(self.handled, self.scoped)?;
        for (path, access) in &self.allowed {
            if let Some((_, parent)) = opened.iter().find(|(name, _)| name == path) {
                syscall::landlock_allow(ruleset.as_fd(), *parent, *access)?;
            } else {
                let parent = open(*path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                syscall::landlock_allow(ruleset.as_fd(), parent.as_fd(), *access)?;
            }
        }
        syscall::landlock_restrict(ruleset.as_fd())
    }
}

/// Leaves the calling process files, directories and links below `root`, to be read and written, and nothing else.
///
/// # Errors
/// What the kernel says.
pub fn leave_files(version: u32, root: BorrowedFd<'_>) -> Result<(), Errno> {
    let all = known_accesses(version);
    let scopes = if version >= 6 { SCOPES } else { 0 };
    let ruleset = syscall::landlock_ruleset(all, scopes)?;
    let unwanted = EXECUTE | MAKE_CHAR | MAKE_SOCK | MAKE_FIFO | MAKE_BLOCK | IOCTL_DEV;
    syscall::landlock_allow(ruleset.as_fd(), root, all & !unwanted)?;
    syscall::landlock_restrict(ruleset.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_is_never_writable_and_no_rule_asks_what_the_kernel_does_not_know() {
        for version in 1..8 {
            let rules = Rules::new(version);
            assert_eq!(rules.allowed[0].1 & (WRITE_FILE | TRUNCATE), 0);
            assert!(
                rules.allowed.iter().all(|(_, access)| access & !rules.handled == 0),
                "version {version}"
            );
        }
    }

    #[test]
    fn abstract_sockets_and_signals_are_scoped_where_the_kernel_can() {
        assert_eq!((Rules::new(5).scoped, Rules::new(6).scoped), (0, SCOPES));
    }
}
