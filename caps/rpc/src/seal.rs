//! Connections that are encrypted from their holder to this vat, whatever passes them on. How that is done, this
//! crate does not know.

use distos_abi::{Fault, HolderKey};
use distos_types::CHANNEL_KEY_BYTES;
use futures::future::LocalBoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::faults::fault_of;
use crate::vat::Vat;

/// What a connection begins with that is encrypted so. Of Cap'n Proto it cannot be the beginning: it would
/// announce a message of 24 million segments.
pub const HELLO: [u8; 4] = [0xff, b'd', b'n', 1];

/// What is read from and written to, of whatever kind.
pub type Reader = Box<dyn AsyncRead + Unpin>;
/// Likewise.
pub type Writer = Box<dyn AsyncWrite + Unpin>;

/// Answers those who begin a connection with [`HELLO`].
pub trait Seal: 'static {
    /// Takes whoever has said that into `vat`. What is read and written then is in the clear here, and between
    /// here and the holder it is not.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] if the other side does not show that it is who it says.
    fn accept(
        &self,
        vat: &Vat,
        reader: Reader,
        writer: Writer,
    ) -> LocalBoxFuture<'static, Result<Sealed, Fault>>;
}

/// A connection that is encrypted from end to end.
pub struct Sealed {
    /// Whose key is at its other end.
    pub holder: HolderKey,
    /// What it says.
    pub reader: Reader,
    /// What it is told.
    pub writer: Writer,
}

/// Whose key is at the other end of a connection, as far as that has shown it. What TLS shows is not enough for what is
/// to be end to end: any issuer of the cluster can name anybody as the home, and the holder would not know.
#[derive(Clone, Copy)]
pub(crate) enum End {
    /// It has not: it ends here, and behind its other end may be anybody who passes it on.
    Unknown,
    /// A session that ends there has, whatever passes it on.
    Sealed(HolderKey),
}

impl End {
    /// That this holder may have a capability restored here, which is to be `end_to_end` or not.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] if somebody else's ears are in between.
    pub(crate) fn admits(self, holder: HolderKey, end_to_end: bool) -> Result<(), Fault> {
        let refuse = |why: &str| Err(Fault::Unauthenticated(why.to_owned()));
        match self {
            End::Sealed(key) if key == holder => Ok(()),
            // Else whoever passes a connection on could make one of its own, and have both sides tell it all.
            End::Sealed(_) => refuse("this connection is encrypted for the key of somebody else"),
            End::Unknown if end_to_end => refuse(
                "this capability is end to end: connect as its holder by `distos connect --end-to-end`",
            ),
            End::Unknown => Ok(()),
        }
    }
}

/// That a key is a vat's, signed by its node.
pub struct Certified {
    /// Until when, in milliseconds since the Unix epoch.
    pub until_ms: u64,
    /// The signature of `distos_types::channel_message`.
    pub signature: [u8; 64],
}

impl Vat {
    /// Has the node sign that this X25519 key is this vat's.
    ///
    /// # Errors
    /// The kernel is gone.
    pub async fn certify(&self, key: &[u8; CHANNEL_KEY_BYTES]) -> Result<Certified, Fault> {
        let mut request = self.kernel()?.certify_request();
        request.get().set_key(key);
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let answer = answer.get().map_err(|e| fault_of(&e))?;
        let signature = answer.get_signature().map_err(|e| fault_of(&e))?;
        let signature = signature.try_into().map_err(|_| Fault::malformed("a signature"))?;
        Ok(Certified { until_ms: answer.get_until_ms(), signature })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else a relay hears what its user's image says that it must not.
    #[test]
    fn nobody_but_the_holder_restores_what_is_end_to_end() {
        let (red, relay) = (HolderKey([1; 32]), HolderKey([2; 32]));
        let table = [
            // Who is at the end, and whether it may restore what is not end to end, and what is.
            (End::Unknown, true, false),
            (End::Sealed(red), true, true),
            (End::Sealed(relay), false, false),
        ];
        for (end, plain, end_to_end) in table {
            assert_eq!(end.admits(red, false).is_ok(), plain);
            assert_eq!(end.admits(red, true).is_ok(), end_to_end);
        }
    }
}
