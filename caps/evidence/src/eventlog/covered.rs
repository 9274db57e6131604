//! Which bytes of an event its digest covers. Types are not covered: these rules say only where to look, and what is
//! found counts because the digest is that of the bytes.

use super::event::{Event, EventType};
use crate::bank::Bank;
use crate::wire::{Broken, Reader};

/// What GRUB puts before a string that it measures, and does not measure: its commands, the kernel's command line, a
/// module's. The two without a colon are those of the patch that some distributions carry.
const GRUB_PREFIXES: [&[u8]; 5] = [
    b"grub_cmd: ",
    KERNEL_COMMAND_LINE,
    b"module_cmdline: ",
    b"grub_cmd ",
    KERNEL_COMMAND_LINE_OLD,
];
pub(super) const KERNEL_COMMAND_LINE: &[u8] = b"kernel_cmdline: ";
pub(super) const KERNEL_COMMAND_LINE_OLD: &[u8] = b"grub_kernel_cmdline ";

/// How an event's digest relates to its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covered<'a> {
    /// It is the digest of these bytes of it.
    Data(&'a [u8]),
    /// It should be, by the event's type, and is not: the data is what anybody may have written.
    Not,
    /// It is of something that the log does not hold, such as an image: only the digest says anything.
    Elsewhere,
}

impl<'a> Event<'a> {
    /// Hashes what this event's digest of `bank` should cover, once for every form that is in use.
    pub fn covered(&self, bank: Bank) -> Covered<'a> {
        let data = self.data;
        let [usual, other] = match self.kind {
            // Strings, variables and tables, measured as they stand (10.4.1).
            EventType::SEPARATOR
            | EventType::ACTION
            | EventType::S_CRTM_VERSION
            | EventType::PLATFORM_CONFIG_FLAGS
            | EventType::IPL_PARTITION_DATA
            | EventType::NONHOST_INFO
            | EventType::OMIT_BOOT_DEVICE_EVENTS
            | EventType::EFI_VARIABLE_DRIVER_CONFIG
            | EventType::EFI_VARIABLE_BOOT2
            | EventType::EFI_GPT_EVENT
            | EventType::EFI_GPT_EVENT2
            | EventType::EFI_ACTION
            | EventType::EFI_SPDM_DEVICE_POLICY
            | EventType::EFI_SPDM_DEVICE_AUTHORITY => [Some(data), None],
            // EDK II measures the variable's data alone; other firmware the whole structure.
            EventType::EFI_VARIABLE_BOOT => {
                [Variable::parse(data).ok().map(|variable| variable.data), Some(data)]
            }
            // Shim before version 15.3 logs one byte more than it measures.
            EventType::EFI_VARIABLE_AUTHORITY => {
                [Some(data), data.split_last().map(|(_, measured)| measured)]
            }
            EventType::IPL => match grub_string(data) {
                Some(string) => [Some(string.strip_suffix(b"\0").unwrap_or(string)), Some(string)],
                None => [Some(data), None],
            },
            _ => return Covered::Elsewhere,
        };
        let found = [usual, other].into_iter().flatten().find(|bytes| self.is_of(bank, bytes));
        match found {
            Some(bytes) => Covered::Data(bytes),
            // Boot loaders log the name of a file, and measure what is in it.
            None if self.kind == EventType::IPL && grub_string(data).is_none() => {
                Covered::Elsewhere
            }
            None => Covered::Not,
        }
    }
}

/// What follows one of GRUB's prefixes.
fn grub_string(data: &[u8]) -> Option<&[u8]> {
    GRUB_PREFIXES.iter().find_map(|prefix| data.strip_prefix(*prefix))
}

/// `UEFI_VARIABLE_DATA` (10.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variable<'a> {
    /// Its vendor's GUID, as it stands in memory.
    pub(super) vendor: [u8; 16],
    /// Its name in UTF-16.
    name: &'a [u8],
    /// What it holds.
    pub(super) data: &'a [u8],
}

impl<'a> Variable<'a> {
    /// Reads one. Bytes behind it are not part of it: shim logs some.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Variable<'a>, Broken> {
        let mut r = Reader::new(bytes);
        let vendor = r.array("variableName")?;
        let units = r.u64_le("unicodeNameLength")?;
        let size = r.u64_le("variableDataLength")?;
        let name_bytes = usize::try_from(units).ok().and_then(|units| units.checked_mul(2));
        let name = r.bytes(name_bytes.ok_or(Broken("unicodeName"))?, "unicodeName")?;
        let size = usize::try_from(size).map_err(|_| Broken("variableData"))?;
        Ok(Variable { vendor, name, data: r.bytes(size, "variableData")? })
    }

    /// Its name; `None` if it is not UTF-16.
    pub(super) fn name(&self) -> Option<String> {
        utf16(self.name)
    }
}

/// Text in UTF-16, the lower byte first; `None` if it is not.
pub(super) fn utf16(bytes: &[u8]) -> Option<String> {
    if !bytes.len().is_multiple_of(2) {
        return None;
    }
    let units = bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    char::decode_utf16(units).collect::<Result<String, _>>().ok()
}
