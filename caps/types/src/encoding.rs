//! Reading and writing fixed little-endian fields. A reader never goes past its input, and what
//! it accepts has one encoding only.

use distos_abi::{Authority, ByteRange, Caveats, Fault, Rights};

/// How long an encoded authority is.
pub const AUTHORITY_BYTES: usize = 48;
/// In the rights' word: no right has this bit. Whoever does not know it takes it for a right that nobody has.
const END_TO_END: u64 = 1 << 63;

/// Takes fields off the front of a byte string.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// The next `len` bytes; `what` names the field in the fault.
    pub(crate) fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| Fault::malformed(format!("the chain ends within {what}")))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self, what: &str) -> Result<u8, Fault> {
        self.array(what).map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self, what: &str) -> Result<u16, Fault> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, Fault> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, Fault> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Rights and caveats. A byte range that ends before it starts is refused.
    pub(crate) fn authority(&mut self) -> Result<Authority, Fault> {
        let authority = authority_from(&self.array("an authority")?);
        if authority.caveats.range.end < authority.caveats.range.start {
            return Err(Fault::malformed("a byte range ends before it starts"));
        }
        Ok(authority)
    }

    /// Refuses anything left over.
    pub(crate) fn end(self) -> Result<(), Fault> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(Fault::malformed(format!("{} bytes follow the end of the chain", self.rest.len())))
    }
}

/// Rights and caveats as bytes: each number little-endian, in the order in which [`Authority`] has them, and
/// whether it is end to end in the rights' word.
pub fn authority_bytes(authority: Authority) -> [u8; AUTHORITY_BYTES] {
    let Authority { rights, caveats } = authority;
    let word = match caveats.end_to_end {
        true => rights.0 | END_TO_END,
        false => rights.0 & !END_TO_END,
    };
    let mut out = [0; AUTHORITY_BYTES];
    let numbers = [
        &word.to_le_bytes()[..],
        &caveats.expires_ms.to_le_bytes(),
        &caveats.range.start.to_le_bytes(),
        &caveats.range.end.to_le_bytes(),
        &caveats.quota_bytes.to_le_bytes(),
        &caveats.quota_tasks.to_le_bytes(),
        &caveats.rate_per_s.to_le_bytes(),
    ];
    for (byte, number) in out.iter_mut().zip(numbers.into_iter().flatten()) {
        *byte = *number;
    }
    out
}

/// Reads [`authority_bytes`]: whatever 48 bytes are one.
pub fn authority_from(bytes: &[u8; AUTHORITY_BYTES]) -> Authority {
    let number = |at: usize, len: usize| {
        let mut number = [0; 8];
        number[..len].copy_from_slice(&bytes[at..at + len]);
        u64::from_le_bytes(number)
    };
    let word = number(0, 8);
    let caveats = Caveats {
        expires_ms: number(8, 8),
        range: ByteRange { start: number(16, 8), end: number(24, 8) },
        quota_bytes: number(32, 8),
        // Four bytes each.
        quota_tasks: number(40, 4) as u32,
        rate_per_s: number(44, 4) as u32,
        end_to_end: word & END_TO_END != 0,
    };
    Authority { rights: Rights(word & !END_TO_END), caveats }
}
