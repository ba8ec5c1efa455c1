//! A node's secret key, in a file that only its owner reads.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use iroh::SecretKey;
use jobs_failpoint::{Point, pass, reach};
use rustix::fs::{self, Mode, OFlags};

use crate::error::NetError;

/// 64 hexadecimal digits and the end of the line.
const KEY_FILE_BYTES: u64 = 65;

/// Read the key, or make one where there is no file.
///
/// # Errors
/// When others could read the file, when it is no regular file of this user, or holds no key.
pub fn load_or_create(path: &Path) -> Result<SecretKey, NetError> {
    match open(path) {
        Err(error) if error == rustix::io::Errno::NOENT => create(path),
        Err(error) => Err(failed(path, "it cannot be opened", error)),
        Ok(file) => read(path, file),
    }
}

/// Make a key that is in no file; returns the secret as a key file has it, and the id that goes with it.
#[must_use]
pub fn generate() -> (String, String) {
    let key = SecretKey::generate();
    (encode_hex(&key.to_bytes()), key.public().to_string())
}

fn open(path: &Path) -> Result<File, rustix::io::Errno> {
    // Nonblocking, so that a pipe in its place does not hold the start up.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(File::from(fs::open(path, flags, Mode::empty())?))
}

fn read(path: &Path, file: File) -> Result<SecretKey, NetError> {
    let stat = fs::fstat(&file).map_err(|error| failed(path, "it cannot be examined", error))?;
    let owner = rustix::process::geteuid().as_raw();
    if fs::FileType::from_raw_mode(stat.st_mode) != fs::FileType::RegularFile {
        return Err(NetError::Key(format!("{}: it is no regular file", path.display())));
    }
    if stat.st_uid != owner {
        let text = format!("{}: it belongs to uid {}, not to {owner}", path.display(), stat.st_uid);
        return Err(NetError::Key(text));
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    if mode.intersects(Mode::RWXG | Mode::RWXO) {
        let bits = mode.bits() & 0o777;
        let text = format!(
            "{}: others may use it (mode {bits:04o}); it has to be 0600",
            path.display()
        );
        return Err(NetError::Key(text));
    }
    let mut text = String::new();
    file.take(KEY_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| failed(path, "it cannot be read", error))?;
    let bytes = text.strip_suffix('\n').and_then(decode_hex);
    let bytes = bytes.ok_or_else(|| NetError::Key(format!("{}: it holds no key", path.display())))?;
    Ok(SecretKey::from_bytes(&bytes))
}

/// A key in a new file, whole or not there: it gets its name when its bytes are on the disk.
fn create(path: &Path) -> Result<SecretKey, NetError> {
    let key = SecretKey::generate();
    let wrong = |error: rustix::io::Errno| failed(path, "it cannot be made", error);
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{:016x}", rand::random::<u64>()));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(fs::open(&draft, flags, Mode::RUSR | Mode::WUSR).map_err(wrong)?);
    let text = format!("{}\n", encode_hex(&key.to_bytes()));
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| pass(Point::NetKeySyncBefore))
        .and_then(|()| file.sync_all())
        .and_then(|()| pass(Point::NetKeyLinkBefore));
    // Linked, not renamed: a key that is there by now stays.
    let linked = written
        .map_err(|error| failed(path, "it cannot be written", error))
        .map(|()| fs::link(&draft, path));
    reach(Point::NetKeyLinkAfter);
    fs::unlink(&draft).map_err(wrong)?;
    match linked? {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => return read(path, open(path).map_err(wrong)?),
        Err(error) => return Err(wrong(error)),
    }
    // The name as well: a node that lost its key is a stranger to its cluster.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    pass(Point::NetKeyDirectorySyncBefore)
        .and_then(|()| File::open(folder.unwrap_or(Path::new("."))))
        .and_then(|folder| folder.sync_all())
        .map_err(|error| failed(path, "its folder cannot be synced", error))?;
    Ok(key)
}

fn encode_hex(bytes: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn decode_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(bytes)
}

fn failed(path: &Path, what: &str, error: impl std::fmt::Display) -> NetError {
    NetError::Key(format!("{}: {what}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_key_is_made_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        let made = load_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(load_or_create(&path).unwrap().public(), made.public());
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        load_or_create(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let text = load_or_create(&path).unwrap_err().to_string();
            assert!(text.contains(&format!("mode {mode:04o}")), "{text}");
        }
    }

    #[test]
    fn what_is_no_key_file_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        for text in [
            "",
            "abc\n",
            &"g".repeat(64),
            &format!("{}\n", "é".repeat(32)),
            &format!("{}\n", "0".repeat(66)),
        ] {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            assert!(load_or_create(&path).unwrap_err().to_string().contains("holds no key"));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        let link = folder.path().join("link.key");
        symlink(&path, &link).unwrap();
        assert!(load_or_create(&link).is_err());
        assert!(
            load_or_create(folder.path())
                .unwrap_err()
                .to_string()
                .contains("no regular file")
        );
    }
}
