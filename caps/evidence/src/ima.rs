//! The list of files that the Linux kernel has measured since it booted (IMA, Documentation/security/IMA-templates.rst),
//! replayed to register 10 as it grows.
//!
//! A list is read in parts. [`Progress`] says how far a verifier has come: it is kept with the node, and the next part
//! is what the list holds from [`Progress::offset`] on. The register's value decides how much of a part counts: the
//! kernel goes on measuring after a quote was made, so entries behind the one at which the value is reached are left for
//! the next time. If it is reached nowhere, the list was cut, changed, or is not that of this boot. A node that has
//! rebooted begins again with [`Progress::new`].
//!
//! Templates: `ima`, `ima-ng`, `ima-sig`, `ima-ngv2`, `ima-sigv2`, `ima-buf`. Another one is refused, as what its fields
//! mean is not known. Each entry's template hash is recomputed from its fields. An entry with a hash of zeros is a
//! violation: a file that was measured while somebody could write to it. The kernel extends ones for it, and its fields
//! are covered by nothing.
//!
//! In the text form paths stand as they are: one with a line break cannot be read. The binary form has no such gap.
//!
//! It verifies no file's signature: `signed` says that there is one. And a list says what was read or run under the
//! kernel's own policy, which measures no more than it is told to.

mod entry;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use entry::Entry;
pub use entry::Form;

use crate::bank::{Bank, Digest};
use crate::findings::{Claim, Findings, Outcome};

/// Bytes of a part, at most.
pub const MAX_PART_BYTES: usize = 32 << 20;
/// Entries of a part, at most.
pub const MAX_PART_ENTRIES: u64 = 131_072;
/// Unknown files that a claim names, at most. All of them are counted.
pub const MAX_NAMED_FILES: usize = 64;
/// The register that the kernel extends (`CONFIG_IMA_MEASURE_PCR_IDX`).
pub const IMA_PCR: u8 = 10;
/// What the kernel calls the first entry: the hash of the boot's registers, and no file.
const BOOT_AGGREGATE: &[u8] = b"boot_aggregate";

/// What the kernel extends into register 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extension {
    /// The template's SHA-1, into the SHA-1 bank.
    Sha1,
    /// The template's SHA-256, into the SHA-256 bank: kernels from 5.8 on.
    Sha256,
    /// The template's SHA-1 with zeros behind it, into the SHA-256 bank: older kernels.
    Sha256Padded,
}

impl Extension {
    /// The bank whose register is extended.
    pub fn bank(self) -> Bank {
        match self {
            Extension::Sha1 => Bank::Sha1,
            Extension::Sha256 | Extension::Sha256Padded => Bank::Sha256,
        }
    }

    /// The algorithm whose digest of the template is extended.
    fn template_bank(self) -> Bank {
        match self {
            Extension::Sha1 | Extension::Sha256Padded => Bank::Sha1,
            Extension::Sha256 => Bank::Sha256,
        }
    }

    /// What a register that holds `value` holds after `digest` of [`Extension::template_bank`].
    fn extend(self, value: &Digest, digest: &Digest) -> Digest {
        let mut whole = [0; 32];
        let (bytes, size) = (digest.as_bytes(), self.bank().size());
        whole[..bytes.len()].copy_from_slice(bytes);
        value.extended(self.bank(), &whole[..size])
    }
}

/// Why a part is refused. Entries are counted from 0, from the beginning of the list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// More than is read at once: the part is given in pieces.
    #[error("the part has {0} bytes; at most {MAX_PART_BYTES} are read at once")]
    TooLarge(usize),
    /// The register's value is not reached within as many entries as are read at once.
    #[error("the part has more than {MAX_PART_ENTRIES} entries")]
    TooManyEntries,
    /// An entry that ends before it should, or in which a field cannot be what it is.
    #[error("entry {entry} is broken or cut off at {field}")]
    Entry {
        /// Which.
        entry: u64,
        /// The field.
        field: &'static str,
    },
    /// A template whose fields are not known.
    #[error("entry {entry} has a template that is not known")]
    Template {
        /// Which.
        entry: u64,
    },
    /// An entry for another register than 10.
    #[error("entry {entry} extends PCR {pcr}, not {IMA_PCR}")]
    Register {
        /// Which.
        entry: u64,
        /// The register.
        pcr: u32,
    },
    /// The template hash is not that of the fields: somebody changed one of them.
    #[error("the template hash of entry {entry} is not that of its fields")]
    TemplateHash {
        /// Which.
        entry: u64,
    },
    /// The whole list has fewer bytes than were verified before.
    #[error("the list was cut: it has {has} bytes, and {known} were verified before")]
    Cut {
        /// Bytes that it has.
        has: usize,
        /// Bytes that were verified.
        known: u64,
    },
    /// What was verified before is not what the list begins with.
    #[error("the first {entries} entries are not those that were verified before")]
    Differs {
        /// How many were.
        entries: u64,
    },
    /// The register's value is reached nowhere.
    #[error(
        "no entry up to entry {entries} gives the value of PCR {IMA_PCR}: the list was cut or changed, or is of another boot"
    )]
    Replay {
        /// How many entries the list has.
        entries: u64,
    },
}

/// How far a list is verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Kept", into = "Kept")]
pub struct Progress {
    form: Form,
    extension: Extension,
    offset: u64,
    entries: u64,
    violations: u64,
    value: Digest,
}

/// [`Progress`] at rest.
#[derive(Serialize, Deserialize)]
struct Kept {
    form: Form,
    extension: Extension,
    offset: u64,
    entries: u64,
    violations: u64,
    value: String,
}

impl From<Progress> for Kept {
    fn from(progress: Progress) -> Kept {
        let Progress { form, extension, offset, entries, violations, value } = progress;
        Kept { form, extension, offset, entries, violations, value: value.to_string() }
    }
}

impl TryFrom<Kept> for Progress {
    type Error = &'static str;

    fn try_from(kept: Kept) -> Result<Progress, &'static str> {
        let Kept { form, extension, offset, entries, violations, value } = kept;
        let bytes = hex::decode(value).map_err(|_| "value: not hexadecimal")?;
        let value = Digest::from_bytes(extension.bank(), &bytes);
        let value = value.ok_or("value: not of the bank's size")?;
        Ok(Progress { form, extension, offset, entries, violations, value })
    }
}

impl Progress {
    /// Nothing of the list of a boot is verified.
    pub fn new(form: Form, extension: Extension) -> Progress {
        let value = extension.bank().filled(0);
        Progress { form, extension, offset: 0, entries: 0, violations: 0, value }
    }

    /// The bank whose register the list is replayed to.
    pub fn value_bank(&self) -> Bank {
        self.extension.bank()
    }

    /// Bytes of the list that are verified: where the next part begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Entries that are verified.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Violations among them.
    pub fn violations(&self) -> u64 {
        self.violations
    }

    /// What register 10 holds after them.
    pub fn value(&self) -> &Digest {
        &self.value
    }

    /// Of a whole list, the part that is new. It is told if the list was cut, or does not begin with what was verified.
    pub fn rest_of<'a>(&self, list: &'a [u8]) -> Result<&'a [u8], Refusal> {
        let cut = Refusal::Cut { has: list.len(), known: self.offset };
        let known = usize::try_from(self.offset).map_err(|_| cut.clone())?;
        let (known, rest) = list.split_at_checked(known).ok_or(cut)?;
        let again = Progress::new(self.form, self.extension).over(known, None, u64::MAX, |_| {});
        match again {
            Ok((again, _)) if again == *self => Ok(rest),
            _ => Err(Refusal::Differs { entries: self.entries }),
        }
    }

    /// Replays the next part of the list. With the value of register 10 (20 or 32 bytes, by the bank), up to the entry
    /// that gives it, which may be none of the new ones; without, to the end, and nothing vouches for it. Only where the
    /// value was reached is the progress worth keeping.
    pub fn advance<'a>(
        &self,
        part: &'a [u8],
        pcr10: Option<&[u8]>,
    ) -> Result<Advance<'a>, Refusal> {
        if part.len() > MAX_PART_BYTES {
            return Err(Refusal::TooLarge(part.len()));
        }
        let missing = Refusal::Replay { entries: self.entries };
        let wanted = match pcr10 {
            Some(value) => Some(Digest::from_bytes(self.extension.bank(), value).ok_or(missing)?),
            None => None,
        };
        let mut files = Vec::new();
        let (progress, rest) =
            self.over(part, wanted.as_ref(), MAX_PART_ENTRIES, |file| files.push(file))?;
        if wanted.is_some_and(|wanted| wanted != progress.value) {
            return Err(Refusal::Replay { entries: progress.entries });
        }
        Ok(Advance { progress, files, vouched: wanted.is_some(), bytes_behind: rest.len() })
    }

    /// Goes over the entries of `part` until the register has the wanted value, or to the end; and what is left.
    fn over<'a>(
        &self,
        mut part: &'a [u8],
        wanted: Option<&Digest>,
        most: u64,
        mut each: impl FnMut(MeasuredFile<'a>),
    ) -> Result<(Progress, &'a [u8]), Refusal> {
        let mut progress = self.clone();
        let whole = part.len();
        while wanted != Some(&progress.value) && !part.is_empty() {
            if progress.entries - self.entries == most {
                return Err(Refusal::TooManyEntries);
            }
            let number = progress.entries;
            let entry = Entry::take(self.form, &mut part, number)?;
            let violation = entry.is_violation();
            let extended = if violation {
                self.extension.template_bank().filled(0xff)
            } else {
                self.template_digest(&entry, number)?
            };
            progress.value = self.extension.extend(&progress.value, &extended);
            progress.entries = progress.entries.saturating_add(1);
            progress.violations = progress.violations.saturating_add(u64::from(violation));
            let aggregate = number == 0 && entry.path == BOOT_AGGREGATE;
            if !aggregate {
                each(MeasuredFile::of(entry));
            }
        }
        progress.offset = progress.offset.saturating_add((whole - part.len()) as u64);
        Ok((progress, part))
    }

    /// The digest of an entry's template that was extended, if the hash in the list is that of its fields.
    fn template_digest(&self, entry: &Entry<'_>, number: u64) -> Result<Digest, Refusal> {
        let (bank, stated) = entry.template_hash;
        if entry.hash(bank) != stated {
            return Err(Refusal::TemplateHash { entry: number });
        }
        let wanted = self.extension.template_bank();
        Ok(if bank == wanted { stated } else { entry.hash(wanted) })
    }
}

/// A file that the kernel measured, or something else that it measures as if it were one, such as a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeasuredFile<'a> {
    /// Its path when it was measured, as bytes: it may be of a namespace, and need not be text.
    pub path: &'a [u8],
    /// The algorithm of its digest, such as `sha256`; `verity:sha256` for that of an fs-verity file.
    pub algorithm: &'a str,
    /// Its digest: zeros for a violation.
    pub digest: Vec<u8>,
    /// Whether a signature came with it. It is not verified.
    pub signed: bool,
    /// Whether it was measured while somebody could write to it.
    pub violation: bool,
}

impl<'a> MeasuredFile<'a> {
    fn of(entry: Entry<'a>) -> MeasuredFile<'a> {
        let (signed, violation) = (entry.is_signed(), entry.is_violation());
        // Newer templates say `ima:` of an ordinary file digest.
        let algorithm = entry.algorithm.strip_prefix("ima:").unwrap_or(entry.algorithm);
        let digest = entry.digest.into_owned();
        MeasuredFile { path: entry.path, algorithm, digest, signed, violation }
    }

    /// Its digest behind its algorithm, as in `sha256:2c26…`: by this it is known or unknown.
    pub fn digest_text(&self) -> String {
        format!("{}:{}", self.algorithm, hex::encode(&self.digest))
    }
}

impl fmt::Display for MeasuredFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path.escape_ascii(), self.digest_text())
    }
}

/// Files that are not among the known ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unknown {
    /// How many entries there are of such.
    pub count: u64,
    /// The first [`MAX_NAMED_FILES`] of them: path and digest.
    pub named: BTreeSet<String>,
}

/// What a part of a list has added.
#[derive(Clone, Debug)]
pub struct Advance<'a> {
    /// How far the list is verified with it.
    pub progress: Progress,
    /// What was measured in it, in that order, without the boot aggregate.
    pub files: Vec<MeasuredFile<'a>>,
    /// Whether a value of the register was given, and reached.
    pub vouched: bool,
    /// Bytes behind the entry at which the value was reached: measured after the quote, and not counted.
    pub bytes_behind: usize,
}

impl Advance<'_> {
    /// The files whose digests, such as `sha256:2c26…`, are not among `allow`. A violation is not among them: it has no
    /// digest.
    pub fn unknown_files(&self, allow: &BTreeSet<String>) -> Unknown {
        let mut unknown = Unknown::default();
        for file in self.files.iter().filter(|file| !file.violation) {
            if !allow.contains(&file.digest_text()) {
                unknown.count += 1;
                if unknown.named.len() < MAX_NAMED_FILES {
                    unknown.named.insert(file.to_string());
                }
            }
        }
        unknown
    }
}

/// Of the check that a list can be read, and its template hashes are those of its fields.
pub const LIST: &str = "ima list";
/// Of the check that the list gives the value of register 10.
pub const REPLAY: &str = "ima replay";

/// Replays the next part of a list, and says what was measured: the checks "ima list" (it is read, and every template
/// hash recomputes) and "ima replay" (register 10 has the value), and the claims `ima-entries` and `ima-violations` of the
/// list so far. If it is told what files are known, also `ima-unknown-files` and how many, `ima-unknown-count`, **of this
/// part only**: whoever goes on from it keeps in mind what was unknown before.
pub fn verify<'a>(
    progress: &Progress,
    part: &'a [u8],
    pcr10: Option<&[u8]>,
    allow: Option<&BTreeSet<String>>,
) -> (Findings, Option<Advance<'a>>) {
    let mut findings = Findings::default();
    let advance = match progress.advance(part, pcr10) {
        Ok(advance) => advance,
        Err(refusal) => {
            match refusal {
                // That there is much of it contradicts nothing.
                Refusal::TooManyEntries | Refusal::TooLarge(_) => {
                    findings.not_checked(LIST, refusal.to_string());
                }
                Refusal::Replay { .. } => findings.failed(REPLAY, refusal),
                _ => findings.failed(LIST, refusal),
            }
            return (findings, None);
        }
    };
    let reached = &advance.progress;
    let new = reached.entries - progress.entries;
    findings.passed(LIST, format!("{new} new entries, {} in all", reached.entries));
    findings.claim("bank", progress.value_bank().to_string());
    if reached.entries == 0 {
        // A register that nobody has extended yet holds what an empty list gives.
        findings.not_checked(REPLAY, "no entry is covered: the kernel has measured nothing");
    } else if advance.vouched {
        let behind = advance.bytes_behind;
        let detail = format!("{} entries, {behind} bytes behind the quote", reached.entries);
        findings.passed(REPLAY, detail);
    } else {
        findings.not_checked(REPLAY, "no value of PCR 10: nothing vouches for the list");
    }
    findings.claim("ima-entries", number(reached.entries));
    findings.claim("ima-violations", number(reached.violations));
    if let Some(allow) = allow {
        let unknown = advance.unknown_files(allow);
        findings.claim("ima-unknown-count", number(unknown.count));
        findings.claim("ima-unknown-files", unknown.named);
    }
    (findings, Some(advance))
}

/// The same, of a list from its beginning, with the value of the SHA-256 bank: kernels extend that in one of two ways.
pub fn verify_first<'a>(
    list: &'a [u8],
    pcr10: Option<&[u8]>,
    allow: Option<&BTreeSet<String>>,
) -> (Findings, Option<Advance<'a>>) {
    let of = |extension| verify(&Progress::new(Form::of(list), extension), list, pcr10, allow);
    let modern = of(Extension::Sha256);
    match modern.0.outcome(REPLAY) {
        Outcome::Failed => of(Extension::Sha256Padded),
        _ => modern,
    }
}

/// The digests, such as `sha256:2c26…`, in a text that has one a line; lines that are empty or begin with `#` count for nothing.
pub fn known_files(text: &str) -> BTreeSet<String> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

fn number(count: u64) -> Claim {
    Claim::Number(i64::try_from(count).unwrap_or(i64::MAX))
}

#[cfg(test)]
#[path = "ima_tests.rs"]
mod tests;
