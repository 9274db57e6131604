//! How both sides come to have the same keys: two messages, by `snow`.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use distos_abi::{Fault, HolderKey};
use distos_types::{HolderSecret, SECRET_BYTES, SecretPage, verify_signature};
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random as Source};
use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use crate::card::{CARD_BYTES, Card, Place, StaticPublic};
use crate::session::{Session, TAG_BYTES};
use distos_rpc::seal::HELLO;

const PROTOCOL: &str = "Noise_IK_25519_XChaChaPoly_BLAKE2s";
const HOLDER_DOMAIN: &[u8] = b"distos-noise-holder-v1";

const KEY_BYTES: usize = 32;
/// The holder's key and its signature.
const PAYLOAD_BYTES: usize = KEY_BYTES + 64;
/// Noise's first message, in bytes: an ephemeral key, the holder's static key, sealed, and who the holder is, sealed.
pub const MESSAGE_1_BYTES: usize =
    KEY_BYTES + (KEY_BYTES + TAG_BYTES) + (PAYLOAD_BYTES + TAG_BYTES);
/// Noise's second message, in bytes: an ephemeral key, and the seal of nothing.
pub const MESSAGE_2_BYTES: usize = KEY_BYTES + TAG_BYTES;

/// Fills 32 bytes that nobody else knows and that were never used before: an ephemeral or static secret.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8; SECRET_BYTES]) -> Result<(), Fault>;

/// An X25519 pair: a vat's, made when it starts. The secret stays in its page, and is erased with it. Never shown by `Debug`.
pub struct StaticKey {
    secret: SecretPage,
    public: StaticPublic,
}

impl StaticKey {
    /// The pair of a secret, which `fill` writes where it stays: 32 random bytes. An error of `fill` is passed on.
    pub fn fill<E>(
        fill: impl FnOnce(&mut [u8; SECRET_BYTES]) -> Result<(), E>,
    ) -> Result<StaticKey, E> {
        let secret = SecretPage::fill(fill)?;
        let public = public_of(secret.expose());
        Ok(StaticKey { secret, public })
    }

    /// The public half.
    pub fn public(&self) -> StaticPublic {
        self.public
    }
}

impl fmt::Debug for StaticKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StaticKey(of {:?})", self.public)
    }
}

fn public_of(secret: &[u8; SECRET_BYTES]) -> StaticPublic {
    let mut pair =
        DefaultResolver.resolve_dh(&DHChoice::Curve25519).expect("snow is built with X25519");
    pair.set(secret);
    let mut public = [0; KEY_BYTES];
    public.copy_from_slice(pair.pubkey());
    // It does not erase the secret itself.
    pair.set(&[0; SECRET_BYTES]);
    StaticPublic(public)
}

/// A holder's side between the two messages.
pub struct Initiator {
    state: HandshakeState,
}

impl Initiator {
    /// The first message to the vat at `place` which has this card, at time `now_ms`, in milliseconds since the Unix epoch.
    ///
    /// Fails as [`Card::verify`] does, and with whatever `random` fails with.
    pub fn begin(
        card: &Card,
        place: &Place,
        holder: &HolderSecret,
        now_ms: u64,
        random: Random<'_>,
    ) -> Result<(Initiator, [u8; MESSAGE_1_BYTES]), Fault> {
        let vat = card.verify(place, now_ms)?;
        let own = StaticKey::fill(&mut *random)?;
        let mut state = handshake(&own, Some(vat), &prologue(place, &card.encode()), random)?;
        let mut payload = [0; PAYLOAD_BYTES];
        let (key, signature) = payload.split_at_mut(KEY_BYTES);
        key.copy_from_slice(&holder.key().0);
        signature.copy_from_slice(&holder.sign(&statement(place, own.public(), vat)));
        let mut message = [0; MESSAGE_1_BYTES];
        let written = state.write_message(&payload, &mut message).map_err(Fault::internal)?;
        debug_assert_eq!(written, message.len());
        Ok((Initiator { state }, message))
    }

    /// The session, if `message` is the vat's answer: [`Fault::Malformed`] if it is none,
    /// [`Fault::Unauthenticated`] if it is not by whoever has the static key of the card, or does not answer this.
    pub fn finish(mut self, message: &[u8]) -> Result<Session, Fault> {
        if message.len() != MESSAGE_2_BYTES {
            return Err(not_so_long("the vat's answer", message, MESSAGE_2_BYTES));
        }
        self.state.read_message(message, &mut []).map_err(|_| {
            Fault::Unauthenticated(
                "the answer is not by whoever has the key of the vat's card, or was changed on its \
                 way"
                .into(),
            )
        })?;
        Session::of(self.state)
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Initiator(…)")
    }
}

/// What a vat answers with: its static key, and a card for it.
#[derive(Debug)]
pub struct Own {
    key: Arc<StaticKey>,
    place: Place,
    card: [u8; CARD_BYTES],
}

impl Own {
    /// For the vat at `place`, which has this key, and this card for it.
    pub fn new(key: Arc<StaticKey>, place: Place, card: &Card) -> Own {
        Own { key, place, card: card.encode() }
    }

    /// The card, encoded.
    pub fn card(&self) -> &[u8] {
        &self.card
    }

    /// The session that a holder's first message begins, the holder, and the message that answers it. That the holder is
    /// there, and not somebody who recorded it, shows only when the first frame opens.
    ///
    /// [`Fault::Malformed`] if it is no first message, [`Fault::Unauthenticated`] if it is not for this vat with this
    /// card, or not signed by the holder that it names; and whatever `random` fails with. Then nothing is to be answered.
    pub fn answer(
        &self,
        message: &[u8],
        random: Random<'_>,
    ) -> Result<(Session, HolderKey, [u8; MESSAGE_2_BYTES]), Fault> {
        if message.len() != MESSAGE_1_BYTES {
            return Err(not_so_long("a holder's first message", message, MESSAGE_1_BYTES));
        }
        let mut state = handshake(&self.key, None, &prologue(&self.place, &self.card), random)?;
        let mut payload = [0; PAYLOAD_BYTES];
        let read = state.read_message(message, &mut payload);
        let static_key = state.get_remote_static().and_then(|key| key.try_into().ok());
        let (Ok(PAYLOAD_BYTES), Some(static_key)) = (read, static_key) else {
            return Err(Fault::Unauthenticated(format!(
                "the first message is not for {} with the card that it showed, or was changed on \
                 its way",
                self.place
            )));
        };
        let (key, signature) = payload.split_at(KEY_BYTES);
        let holder = HolderKey::try_from(key).map_err(|_| Fault::malformed("the holder's key"))?;
        let signed = statement(&self.place, StaticPublic(static_key), self.key.public());
        verify_signature(holder, &signed, signature)?;
        let mut answer = [0; MESSAGE_2_BYTES];
        let written = state.write_message(&[], &mut answer).map_err(Fault::internal)?;
        debug_assert_eq!(written, answer.len());
        Ok((Session::of(state)?, holder, answer))
    }
}

/// What a holder signs.
fn statement(place: &Place, holder: StaticPublic, vat: StaticPublic) -> Vec<u8> {
    [HOLDER_DOMAIN, &place.bytes(), &holder.0, &vat.0].concat()
}

fn prologue(place: &Place, card: &[u8]) -> Vec<u8> {
    [&HELLO, &place.bytes()[..], card].concat()
}

fn not_so_long(what: &str, message: &[u8], bytes: usize) -> Fault {
    Fault::malformed(format!("{what} has {bytes} bytes, and not {}", message.len()))
}

/// The state of the one who reaches `theirs`; without that, of the one who is reached.
fn handshake(
    own: &StaticKey,
    theirs: Option<StaticPublic>,
    prologue: &[u8],
    random: Random<'_>,
) -> Result<HandshakeState, Fault> {
    let mut ephemeral = Zeroizing::new([0; SECRET_BYTES]);
    random(&mut ephemeral)?;
    let made = || {
        let params: NoiseParams = PROTOCOL.parse()?;
        let primitives = Primitives { ephemeral: Cell::new(Some(ephemeral)) };
        let builder = Builder::with_resolver(params, Box::new(primitives))
            .local_private_key(own.secret.expose())?
            .prologue(prologue)?;
        match theirs {
            Some(theirs) => builder.remote_public_key(&theirs.0)?.build_initiator(),
            None => builder.build_responder(),
        }
    };
    made().map_err(|error: snow::Error| Fault::internal(error))
}

/// `snow`'s own primitives, with an ephemeral secret that comes from outside.
struct Primitives {
    ephemeral: Cell<Option<Zeroizing<[u8; SECRET_BYTES]>>>,
}

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Source>> {
        Some(Box::new(Once(self.ephemeral.take())))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        let pair = DefaultResolver.resolve_dh(choice)?;
        Some(Box::new(Erased(pair)))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// A pair whose secret is erased with it, which the library does not do.
struct Erased(Box<dyn Dh>);

impl Drop for Erased {
    fn drop(&mut self) {
        self.0.set(&[0; SECRET_BYTES]);
    }
}

impl Dh for Erased {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn pub_len(&self) -> usize {
        self.0.pub_len()
    }

    fn priv_len(&self) -> usize {
        self.0.priv_len()
    }

    fn set(&mut self, secret: &[u8]) {
        self.0.set(secret);
    }

    fn generate(&mut self, random: &mut dyn Source) -> Result<(), snow::Error> {
        self.0.generate(random)
    }

    fn pubkey(&self) -> &[u8] {
        self.0.pubkey()
    }

    fn privkey(&self) -> &[u8] {
        self.0.privkey()
    }

    fn dh(&self, theirs: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        self.0.dh(theirs, out)
    }
}

/// Gives its bytes once: an ephemeral secret that served twice would not be one.
struct Once(Option<Zeroizing<[u8; SECRET_BYTES]>>);

impl Source for Once {
    fn try_fill_bytes(&mut self, place: &mut [u8]) -> Result<(), snow::Error> {
        let bytes = self.0.take().filter(|bytes| bytes.len() == place.len());
        place.copy_from_slice(&bytes.ok_or(snow::Error::Rng)?[..]);
        Ok(())
    }
}
