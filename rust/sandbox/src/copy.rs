//! Inputs of a job without walls: copied into its directory, as nothing can be mounted there.
//!
//! It runs in a clone of the launcher, as the job's uid: it neither allocates nor drops anything of the launcher's.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, RawDir, copy_file_range, fstat, mkdirat, openat, sendfile};
use rustix::io::Errno;

use crate::child::directory_of;
use crate::plan::PlannedInput;

/// Directories in directories; the worker makes no deeper ones.
const MAX_DEPTH: usize = 128;
const CHUNK_BYTES: usize = 16 << 20;
const NAMES_BYTES: usize = 8 << 10;

/// Copies each input, read from the directory of all, to its place. Stops with `EINTR` when given up.
///
/// # Errors
/// What the kernel says.
pub fn copy_inputs(
    wanted: &[PlannedInput],
    inputs: BorrowedFd<'_>,
    work: BorrowedFd<'_>,
    is_given_up: &dyn Fn() -> bool,
) -> Result<(), Errno> {
    for input in wanted {
        let directory = directory_of(work, &input.place)?;
        copy(
            inputs,
            &input.entry,
            directory.as_fd(),
            &input.place.name,
            is_given_up,
            0,
        )?;
    }
    Ok(())
}

fn copy(
    from: BorrowedFd<'_>,
    name: &CStr,
    to: BorrowedFd<'_>,
    new_name: &CStr,
    is_given_up: &dyn Fn() -> bool,
    depth: usize,
) -> Result<(), Errno> {
    let source = openat(
        from,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    match FileType::from_raw_mode(fstat(&source)?.st_mode) {
        FileType::RegularFile => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let target = openat(to, new_name, flags, Mode::from_raw_mode(0o555))?;
            copy_content(&source, &target, is_given_up)
        }
        FileType::Directory if depth < MAX_DEPTH => {
            mkdirat(to, new_name, Mode::from_raw_mode(0o755))?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let target = openat(to, new_name, flags, Mode::empty())?;
            let mut space = [MaybeUninit::<u8>::uninit(); NAMES_BYTES];
            let mut names = RawDir::new(&source, &mut space);
            while let Some(entry) = names.next() {
                let entry = entry?;
                let name = entry.file_name();
                if name != c"." && name != c".." {
                    copy(source.as_fd(), name, target.as_fd(), name, is_given_up, depth + 1)?;
                }
            }
            Ok(())
        }
        _ => Err(Errno::INVAL),
    }
}

fn copy_content(source: &OwnedFd, target: &OwnedFd, is_given_up: &dyn Fn() -> bool) -> Result<(), Errno> {
    loop {
        let copied = match copy_file_range(source, None, target, None, CHUNK_BYTES) {
            // Between file systems that do not know each other.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                sendfile(target, source, None, CHUNK_BYTES)?
            }
            copied => copied?,
        };
        if copied == 0 {
            return Ok(());
        }
        if is_given_up() {
            return Err(Errno::INTR);
        }
    }
}
