//! What each GPU used when it was first seen idle, kept over restarts: else what a hidden process
//! holds while the service is away would count as idle afterwards (G1).
//!
//! A file of lines, `UUID BYTES DRIVER`. Another driver may need more or less by itself, so what was
//! seen under another one is forgotten.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use distos_abi::Fault;

const FILE: &str = "idle";
/// More than any machine's GPUs take.
const MAX_BYTES: u64 = 64 * 1024;

/// Memory in use, in bytes, by the GPU's UUID.
pub(crate) type Seen = BTreeMap<String, u64>;

/// Reads what was seen under `driver`. Nothing in a new directory.
///
/// # Errors
/// [`Fault::Corrupt`] if the file is none that [`store`] wrote: what counts as idle is not guessed.
pub(crate) fn load(directory: &Path, driver: &str) -> Result<Seen, Fault> {
    let path = directory.join(FILE);
    let damaged = |why: &dyn std::fmt::Display| {
        Fault::Corrupt(format!(
            "{}: {why}: remove it while every GPU is idle, and what they use is looked at anew",
            path.display()
        ))
    };
    let mut text = String::new();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Seen::new()),
        Err(error) => return Err(damaged(&error)),
    };
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(|e| damaged(&e))?;
    parse(&text, driver).ok_or_else(|| damaged(&"it is damaged"))
}

/// Replaces what was seen; a crash leaves the old or the new.
///
/// # Errors
/// What the operating system says; then the old may still be there.
pub(crate) fn store(directory: &Path, driver: &str, seen: &Seen) -> io::Result<()> {
    let new: PathBuf = directory.join("idle.new");
    let mut file = File::create(&new)?;
    file.write_all(text(driver, seen).as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, directory.join(FILE))?;
    File::open(directory)?.sync_all()
}

fn text(driver: &str, seen: &Seen) -> String {
    let driver = driver.replace(char::is_whitespace, "_");
    seen.iter().map(|(uuid, bytes)| format!("{uuid} {bytes} {driver}\n")).collect()
}

fn parse(text: &str, driver: &str) -> Option<Seen> {
    let driver = driver.replace(char::is_whitespace, "_");
    let mut seen = Seen::new();
    for line in text.split_inclusive('\n') {
        let mut words = line.strip_suffix('\n')?.split(' ');
        let (uuid, bytes, under) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
        if words.next().is_some() {
            return None;
        }
        if under == driver {
            seen.insert(uuid.to_owned(), bytes);
        }
    }
    Some(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Seen {
        Seen::from([("GPU-a".to_owned(), 5), ("GPU-b".to_owned(), 7)])
    }

    #[test]
    fn a_restarted_service_knows_what_was_idle_and_another_driver_does_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path(), "570.1").unwrap(), Seen::new());
        store(dir.path(), "570.1", &two()).unwrap();
        assert_eq!(load(dir.path(), "570.1").unwrap(), two());
        assert_eq!(load(dir.path(), "580.2").unwrap(), Seen::new());
    }

    #[test]
    fn a_damaged_file_is_refused_and_not_taken_for_nothing_seen() {
        let good = text("570.1", &two());
        assert_eq!(parse(&good, "570.1"), Some(two()));
        for end in 1..good.len() {
            let whole_lines = good[..end].ends_with('\n');
            assert_eq!(parse(&good[..end], "570.1").is_some(), whole_lines, "cut at {end}");
        }
        for bad in ["GPU-a five 570.1\n", "GPU-a 5\n", "\n", "GPU-a 5 570.1 more\n"] {
            assert_eq!(parse(bad, "570.1"), None, "{bad:?}");
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(FILE), bad).unwrap();
            assert!(matches!(load(dir.path(), "570.1"), Err(Fault::Corrupt(_))), "{bad:?}");
        }
    }
}
