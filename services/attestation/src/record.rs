//! The small files of this service: a line with format, version and checksum, then JSON. They are
//! written beside, made durable and then put in place, so that a crash leaves the old one or the
//! new one.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use distos_abi::Fault;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

const FORMAT: &str = "distos-attestation";
const VERSION: &str = "1";
/// Far more than any of these files needs.
const MAX_BYTES: u64 = 64 * 1024;

/// Reads a record; `None` if there is no such file. [`Fault::Corrupt`] if it is damaged,
/// [`Fault::Malformed`] if a newer version wrote it.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Fault> {
    let mut text = String::new();
    match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", path, &error)),
        Ok(file) => file
            .take(MAX_BYTES)
            .read_to_string(&mut text)
            .map_err(|error| failed("read", path, &error))?,
    };
    decode(&text, path).map(Some)
}

/// Puts a record in place, durably.
pub(crate) fn save<T: Serialize>(path: &Path, record: &T) -> Result<(), Fault> {
    let text = encode(record)?;
    let beside = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&beside)?;
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

fn encode<T: Serialize>(record: &T) -> Result<String, Fault> {
    let body = serde_json::to_string_pretty(record).map_err(Fault::internal)?;
    Ok(format!("{FORMAT} {VERSION} {}\n{body}\n", hex::encode(Sha256::digest(body.as_bytes()))))
}

fn decode<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, Fault> {
    let corrupt = || {
        Fault::Corrupt(format!(
            "{}: restore it from a backup, or remove it to trust what the TPM says next",
            path.display()
        ))
    };
    let (head, body) = text.split_once('\n').ok_or_else(corrupt)?;
    let words: Vec<&str> = head.split(' ').collect();
    let [FORMAT, version, checksum] = words.as_slice() else {
        return Err(corrupt());
    };
    if *version != VERSION {
        return Err(Fault::malformed(format!(
            "{} has format version {version}, this program reads {VERSION}: use the newer program",
            path.display()
        )));
    }
    let body = body.strip_suffix('\n').ok_or_else(corrupt)?;
    if hex::encode(Sha256::digest(body.as_bytes())) != *checksum {
        return Err(corrupt());
    }
    serde_json::from_str(body).map_err(|_| corrupt())
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Fault {
    Fault::internal(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        assert_eq!(load::<Vec<u8>>(&path).unwrap(), None);
        save(&path, &vec![1u8, 2]).unwrap();
        save(&path, &vec![3u8]).unwrap();
        assert_eq!(load::<Vec<u8>>(&path).unwrap(), Some(vec![3]));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let path = Path::new("record");
        let text = encode(&vec![1u8, 2, 3]).unwrap();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            if let Ok(flipped) = String::from_utf8(bytes) {
                assert!(decode::<Vec<u8>>(&flipped, path).is_err(), "byte {at}");
            }
            assert!(decode::<Vec<u8>>(&text[..at], path).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_newer_versions_record_is_named_as_such() {
        let text = encode(&1u8).unwrap().replacen(" 1 ", " 2 ", 1);
        let fault = decode::<u8>(&text, Path::new("record")).unwrap_err();
        assert!(matches!(&fault, Fault::Malformed(why) if why.contains("version 2")), "{fault}");
    }
}
