//! Small files in a vat's directory: a line with format, version and checksum, then JSON. They are
//! written beside, made durable and then put in place, so that a crash leaves the old one or the
//! new one. No secrets: what is read and written stays in memory that is given back as it is.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use distos_abi::Fault;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

const VERSION: &str = "1";
/// Far more than most of these files need.
const MAX_BYTES: u64 = 1024 * 1024;

/// Where one is.
#[derive(Clone, Debug)]
pub struct Record {
    path: PathBuf,
    /// The first word in it: whose it is.
    format: &'static str,
    /// What to do if it is damaged.
    remedy: &'static str,
    max_bytes: u64,
}

impl Record {
    /// The record at `path`. `format` is the first word in it; `remedy` says, after a colon, what an
    /// operator should do if it is damaged.
    pub fn new(path: PathBuf, format: &'static str, remedy: &'static str) -> Record {
        Record { path, format, remedy, max_bytes: MAX_BYTES }
    }

    /// One that may have so many bytes, and not a MiB.
    #[must_use]
    pub fn of_at_most(self, max_bytes: u64) -> Record {
        Record { max_bytes, ..self }
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it; `None` if there is no such file. [`Fault::Corrupt`] if it is damaged,
    /// [`Fault::Malformed`] if a newer version wrote it.
    pub fn load<T: DeserializeOwned>(&self) -> Result<Option<T>, Fault> {
        let path = &self.path;
        let mut text = String::new();
        match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", path, &error)),
            Ok(file) => file
                .take(self.max_bytes)
                .read_to_string(&mut text)
                .map_err(|error| failed("read", path, &error))?,
        };
        self.decode(&text).map(Some)
    }

    /// Puts it in place, durably; nobody but the vat's own user can read it.
    pub fn save<T: Serialize>(&self, value: &T) -> Result<(), Fault> {
        let (path, text) = (&self.path, self.encode(value)?);
        let beside = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&beside, path)?;
            match path.parent() {
                Some(directory) => File::open(directory)?.sync_all(),
                None => Ok(()),
            }
        };
        write().map_err(|error| failed("write", path, &error))
    }

    fn encode<T: Serialize>(&self, value: &T) -> Result<String, Fault> {
        let body = serde_json::to_string_pretty(value).map_err(Fault::internal)?;
        let sum = hex::encode(Sha256::digest(body.as_bytes()));
        Ok(format!("{} {VERSION} {sum}\n{body}\n", self.format))
    }

    fn decode<T: DeserializeOwned>(&self, text: &str) -> Result<T, Fault> {
        let path = self.path.display();
        let corrupt = || Fault::Corrupt(format!("{path}: {}", self.remedy));
        let (head, body) = text.split_once('\n').ok_or_else(corrupt)?;
        let words: Vec<&str> = head.split(' ').collect();
        let [format, version, checksum] = words.as_slice() else {
            return Err(corrupt());
        };
        if *format != self.format {
            return Err(corrupt());
        }
        if *version != VERSION {
            return Err(Fault::malformed(format!(
                "{path} has format version {version}, this program reads {VERSION}: use the newer program"
            )));
        }
        let body = body.strip_suffix('\n').ok_or_else(corrupt)?;
        if hex::encode(Sha256::digest(body.as_bytes())) != *checksum {
            return Err(corrupt());
        }
        serde_json::from_str(body).map_err(|_| corrupt())
    }
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Fault {
    Fault::internal(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(path: PathBuf) -> Record {
        Record::new(path, "distos-test", "restore it")
    }

    #[test]
    fn a_record_survives_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let record = record(dir.path().join("record"));
        assert_eq!(record.load::<Vec<u8>>().unwrap(), None);
        record.save(&vec![1u8, 2]).unwrap();
        record.save(&vec![3u8]).unwrap();
        assert_eq!(record.load::<Vec<u8>>().unwrap(), Some(vec![3]));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let record = record("record".into());
        let text = record.encode(&vec![1u8, 2, 3]).unwrap();
        for at in 0..text.len() {
            let mut bytes = text.as_bytes().to_vec();
            bytes[at] ^= 1;
            if let Ok(flipped) = String::from_utf8(bytes) {
                assert!(record.decode::<Vec<u8>>(&flipped).is_err(), "byte {at}");
            }
            assert!(record.decode::<Vec<u8>>(&text[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_newer_versions_record_is_named_as_such() {
        let record = record("record".into());
        let text = record.encode(&1u8).unwrap().replacen(" 1 ", " 2 ", 1);
        let fault = record.decode::<u8>(&text).unwrap_err();
        assert!(matches!(&fault, Fault::Malformed(why) if why.contains("version 2")), "{fault}");
    }
}
