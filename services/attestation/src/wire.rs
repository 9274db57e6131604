//! Big-endian reading and writing as TPM 2.0 does it. The reader checks every length against what
//! is there and allocates nothing.

/// Why bytes are not what they should be: the name of the field at which reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("broken or too short at {0}")]
pub struct Broken(pub &'static str);

/// Reads fields from the front of a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    pub(crate) fn bytes(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], Broken> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Broken(field))?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Broken> {
        self.bytes(N, field)?.try_into().map_err(|_| Broken(field))
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, Broken> {
        Ok(u8::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, Broken> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, Broken> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, Broken> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    /// A `TPM2B`: two bytes of length, then that many bytes.
    pub(crate) fn sized(&mut self, field: &'static str) -> Result<&'a [u8], Broken> {
        let len = self.u16(field)?;
        self.bytes(usize::from(len), field)
    }

    /// What has not been read.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Demands that nothing is left.
    pub(crate) fn end(self, field: &'static str) -> Result<(), Broken> {
        if self.rest.is_empty() { Ok(()) } else { Err(Broken(field)) }
    }
}

/// Appends fields. What it writes is this crate's own, of known and small size.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// A `TPM2B`.
    pub(crate) fn sized(self, bytes: &[u8]) -> Self {
        let len = u16::try_from(bytes.len()).expect("fields of our own commands are under 64 KiB");
        self.u16(len).bytes(bytes)
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.bytes
    }
}
