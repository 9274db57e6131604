//! What can go wrong with stored regions, and the fault that each failure is to a caller.

use std::io;

use distos_abi::Fault;

/// How long a caller waits before it tries again on a full disk, in milliseconds.
const FULL_RETRY_MS: u64 = 5_000;

/// A failure of the region store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No space is left. Nothing was lost.
    #[error("the disk is full: free space in {dir} and retry")]
    Full {
        /// The directory whose file system is full.
        dir: String,
    },
    /// Another I/O error; the operation had no effect.
    #[error("cannot {what}: {error}")]
    Io {
        /// What was attempted.
        what: String,
        /// What the operating system said.
        error: String,
    },
    /// Stored bytes do not match their checksums (M2).
    #[error("{0}")]
    Corrupt(String),
    /// The directory was written by a newer version of this program.
    #[error(
        "the data in {dir} has format {found}, this program knows formats up to {known}: use the newer version"
    )]
    Newer {
        /// The data directory.
        dir: String,
        /// The format that was found.
        found: u32,
        /// The newest format that is understood.
        known: u32,
    },
    /// The index can no longer be written safely. Reads go on; a restart of the service recovers
    /// everything that was acknowledged.
    #[error("the index cannot be written any more ({0}): restart the memory service")]
    Broken(String),
}

impl StoreError {
    /// Classifies an I/O error of an attempt to `what` in `dir`.
    pub fn io(dir: &str, what: &str, error: &io::Error) -> StoreError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StoreError::Full { dir: dir.to_owned() }
            }
            _ => StoreError::Io { what: what.to_owned(), error: error.to_string() },
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        match error {
            StoreError::Full { .. } => Fault::unavailable(FULL_RETRY_MS, error.to_string()),
            StoreError::Corrupt(text) => Fault::Corrupt(text),
            StoreError::Broken(_) => Fault::unavailable(FULL_RETRY_MS, error.to_string()),
            StoreError::Io { .. } | StoreError::Newer { .. } => Fault::internal(error),
        }
    }
}
