//! Logs in a vat's directory: a file of frames, each of which one `fdatasync` makes durable. Pure functions over bytes;
//! what a frame's payload says is its vat's affair.
//!
//! The file is a header sector and then frames. A frame is a header, the payload, padding and a BLAKE3 hash, in whole
//! sectors, chained to the frame before it. The next frame is written only after the sync, so at most the last frame can
//! be torn, and a torn frame lacks whole sectors: it ends early, or a sector of it, none of which is ever all zeros when
//! whole, is zeros. Such a frame was never acknowledged and is cut. Any other mismatch is damage to acknowledged data and
//! is an error, never a guess.

/// What a disk writes whole or not at all, in bytes.
pub const SECTOR: usize = 512;
/// The most bytes of payload in one frame.
pub const MAX_PAYLOAD: usize = 1 << 20;

const HEADER: usize = 56;
const HASH: usize = 32;

/// Whose log it is.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// What the file begins with.
    pub file: [u8; 16],
    /// What each frame begins with.
    pub frame: [u8; 4],
    /// The newest version that is read, and the one that is written.
    pub version: u32,
}

/// The end of a log: what the next frame continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Where the next frame goes.
    pub offset: u64,
    /// Its number.
    pub sequence: u64,
    /// Hash of the frame before it.
    pub chain: [u8; HASH],
}

/// Why a log could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread<E> {
    /// Its bytes could not be read.
    Read(E),
    /// They are not what was written.
    Damaged {
        /// Where.
        offset: u64,
        /// What is wrong there.
        why: String,
    },
    /// It is whole, and of this newer version.
    Newer(u32),
}

impl<E> Unread<E> {
    fn damaged(offset: u64, why: impl Into<String>) -> Self {
        Unread::Damaged { offset, why: why.into() }
    }
}

/// Reads bytes of a log at an offset; the range is within its length.
pub type ReadAt<'a, E> = &'a dyn Fn(u64, &mut [u8]) -> Result<(), E>;

/// A frame that was read, without its header: payload and the tail behind it. `None` if it is torn.
type Found = Option<(Vec<u8>, Tail)>;

impl Format {
    /// A new log's header sector. `id` is random: frames of one log never continue another.
    pub fn header(&self, id: [u8; 16]) -> (Vec<u8>, Tail) {
        let mut sector = vec![0; SECTOR];
        sector[..16].copy_from_slice(&self.file);
        sector[16..20].copy_from_slice(&self.version.to_le_bytes());
        sector[20..36].copy_from_slice(&id);
        let chain = *blake3::hash(&sector[..SECTOR - HASH]).as_bytes();
        sector[SECTOR - HASH..].copy_from_slice(&chain);
        (sector, Tail { offset: SECTOR as u64, sequence: 0, chain })
    }

    /// A frame that continues `tail`, and the tail after it. At most [`MAX_PAYLOAD`] bytes.
    pub fn frame(&self, tail: Tail, payload: &[u8]) -> (Vec<u8>, Tail) {
        let mut bytes = Vec::with_capacity(frame_bytes(payload.len()));
        bytes.extend(self.frame);
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(tail.sequence.to_le_bytes());
        bytes.extend(tail.chain);
        let check = blake3::hash(&bytes);
        bytes.extend(&check.as_bytes()[..8]);
        bytes.extend(payload);
        bytes.resize(frame_bytes(payload.len()) - HASH, 0);
        let chain = *blake3::hash(&bytes).as_bytes();
        bytes.extend(chain);
        let offset = tail.offset + bytes.len() as u64;
        (bytes, Tail { offset, sequence: tail.sequence + 1, chain })
    }

    /// Reads a whole log of `len` bytes, giving each frame's payload to `each`, which says what is wrong with one that
    /// makes no sense. Returns where the log ends; bytes beyond that are a torn frame, to be cut.
    pub fn replay<E>(
        &self,
        len: u64,
        read: ReadAt<'_, E>,
        each: &mut dyn FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<Tail, Unread<E>> {
        let mut tail = self.open(len, read)?;
        while tail.offset < len {
            let Some((payload, next)) = self.next_frame(len, read, tail)? else { break };
            each(&payload).map_err(|why| Unread::damaged(tail.offset, why))?;
            tail = next;
        }
        Ok(tail)
    }

    fn open<E>(&self, len: u64, read: ReadAt<'_, E>) -> Result<Tail, Unread<E>> {
        if len < SECTOR as u64 {
            return Err(Unread::damaged(0, "it ends within its header"));
        }
        let mut sector = vec![0; SECTOR];
        read(0, &mut sector).map_err(Unread::Read)?;
        if sector[..16] != self.file {
            return Err(Unread::damaged(0, "it does not begin as it should"));
        }
        if blake3::hash(&sector[..SECTOR - HASH]) != sector[SECTOR - HASH..] {
            return Err(Unread::damaged(0, "its header is not what was written"));
        }
        let mut reader = Reader(&sector[16..]);
        let found = reader.u32().unwrap_or(0);
        if found > self.version {
            return Err(Unread::Newer(found));
        }
        let id = reader.bytes().unwrap_or_default();
        Ok(self.header(id).1)
    }

    /// A frame header that is whole: payload length, sequence, chain.
    fn frame_header(&self, sector: &[u8]) -> Option<(usize, u64, [u8; HASH])> {
        let whole = sector[..4] == self.frame
            && blake3::hash(&sector[..HEADER - 8]).as_bytes()[..8] == sector[HEADER - 8..HEADER];
        let mut reader = Reader(&sector[4..HEADER]);
        let header = (reader.u32()? as usize, reader.u64()?, reader.bytes()?);
        (whole && header.0 <= MAX_PAYLOAD).then_some(header)
    }

    fn next_frame<E>(&self, len: u64, read: ReadAt<'_, E>, tail: Tail) -> Result<Found, Unread<E>> {
        let rest = len - tail.offset;
        if rest < SECTOR as u64 {
            return Ok(None);
        }
        let mut bytes = vec![0; SECTOR];
        read(tail.offset, &mut bytes).map_err(Unread::Read)?;
        if bytes.iter().all(|b| *b == 0) {
            return self.torn(len, read, tail.offset + SECTOR as u64, tail.offset);
        }
        let (payload, sequence, chain) = self.frame_header(&bytes).ok_or_else(|| {
            Unread::damaged(tail.offset, "a frame's header does not match its checksum")
        })?;
        if (sequence, chain) != (tail.sequence, tail.chain) {
            let why = "a frame does not continue the one before it";
            return Err(Unread::damaged(tail.offset, why));
        }
        let total = frame_bytes(payload);
        if rest < total as u64 {
            return Ok(None);
        }
        bytes.resize(total, 0);
        read(tail.offset, &mut bytes).map_err(Unread::Read)?;
        let (body, hash) = bytes.split_at(total - HASH);
        if blake3::hash(body) != *hash {
            return if bytes.chunks(SECTOR).any(|sector| sector.iter().all(|b| *b == 0)) {
                self.torn(len, read, tail.offset + total as u64, tail.offset)
            } else {
                Err(Unread::damaged(tail.offset, "a frame does not match its checksum"))
            };
        }
        let chain = hash.try_into().expect("split at its length");
        let next = Tail { offset: tail.offset + total as u64, sequence: sequence + 1, chain };
        Ok(Some((bytes[HEADER..HEADER + payload].to_vec(), next)))
    }

    /// A frame that lacks sectors is torn if no frame follows it; otherwise it was durable once.
    fn torn<E>(
        &self,
        len: u64,
        read: ReadAt<'_, E>,
        mut from: u64,
        at: u64,
    ) -> Result<Found, Unread<E>> {
        let mut sector = vec![0; SECTOR];
        while from + SECTOR as u64 <= len {
            read(from, &mut sector).map_err(Unread::Read)?;
            if self.frame_header(&sector).is_some() {
                return Err(Unread::damaged(at, "a frame is missing, later ones are there"));
            }
            from += SECTOR as u64;
        }
        Ok(None)
    }
}

fn frame_bytes(payload: usize) -> usize {
    (HEADER + payload + HASH).next_multiple_of(SECTOR)
}

/// Takes little-endian fields off the front of bytes; `None` where they end too early.
#[derive(Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `N` bytes.
    pub fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    /// The next `len` bytes.
    pub fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    /// A byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.bytes::<1>().map(|[b]| b)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// UTF-8 of `len` bytes.
    pub fn text(&mut self, len: usize) -> Option<String> {
        String::from_utf8(self.slice(len)?.to_vec()).ok()
    }
}
