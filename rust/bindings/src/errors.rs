//! The one place where errors of the crates become exceptions of `jobs._native`.

use std::convert::Infallible;

use jobs_blobs::BlobError;
use jobs_kv::KvError;
use jobs_log::LogError;
use jobs_net::NetError;
use jobs_store::StoreError;
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;

create_exception!(
    jobs._native,
    NativeError,
    PyException,
    "Base of the extension's errors."
);
create_exception!(
    jobs._native,
    CorruptError,
    NativeError,
    "A file fails its checksum or its format."
);
create_exception!(
    jobs._native,
    DiskFullError,
    NativeError,
    "No room; nothing was changed."
);
create_exception!(
    jobs._native,
    PoisonedError,
    NativeError,
    "An earlier write or fsync failed."
);
create_exception!(
    jobs._native,
    CompactedError,
    NativeError,
    "The revision is older than what is kept."
);
create_exception!(
    jobs._native,
    FutureRevisionError,
    NativeError,
    "This replica has not reached the revision."
);
create_exception!(
    jobs._native,
    UnknownPeerError,
    NativeError,
    "The peer is not on the allowlist."
);
create_exception!(jobs._native, NotFoundError, NativeError, "There is no such blob here.");
create_exception!(
    jobs._native,
    UnavailableError,
    NativeError,
    "No provider gave the blob."
);
create_exception!(jobs._native, LimitError, NativeError, "A documented limit is exceeded.");

create_exception!(
    jobs._native,
    SqlError,
    PyValueError,
    "A text is no SQL, or too much of it."
);

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("NativeError", py.get_type::<NativeError>())?;
    module.add("CorruptError", py.get_type::<CorruptError>())?;
    module.add("DiskFullError", py.get_type::<DiskFullError>())?;
    module.add("PoisonedError", py.get_type::<PoisonedError>())?;
    module.add("CompactedError", py.get_type::<CompactedError>())?;
    module.add("FutureRevisionError", py.get_type::<FutureRevisionError>())?;
    module.add("SqlError", py.get_type::<SqlError>())?;
    module.add("UnknownPeerError", py.get_type::<UnknownPeerError>())?;
    module.add("NotFoundError", py.get_type::<NotFoundError>())?;
    module.add("UnavailableError", py.get_type::<UnavailableError>())?;
    module.add("LimitError", py.get_type::<LimitError>())
}

/// Exception for an error of the log.
#[allow(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
pub(crate) fn log_error(error: LogError) -> PyErr {
    let text = error.to_string();
    match error {
        LogError::Corrupt { .. } => CorruptError::new_err(text),
        LogError::DiskFull { .. } => DiskFullError::new_err(text),
        LogError::Poisoned(_) => PoisonedError::new_err(text),
        LogError::TooLarge { .. } => LimitError::new_err(text),
        LogError::Io { .. } | LogError::Locked(_) | LogError::Invalid(_) => NativeError::new_err(text),
    }
}

/// Exception for an error of the store.
#[allow(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
pub(crate) fn store_error(error: StoreError) -> PyErr {
    let text = error.to_string();
    match error {
        full if full.is_full() => DiskFullError::new_err(text),
        corrupt if corrupt.is_corrupt() => CorruptError::new_err(text),
        StoreError::Machine(KvError::Compacted { .. }) => CompactedError::new_err(text),
        StoreError::NotReached { .. } => FutureRevisionError::new_err(text),
        _ => NativeError::new_err(text),
    }
}

/// Exception for a text that is not taken: it has `line` and `column`, 0 where they are not known.
pub(crate) fn sql_error(py: Python<'_>, error: &jobs_sql::parse::SqlError) -> PyErr {
    let raised = SqlError::new_err(error.message.clone());
    let value = raised.value(py);
    let told = value
        .setattr("line", error.line)
        .and_then(|()| value.setattr("column", error.column));
    told.err().unwrap_or(raised)
}

/// Exception for an error of the transport.
#[allow(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
pub(crate) fn net_error(error: NetError) -> PyErr {
    let text = error.to_string();
    match error {
        NetError::Limit(_) => LimitError::new_err(text),
        NetError::UnknownPeer(_) => UnknownPeerError::new_err(text),
        NetError::Key(_) | NetError::Invalid(_) | NetError::Start(_) | NetError::Unreachable(_) | NetError::Closed => {
            NativeError::new_err(text)
        }
    }
}

/// Exception for an error of the blobs.
#[allow(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
pub(crate) fn blob_error(error: BlobError) -> PyErr {
    let text = error.to_string();
    match error {
        BlobError::NotFound(_) => NotFoundError::new_err(text),
        BlobError::Corrupt { .. } => CorruptError::new_err(text),
        BlobError::DiskFull(_) => DiskFullError::new_err(text),
        BlobError::Limit(_) => LimitError::new_err(text),
        BlobError::Unavailable { .. } => UnavailableError::new_err(text),
        BlobError::Invalid(_) | BlobError::Closed(_) | BlobError::Io { .. } => NativeError::new_err(text),
    }
}

/// Exception for an error of the machine over memory.
#[allow(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
pub(crate) fn memory_error(error: KvError<Infallible>) -> PyErr {
    let text = error.to_string();
    match error {
        KvError::Compacted { .. } => CompactedError::new_err(text),
        _ => CorruptError::new_err(text),
    }
}
