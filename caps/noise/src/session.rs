//! What two sides have that agreed on keys: each seals what it sends, frame by frame, and opens what the other sent, in
//! the order in which it was sent.

use std::fmt;
use std::sync::Arc;

use distos_abi::Fault;
use snow::{HandshakeState, StatelessTransportState};

/// By how many bytes what is sealed is longer.
pub const TAG_BYTES: usize = 16;
/// The most plain bytes of a frame: what is sealed has a length of two bytes.
pub const MAX_PLAIN_BYTES: usize = u16::MAX as usize - TAG_BYTES;

/// Keys for both directions.
pub struct Session {
    keys: Arc<StatelessTransportState>,
}

impl Session {
    pub(crate) fn of(state: HandshakeState) -> Result<Session, Fault> {
        let keys = state.into_stateless_transport_mode().map_err(Fault::internal)?;
        Ok(Session { keys: Arc::new(keys) })
    }

    /// The two directions, for whoever sends and whoever receives.
    pub fn split(self) -> (Sealer, Opener) {
        let sealer = Sealer { keys: self.keys.clone(), next: Number(Some(0)) };
        (sealer, Opener { keys: self.keys, next: Number(Some(0)) })
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session(…)")
    }
}

/// The number of the next frame, its nonce: each is used once. `None` when there is none any more.
struct Number(Option<u64>);

impl Number {
    /// The largest that is used: Noise keeps the one after it for itself (5.1).
    const LAST: u64 = u64::MAX - 1;

    /// The number, which is then used up.
    fn take(&mut self) -> Result<u64, Fault> {
        let taken = self.0.ok_or_else(|| {
            Fault::unavailable(
                0,
                "the session is over: its frames are used up, or one did not open",
            )
        })?;
        self.0 = (taken < Number::LAST).then(|| taken + 1);
        Ok(taken)
    }
}

/// Seals what is sent.
pub struct Sealer {
    keys: Arc<StatelessTransportState>,
    next: Number,
}

impl Sealer {
    /// Seals 1 to [`MAX_PLAIN_BYTES`] bytes as the next frame into the front of `sealed`, and returns how many bytes that
    /// has: [`TAG_BYTES`] more.
    ///
    /// [`Fault::Internal`] if there are more or fewer bytes, or no room; [`Fault::Unavailable`] if the session has had
    /// as many frames as it may.
    pub fn seal(&mut self, plain: &[u8], sealed: &mut [u8]) -> Result<usize, Fault> {
        if !(1..=MAX_PLAIN_BYTES).contains(&plain.len()) {
            return Err(Fault::internal(format!("{} bytes are no frame", plain.len())));
        }
        self.keys.write_message(self.next.take()?, plain, sealed).map_err(Fault::internal)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer(at {:?})", self.next.0)
    }
}

/// Opens what is received.
pub struct Opener {
    keys: Arc<StatelessTransportState>,
    next: Number,
}

impl Opener {
    /// Opens the next frame into the front of `plain`, and returns how many bytes that are: [`TAG_BYTES`] fewer, and at
    /// least one.
    ///
    /// [`Fault::Malformed`] if it is too short or too long for a frame, [`Fault::Unauthenticated`] if it is not the next that the
    /// other side sealed, [`Fault::Internal`] if there is no room. Then the session is over, and every further one is
    /// refused with [`Fault::Unavailable`]. What `plain` holds then is nothing that was sealed.
    pub fn open(&mut self, sealed: &[u8], plain: &mut [u8]) -> Result<usize, Fault> {
        let number = self.next.take()?;
        let opened = self.opened(number, sealed, plain);
        if opened.is_err() {
            self.next = Number(None);
        }
        opened
    }

    fn opened(&self, number: u64, sealed: &[u8], plain: &mut [u8]) -> Result<usize, Fault> {
        let bytes = sealed.len().saturating_sub(TAG_BYTES);
        if !(1..=MAX_PLAIN_BYTES).contains(&bytes) {
            return Err(Fault::malformed(format!("{} bytes are no frame", sealed.len())));
        }
        if plain.len() < bytes {
            return Err(Fault::internal("a frame is longer than the room for it"));
        }
        self.keys.read_message(number, sealed, plain).map_err(|_| {
            Fault::Unauthenticated("a frame was changed, left out or repeated on its way".into())
        })
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opener(at {:?})", self.next.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A nonce that is used twice shows what it sealed.
    #[test]
    fn a_session_ends_before_it_uses_a_number_twice() {
        let mut number = Number(Some(Number::LAST - 1));
        assert_eq!(number.take(), Ok(u64::MAX - 2));
        assert_eq!(number.take(), Ok(u64::MAX - 1));
        for _ in 0..2 {
            assert!(matches!(number.take(), Err(Fault::Unavailable { .. })));
        }
    }
}
