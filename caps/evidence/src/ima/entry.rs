//! One entry of a list, in the text form and in the binary one, and the hash of its template.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{IMA_PCR, Refusal};
use crate::bank::{Bank, Digest};
use crate::wire::{Broken, Reader};

/// Bytes of a path, at most (`PATH_MAX`).
const MAX_PATH_BYTES: usize = 4096;
/// Bytes of a signature or of a measured buffer, at most.
const MAX_EXTRA_BYTES: usize = 256 << 10;
/// Bytes of an entry as text: its extra field in hexadecimal, a path, two digests and names.
const MAX_LINE_BYTES: usize = 2 * MAX_EXTRA_BYTES + MAX_PATH_BYTES + 512;
/// Bytes of a digest field, with the names of its kind and algorithm.
const MAX_DIGEST_BYTES: usize = 128;
/// Bytes of a template's name.
const MAX_NAME_BYTES: usize = 15;
/// What the template `ima` hashes for a name: `IMA_EVENT_NAME_LEN_MAX` and a zero.
const OLD_NAME_BYTES: usize = 256;

/// How a list is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// `ascii_runtime_measurements`, also with one of the suffixes of newer kernels: the template hash's length says
    /// what it was made with.
    Text,
    /// `binary_runtime_measurements` of a little-endian machine, with SHA-1 template hashes.
    Binary,
}

impl Form {
    /// How a list is written that begins so.
    pub fn of(list: &[u8]) -> Form {
        if list.starts_with(b"10 ") { Form::Text } else { Form::Binary }
    }
}

/// What fields a template has, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Template {
    /// `d|n`: SHA-1 without a name, and a name of fixed size.
    Old,
    /// `d-ng|n-ng` and `d-ngv2|n-ng`.
    Named,
    /// The same, and `sig`.
    Signed,
    /// The same, and `buf`.
    Buffer,
}

impl Template {
    fn of(name: &[u8]) -> Option<Template> {
        match name {
            b"ima" => Some(Template::Old),
            b"ima-ng" | b"ima-ngv2" => Some(Template::Named),
            b"ima-sig" | b"ima-sigv2" => Some(Template::Signed),
            b"ima-buf" => Some(Template::Buffer),
            _ => None,
        }
    }

    /// Whether there is a third field.
    fn has_extra(self) -> bool {
        matches!(self, Template::Signed | Template::Buffer)
    }
}

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Entry<'a> {
    template: Template,
    /// The hash of its template, as the list gives it, and with which algorithm it was made.
    pub(super) template_hash: (Bank, Digest),
    /// The algorithm of the file's digest, behind the kind of digest that newer templates name: `sha256`, `ima:sha256`.
    pub(super) algorithm: &'a str,
    /// The file's digest.
    pub(super) digest: Cow<'a, [u8]>,
    /// The file's path, or what the kernel calls what it measured.
    pub(super) path: &'a [u8],
    extra: Cow<'a, [u8]>,
}

impl<'a> Entry<'a> {
    /// Reads entry `number` from the front of `list`, and takes it away.
    pub(super) fn take(form: Form, list: &mut &'a [u8], number: u64) -> Result<Entry<'a>, Refusal> {
        match form {
            Form::Text => Entry::text(list, number),
            Form::Binary => {
                let mut r = Reader::new(list);
                let entry = Entry::binary(&mut r, number)?;
                *list = r.rest();
                Ok(entry)
            }
        }
    }

    /// Whether this is a violation.
    pub(super) fn is_violation(&self) -> bool {
        self.template_hash.1.as_bytes().iter().all(|byte| *byte == 0)
    }

    /// Whether a signature came with it.
    pub(super) fn is_signed(&self) -> bool {
        self.template == Template::Signed && !self.extra.is_empty()
    }

    /// The hash of its fields (`ima_calc_field_array_hash`): each behind its length, but for the template `ima`.
    pub(super) fn hash(&self, bank: Bank) -> Digest {
        let digest: &[u8] = &self.digest;
        if self.template == Template::Old {
            let mut name = [0; OLD_NAME_BYTES];
            let len = self.path.len().min(OLD_NAME_BYTES);
            name[..len].copy_from_slice(&self.path[..len]);
            return bank.hash(&[digest, &name]);
        }
        let digest_len = length(self.algorithm.len() + 2 + digest.len());
        let path_len = length(self.path.len() + 1);
        let extra_len = length(self.extra.len());
        let parts: [&[u8]; 9] = [
            &digest_len,
            self.algorithm.as_bytes(),
            b":\0",
            digest,
            &path_len,
            self.path,
            b"\0",
            &extra_len,
            &self.extra,
        ];
        bank.hash(if self.template.has_extra() { &parts } else { &parts[..7] })
    }

    /// A line: register, template hash, template, and its fields with a space between them.
    fn text(list: &mut &'a [u8], number: u64) -> Result<Entry<'a>, Refusal> {
        let broken = |field| Refusal::Entry { entry: number, field };
        let whole: &'a [u8] = list;
        let reach = &whole[..whole.len().min(MAX_LINE_BYTES)];
        let end = reach.iter().position(|byte| *byte == b'\n').ok_or(broken("the line's end"))?;
        let (line, rest) = (&whole[..end], &whole[end + 1..]);
        let mut words = line.splitn(4, |byte| *byte == b' ');
        let mut word = |field| words.next().ok_or(broken(field));
        let pcr = std::str::from_utf8(word("pcr")?).ok().and_then(|pcr| pcr.parse().ok());
        demand_register(pcr.ok_or(broken("pcr"))?, number)?;
        let hash = hex::decode(word("template hash")?).map_err(|_| broken("template hash"))?;
        let bank = Bank::ALL.into_iter().find(|bank| bank.size() == hash.len());
        let template_hash = bank.and_then(|bank| Some((bank, Digest::from_bytes(bank, &hash)?)));
        let template_hash = template_hash.ok_or(broken("template hash"))?;
        let template =
            Template::of(word("template")?).ok_or(Refusal::Template { entry: number })?;
        let (digest, path) = split_at_space(word("digest")?).ok_or(broken("digest"))?;
        let (algorithm, digest) = match template {
            Template::Old => (&b"sha1"[..], digest),
            _ => {
                let colon = digest.iter().rposition(|byte| *byte == b':');
                let colon = colon.ok_or(broken("digest"))?;
                (&digest[..colon], &digest[colon + 1..])
            }
        };
        let digest = hex::decode(digest).map_err(|_| broken("digest"))?;
        let (path, extra) = if template.has_extra() { with_extra(path) } else { (path, None) };
        *list = rest;
        Entry {
            template,
            template_hash,
            algorithm: algorithm_name(algorithm).ok_or(broken("digest"))?,
            digest: Cow::Owned(digest),
            path,
            extra: extra.unwrap_or_default().into(),
        }
        .bounded(number)
    }

    /// Register, template hash, the template's name behind its length, and its fields.
    fn binary(r: &mut Reader<'a>, number: u64) -> Result<Entry<'a>, Refusal> {
        let broken = |Broken(field)| Refusal::Entry { entry: number, field };
        demand_register(r.u32_le("pcr").map_err(broken)?, number)?;
        let hash = r.bytes(Bank::Sha1.size(), "template hash").map_err(broken)?;
        let hash = Digest::from_bytes(Bank::Sha1, hash).ok_or(broken(Broken("template hash")))?;
        let name = r.sized_le("template").map_err(broken)?;
        if name.len() > MAX_NAME_BYTES {
            return Err(broken(Broken("template")));
        }
        let template = Template::of(name).ok_or(Refusal::Template { entry: number })?;
        let (algorithm, digest, path, extra) = if template == Template::Old {
            let digest = r.bytes(Bank::Sha1.size(), "digest").map_err(broken)?;
            (&b"sha1"[..], digest, r.sized_le("path").map_err(broken)?, &[][..])
        } else {
            let mut fields = Reader::new(r.sized_le("template data").map_err(broken)?);
            let digest = fields.sized_le("digest").map_err(broken)?;
            let split = digest.windows(2).position(|pair| pair == b":\0");
            let split = split.ok_or(broken(Broken("digest")))?;
            let path = fields.sized_le("path").map_err(broken)?;
            let path = path.strip_suffix(b"\0").ok_or(broken(Broken("path")))?;
            let extra = match template.has_extra() {
                true => fields.sized_le("signature or buffer").map_err(broken)?,
                false => &[],
            };
            fields.end("the end of the template").map_err(broken)?;
            (&digest[..split], &digest[split + 2..], path, extra)
        };
        Entry {
            template,
            template_hash: (Bank::Sha1, hash),
            algorithm: algorithm_name(algorithm).ok_or(broken(Broken("digest")))?,
            digest: digest.into(),
            path,
            extra: extra.into(),
        }
        .bounded(number)
    }

    /// Itself, if no field is longer than it can be.
    fn bounded(self, number: u64) -> Result<Entry<'a>, Refusal> {
        let longest =
            if self.template == Template::Old { OLD_NAME_BYTES - 1 } else { MAX_PATH_BYTES };
        let too_long = [
            ("digest", self.algorithm.len() + self.digest.len(), MAX_DIGEST_BYTES),
            ("path", self.path.len(), longest),
            ("signature or buffer", self.extra.len(), MAX_EXTRA_BYTES),
        ];
        match too_long.into_iter().find(|(_, len, most)| len > most) {
            Some((field, ..)) => Err(Refusal::Entry { entry: number, field }),
            None if self.digest.is_empty() => {
                Err(Refusal::Entry { entry: number, field: "digest" })
            }
            None => Ok(self),
        }
    }
}

fn demand_register(pcr: u32, entry: u64) -> Result<(), Refusal> {
    if pcr == u32::from(IMA_PCR) { Ok(()) } else { Err(Refusal::Register { entry, pcr }) }
}

/// The length of a field, as it is hashed: bounds are far below 4 GiB.
fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()
}

fn split_at_space(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == b' ')?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// A path, and behind its last space a field in hexadecimal, which may be empty.
fn with_extra(path: &[u8]) -> (&[u8], Option<Vec<u8>>) {
    let Some(at) = path.iter().rposition(|byte| *byte == b' ') else { return (path, None) };
    match hex::decode(&path[at + 1..]) {
        Ok(extra) => (&path[..at], Some(extra)),
        Err(_) => (path, None),
    }
}

/// The name of an algorithm, or of a kind of digest and an algorithm.
fn algorithm_name(name: &[u8]) -> Option<&str> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_:".contains(byte);
    if name.is_empty() || !name.iter().all(plain) { None } else { std::str::from_utf8(name).ok() }
}
