//! The secret keys of this service, each in a file of its own that is named after it: which of them is in
//! use is said elsewhere, so that a change of both is one change.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use distos_abi::{Fault, HolderKey};
use distos_types::HolderSecret;
use zeroize::Zeroizing;

/// More than a key's file has; a text that grows leaves copies behind.
const MAX_BYTES: usize = 1024;

/// Where they are.
pub(crate) struct Keys {
    directory: PathBuf,
}

impl Keys {
    pub(crate) fn new(directory: &Path) -> Keys {
        Keys { directory: directory.to_owned() }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.directory.join(format!("{key}.key"))
    }

    /// The secret half of `key`.
    pub(crate) fn load(&self, key: &str) -> Result<HolderSecret, Fault> {
        let path = self.path(key);
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => Fault::Corrupt(format!("{}: it is not there", path.display())),
            _ => Fault::internal(format!("{}: {error}", path.display())),
        };
        let mut text = Zeroizing::new(String::with_capacity(MAX_BYTES));
        let file = File::open(&path).map_err(failed)?;
        file.take(MAX_BYTES as u64).read_to_string(&mut text).map_err(failed)?;
        let secret = HolderSecret::from_file_text(&text)?;
        if secret.key().to_string() != key {
            return Err(Fault::Corrupt(format!("{} is of another key", path.display())));
        }
        Ok(secret)
    }

    /// A new one, durably.
    pub(crate) fn make(&self) -> Result<HolderSecret, Fault> {
        let secret = HolderSecret::fill(|seed| getrandom::fill(seed)).map_err(Fault::internal)?;
        let path = self.path(&secret.key().to_string());
        let write = || -> std::io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(secret.to_file_text().as_bytes())?;
            file.sync_all()?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|error| Fault::internal(format!("{}: {error}", path.display())))?;
        Ok(secret)
    }

    /// Removes one that is no longer in use.
    pub(crate) fn forget(&self, key: HolderKey) {
        let path = self.path(&key.to_string());
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(%error, "an older key's file stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_its_name_and_another_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::new(dir.path());
        let (one, other) = (keys.make().unwrap().key(), keys.make().unwrap().key());
        assert_eq!(keys.load(&one.to_string()).unwrap().key(), one);
        fs::rename(keys.path(&other.to_string()), keys.path(&one.to_string())).unwrap();
        assert!(matches!(keys.load(&one.to_string()), Err(Fault::Corrupt(_))));
        assert!(matches!(keys.load(&other.to_string()), Err(Fault::Corrupt(_))));
        keys.forget(one);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
