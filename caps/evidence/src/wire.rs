//! Big-endian reading and writing as TPM 2.0 does it, and little-endian reading as logs need it. The
//! reader checks every length against what is there and allocates nothing.

/// Why bytes are not what they should be: the name of the field at which reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("broken or too short at {0}")]
pub struct Broken(pub &'static str);

/// Reads fields from the front of a slice.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the front of these.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// The next `len` bytes; `field` is what they are.
    pub fn bytes(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], Broken> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Broken(field))?;
        self.rest = rest;
        Ok(head)
    }

    /// As many as the array holds.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Broken> {
        self.bytes(N, field)?.try_into().map_err(|_| Broken(field))
    }

    /// A byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, Broken> {
        Ok(u8::from_be_bytes(self.array(field)?))
    }

    /// Two bytes.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, Broken> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }

    /// Four bytes.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, Broken> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    /// Eight bytes.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, Broken> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    /// Two bytes, the lowest first.
    pub fn u16_le(&mut self, field: &'static str) -> Result<u16, Broken> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    /// Four bytes, the lowest first.
    pub fn u32_le(&mut self, field: &'static str) -> Result<u32, Broken> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// Eight bytes, the lowest first.
    pub fn u64_le(&mut self, field: &'static str) -> Result<u64, Broken> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// As many bytes as the four before them say, the lowest first.
    pub fn sized_le(&mut self, field: &'static str) -> Result<&'a [u8], Broken> {
        let len = self.u32_le(field)?;
        self.bytes(usize::try_from(len).map_err(|_| Broken(field))?, field)
    }

    /// A `TPM2B`: two bytes of length, then that many bytes.
    pub fn sized(&mut self, field: &'static str) -> Result<&'a [u8], Broken> {
        let len = self.u16(field)?;
        self.bytes(usize::from(len), field)
    }

    /// What has not been read.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Whether all has been read.
    pub fn is_empty(self) -> bool {
        self.rest.is_empty()
    }

    /// Demands that nothing is left.
    pub fn end(self, field: &'static str) -> Result<(), Broken> {
        if self.rest.is_empty() { Ok(()) } else { Err(Broken(field)) }
    }
}

/// Appends fields. What it writes is one's own, of known and small size.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// With room for so many bytes from the start. What grows leaves its old bytes behind, which may be secret.
    pub fn with_room(bytes: usize) -> Self {
        Writer { bytes: Vec::with_capacity(bytes) }
    }

    /// Appends bytes.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends one.
    pub fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    /// Appends two.
    pub fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends four.
    pub fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// A `TPM2B` of at most 65,535 bytes.
    pub fn sized(self, bytes: &[u8]) -> Self {
        let len = u16::try_from(bytes.len()).expect("fields of our own commands are under 64 KiB");
        self.u16(len).bytes(bytes)
    }

    /// What was appended.
    pub fn done(self) -> Vec<u8> {
        self.bytes
    }
}

impl From<Broken> for distos_abi::Fault {
    fn from(broken: Broken) -> distos_abi::Fault {
        distos_abi::Fault::malformed(broken.to_string())
    }
}
