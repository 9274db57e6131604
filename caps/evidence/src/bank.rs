//! Banks of platform configuration registers: one for each hash algorithm, and what extending a register does.

use std::collections::BTreeMap;
use std::fmt;

use distos_abi::Fault;
use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::digest::Update;
use sha2::{Sha256, Sha384, Sha512};

use crate::evidence::{ALG_SHA256, PcrSet, Pcrs};

/// A bank, by the algorithm with which its registers are extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bank {
    /// `TPM_ALG_SHA1`.
    Sha1,
    /// `TPM_ALG_SHA256`.
    Sha256,
    /// `TPM_ALG_SHA384`.
    Sha384,
    /// `TPM_ALG_SHA512`.
    Sha512,
}

impl Bank {
    /// Every bank, in the order of their algorithms' numbers.
    pub const ALL: [Bank; 4] = [Bank::Sha1, Bank::Sha256, Bank::Sha384, Bank::Sha512];

    /// `TPM_ALG_ID`.
    pub fn algorithm(self) -> u16 {
        match self {
            Bank::Sha1 => 0x0004,
            Bank::Sha256 => ALG_SHA256,
            Bank::Sha384 => 0x000c,
            Bank::Sha512 => 0x000d,
        }
    }

    /// The bank of this `TPM_ALG_ID`, if it is one that can be replayed.
    pub fn of_algorithm(id: u16) -> Option<Bank> {
        Bank::ALL.into_iter().find(|bank| bank.algorithm() == id)
    }

    /// Its name in tools and files.
    pub fn word(self) -> &'static str {
        match self {
            Bank::Sha1 => "sha1",
            Bank::Sha256 => "sha256",
            Bank::Sha384 => "sha384",
            Bank::Sha512 => "sha512",
        }
    }

    /// Bytes of a register.
    pub fn size(self) -> usize {
        match self {
            Bank::Sha1 => 20,
            Bank::Sha256 => 32,
            Bank::Sha384 => 48,
            Bank::Sha512 => 64,
        }
    }

    /// The digest of `parts`, one after the other.
    pub fn hash(self, parts: &[&[u8]]) -> Digest {
        match self {
            Bank::Sha1 => Digest::of(&hashed::<Sha1>(parts)),
            Bank::Sha256 => Digest::of(&hashed::<Sha256>(parts)),
            Bank::Sha384 => Digest::of(&hashed::<Sha384>(parts)),
            Bank::Sha512 => Digest::of(&hashed::<Sha512>(parts)),
        }
    }

    /// A register of this bank that holds the same byte everywhere.
    pub fn filled(self, byte: u8) -> Digest {
        Digest::of(&[byte; MAX_DIGEST][..self.size()])
    }
}

impl fmt::Display for Bank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Bank::Sha1 => "SHA-1",
            Bank::Sha256 => "SHA-256",
            Bank::Sha384 => "SHA-384",
            Bank::Sha512 => "SHA-512",
        })
    }
}

fn hashed<H: sha2::Digest + Update>(parts: &[&[u8]]) -> sha2::digest::Output<H> {
    parts.iter().fold(H::new(), |hash, part| hash.chain(part)).finalize()
}

/// Bytes of the longest digest.
const MAX_DIGEST: usize = 64;

/// What a register holds, or what it is extended with: as many bytes as the bank's algorithm gives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest {
    bytes: [u8; MAX_DIGEST],
    len: usize,
}

impl Digest {
    /// `bytes` are at most [`MAX_DIGEST`].
    fn of(bytes: &[u8]) -> Digest {
        let mut digest = Digest { bytes: [0; MAX_DIGEST], len: bytes.len() };
        digest.bytes[..bytes.len()].copy_from_slice(bytes);
        digest
    }

    /// The digest of `bank` that consists of these bytes; `None` if it has another size.
    pub fn from_bytes(bank: Bank, bytes: &[u8]) -> Option<Digest> {
        (bytes.len() == bank.size()).then(|| Digest::of(bytes))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// With another last byte: how a TPM notes in register 0 the locality in which it was started.
    pub(crate) fn with_last(mut self, byte: u8) -> Digest {
        self.bytes[self.len - 1] = byte;
        self
    }

    /// What a register of `bank` that holds this holds after `digest` was extended into it (`TPM2_PCR_Extend`).
    #[must_use]
    pub fn extended(&self, bank: Bank, digest: &[u8]) -> Digest {
        bank.hash(&[self.as_bytes(), digest])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.as_bytes()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// What registers of one bank hold, any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BankValues {
    bank: Bank,
    values: BTreeMap<u8, Digest>,
}

impl BankValues {
    /// No register of this bank.
    pub fn new(bank: Bank) -> BankValues {
        BankValues { bank, values: BTreeMap::new() }
    }

    /// Adds a register. [`Fault::Malformed`] if there is no such register, or the value has not the bank's size.
    pub fn insert(&mut self, pcr: u8, value: &[u8]) -> Result<(), Fault> {
        let bank = self.bank;
        if pcr >= PcrSet::COUNT {
            return Err(Fault::malformed(format!("there is no PCR {pcr}")));
        }
        let value = Digest::from_bytes(bank, value).ok_or_else(|| {
            let (has, wanted) = (value.len(), bank.size());
            Fault::malformed(format!("PCR {pcr} of {bank} has {wanted} bytes, not {has}"))
        })?;
        self.values.insert(pcr, value);
        Ok(())
    }

    /// The bank.
    pub fn bank(&self) -> Bank {
        self.bank
    }

    /// What a register holds, if it is among them.
    pub fn value(&self, pcr: u8) -> Option<&Digest> {
        self.values.get(&pcr)
    }

    /// The registers in ascending order, with what they hold.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &Digest)> {
        self.values.iter().map(|(pcr, value)| (*pcr, value))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// The longest text of register values that is looked at, in bytes.
pub const MAX_TEXT_BYTES: usize = 65_536;

/// Reads register values as people keep them: JSON (`{"sha256": {"0": "00…"}}`), or what `tpm2_pcrread` prints, a line
/// with the bank's name and a colon, then lines such as `0 : 0x00…`. Banks that cannot be replayed are left out.
///
/// [`Fault::Malformed`] says which line or register is wrong.
pub fn read_values(text: &str) -> Result<Vec<BankValues>, Fault> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(Fault::malformed(format!(
            "register values have at most {MAX_TEXT_BYTES} bytes"
        )));
    }
    let mut banks: BTreeMap<Bank, BankValues> = BTreeMap::new();
    let mut add = |name: &str, pcr: &str, value: &str| {
        let Some(bank) = Bank::ALL.into_iter().find(|bank| bank.word() == name) else {
            return Ok(());
        };
        let wrong = || Fault::malformed(format!("'{pcr}: {value}' is no register of {name}"));
        let pcr: u8 = pcr.trim().parse().map_err(|_| wrong())?;
        let value = value.trim().trim_start_matches("0x");
        let bytes = hex::decode(value).map_err(|_| wrong())?;
        let values = banks.entry(bank).or_insert_with(|| BankValues::new(bank));
        if values.value(pcr).is_some() {
            return Err(Fault::malformed(format!("PCR {pcr} of {bank} is there twice")));
        }
        values.insert(pcr, &bytes)
    };
    if text.trim_start().starts_with('{') {
        let read: BTreeMap<String, BTreeMap<String, String>> =
            serde_json::from_str(text).map_err(|e| Fault::malformed(e.to_string()))?;
        for (name, values) in &read {
            for (pcr, value) in values {
                add(name, pcr, value)?;
            }
        }
    } else {
        let mut name = "";
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (pcr, value) = line
                .split_once(':')
                .ok_or_else(|| Fault::malformed(format!("'{line}' is no register value")))?;
            if value.trim().is_empty() {
                name = pcr.trim();
            } else {
                add(name, pcr, value)?;
            }
        }
    }
    Ok(banks.into_values().collect())
}

/// Registers of the SHA-256 bank, such as a quote has proven; numbers that no PC client's TPM has are left out.
impl From<&Pcrs> for BankValues {
    fn from(pcrs: &Pcrs) -> BankValues {
        let known = pcrs.iter().filter(|(pcr, _)| **pcr < PcrSet::COUNT);
        let values = known.map(|(pcr, value)| (*pcr, Digest::of(value))).collect();
        BankValues { bank: Bank::Sha256, values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn register_values_are_read_as_tools_and_people_write_them() {
        let zeros = "0".repeat(64);
        let tool = format!(
            "  sha1:\n  sha256:\n    0 : 0x{zeros}\n    10: 0x{zeros}\n  sm3_256:\n    0 : 0x00\n"
        );
        let json = format!("{{\"sha256\": {{\"0\": \"{zeros}\", \"10\": \"{zeros}\"}}}}");
        for text in [&tool, &json] {
            let banks = read_values(text).unwrap();
            assert_eq!(banks.len(), 1);
            let read: Vec<u8> = banks[0].iter().map(|(pcr, _)| pcr).collect();
            assert_eq!((banks[0].bank(), read), (Bank::Sha256, vec![0, 10]));
        }
        for wrong in [
            "sha256:\n 0 : 0x00",
            "sha256:\n 24 : 0x00",
            "sha256:\n nothing",
            "{\"sha256\": 1}",
            &format!("sha256:\n 0: {zeros}\n 0: {zeros}"),
            &" ".repeat(MAX_TEXT_BYTES + 1),
        ] {
            assert!(read_values(wrong).is_err(), "{wrong}");
        }
        assert_eq!(read_values(""), Ok(Vec::new()));
    }
}
