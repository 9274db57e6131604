//! What the registers hold if the log is true, and whether they do.

use super::event::{Event, EventLog, EventType, Refusal};
use crate::bank::{Bank, BankValues, Digest};
use crate::evidence::PcrSet;

/// `TCG_EfiStartupLocalityEvent` (10.4.5.3): this, and a byte.
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";
/// The locality of a hardware root of trust (H-CRTM), which measures before the TPM is started.
const HCRTM_LOCALITY: u8 = 4;

/// The registers of one bank as a log leaves them.
#[derive(Clone, Debug)]
pub struct Registers {
    bank: Bank,
    values: [Digest; PcrSet::COUNT as usize],
    extended: PcrSet,
}

impl Registers {
    /// The bank.
    pub fn bank(&self) -> Bank {
        self.bank
    }

    /// The registers that the log extends.
    pub fn extended(&self) -> PcrSet {
        self.extended
    }

    /// What a register holds; `None` if there is no such register. One that the log does not extend holds its initial
    /// value (PC Client Platform TPM Profile, 4.6): all ones for 17 to 22, which a dynamic launch resets, and zero else.
    pub fn value(&self, pcr: u8) -> Option<Digest> {
        let value = self.values.get(usize::from(pcr))?;
        let dynamic = (17..=22).contains(&pcr) && !self.extended.contains(pcr);
        Some(if dynamic { self.bank.filled(0xff) } else { *value })
    }

    /// Splits the given registers into those that hold what the log leaves in them, and those that do not.
    pub fn compare(&self, given: &BankValues) -> (PcrSet, PcrSet) {
        let mut equal = PcrSet::default();
        let mut differ = PcrSet::default();
        for (pcr, value) in given.iter() {
            if given.bank() == self.bank && self.value(pcr) == Some(*value) {
                equal = equal.with(pcr);
            } else {
                differ = differ.with(pcr);
            }
        }
        (equal, differ)
    }
}

impl EventLog<'_> {
    /// Extends every event's digest of `bank` into its register, as the TPM did.
    pub fn replay(&self, bank: Bank) -> Result<Registers, Refusal> {
        let mut registers = Registers {
            bank,
            values: [bank.filled(0); PcrSet::COUNT as usize],
            extended: PcrSet::default(),
        };
        registers.values[0] = bank.filled(0).with_last(self.startup_locality()?);
        for event in self.events().iter().filter(|event| event.extends()) {
            let digest =
                event.digest(bank).ok_or(Refusal::NoDigest { event: event.number, bank })?;
            let value = &mut registers.values[usize::from(event.pcr)];
            *value = value.extended(bank, digest);
            registers.extended = registers.extended.with(event.pcr);
        }
        Ok(registers)
    }

    /// The locality in which the TPM was started, which register 0 holds in its last byte before it is extended. Where no
    /// event states it, it is 4 if a hardware root of trust was measured first, and else 0.
    fn startup_locality(&self) -> Result<u8, Refusal> {
        let mut stated = None;
        let mut first = None;
        for event in self.events() {
            let number = event.number;
            if event.extends() {
                if event.pcr == 0 && first.is_none() {
                    first = Some(event.kind);
                }
            } else if let Some(locality) = locality_of(event) {
                let known = matches!(locality, &[0 | 3 | HCRTM_LOCALITY]);
                if !known || stated.is_some() || first.is_some() {
                    return Err(Refusal::Locality { event: number });
                }
                stated = locality.first().copied();
            }
        }
        let hardware = first == Some(EventType::EFI_HCRTM_EVENT);
        Ok(stated.unwrap_or(if hardware { HCRTM_LOCALITY } else { 0 }))
    }
}

/// What follows the signature of a startup locality event, which should be one byte.
fn locality_of<'a>(event: &Event<'a>) -> Option<&'a [u8]> {
    event.data.strip_prefix(STARTUP_LOCALITY)
}
