//! Sessions between holders and vats, as whoever passes them on could make them up.

use std::sync::{Arc, LazyLock};

use distos_abi::{Fault, NodeId, VatName};
use distos_noise::stream::{SealedReader, SealedWriter, accept, connect};
use distos_noise::{
    Card, Initiator, MESSAGE_1_BYTES, MESSAGE_2_BYTES, Own, Place, Session, StaticKey,
};
use distos_types::{HolderSecret, channel_message};
use futures::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::seed;

const NOW_MS: u64 = 1_800_000_000_000;

/// What was said in the one session that there ever was, a frame each; both said the same.
const WORDS: [&str; 3] = ["read", "x", "and another word"];

/// Everything that was ever sent.
struct Sent {
    own: Own,
    first: [u8; MESSAGE_1_BYTES],
    second: [u8; MESSAGE_2_BYTES],
    /// Frames, by the holder and by the vat.
    there: Vec<u8>,
    back: Vec<u8>,
}

static SENT: LazyLock<Sent> = LazyLock::new(|| {
    let key = StaticKey::fill(known(40)).unwrap();
    let (public, until_ms) = (key.public(), NOW_MS + 1000);
    let message = channel_message(place().node, &place().vat, &public.0, until_ms);
    let card = Card { until_ms, key: public, signature: secret(1).sign(&message) };
    let own = Own::new(Arc::new(key), place(), &card);
    let (initiator, first) = begin(&own);
    let (vats, holder, second) = own.answer(&first, &mut known(60)).unwrap();
    assert_eq!(holder, secret(9).key());
    let there = frames(initiator.finish(&second).unwrap());
    Sent { first, second, there, back: frames(vats), own }
});

/// Secrets that are the same each time.
fn known(mut number: u8) -> impl FnMut(&mut [u8; 32]) -> Result<(), Fault> {
    move |bytes| {
        bytes.fill(number);
        number += 1;
        Ok(())
    }
}

fn secret(number: u8) -> HolderSecret {
    HolderSecret::from_seed([number; 32])
}

fn place() -> Place {
    Place { node: NodeId(secret(1).key().0), vat: VatName::new("executor/red").unwrap() }
}

fn begin(own: &Own) -> (Initiator, [u8; MESSAGE_1_BYTES]) {
    let card = Card::decode(own.card()).unwrap();
    let holder = secret(9);
    Initiator::begin(&card, &place(), &holder, NOW_MS, &mut known(50)).unwrap()
}

fn frames(session: Session) -> Vec<u8> {
    let (sealer, _) = session.split();
    let mut sent = Vec::new();
    let mut writer = SealedWriter::new(&mut sent, sealer);
    for word in WORDS {
        writer.write_all(word.as_bytes()).now_or_never().unwrap().unwrap();
    }
    sent
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

pub(super) fn seeds() -> Vec<(String, Vec<u8>)> {
    let sent = &*SENT;
    vec![
        seed("card", sent.own.card()),
        seed("first", sent.first),
        seed("second", sent.second),
        seed("frames", sent.there.clone()),
        seed("from-holder", [sized(&sent.first), sent.there.clone()].concat()),
        seed("from-vat", [sized(sent.own.card()), sized(&sent.second), sent.back.clone()].concat()),
    ]
}

/// Nobody is a vat or a holder that it is not, and nothing is read that was not said, in the order in which it was said.
pub(super) fn noise(bytes: &[u8]) {
    let sent = &*SENT;
    if let Ok(card) = Card::decode(bytes) {
        assert_eq!(card.encode(), bytes, "a card of two encodings");
        let taken = card.verify(&place(), NOW_MS).is_ok();
        assert_eq!(taken, bytes == sent.own.card(), "somebody made up a card");
    }
    let answered = sent.own.answer(bytes, &mut known(60));
    assert_eq!(answered.is_ok(), bytes == sent.first, "somebody made up a holder's message");
    let finished = begin(&sent.own).0.finish(bytes);
    assert_eq!(finished.is_ok(), bytes == sent.second, "somebody made up a vat's answer");
    let (session, ..) = sent.own.answer(&sent.first, &mut known(60)).unwrap();
    let (_, opener) = session.split();
    let read = read(SealedReader::new(bytes, opener));
    let mut said = (0..=WORDS.len()).map(|words| WORDS[..words].concat());
    let words = said.position(|said| said.as_bytes() == read).expect("nobody said this");
    let frames: usize = WORDS[..words].iter().map(|word| 2 + word.len() + 16).sum();
    assert_eq!(bytes[..frames], sent.there[..frames], "somebody made up a frame");
    streams(bytes);
}

/// Both ends of a stream on which these bytes come, with secrets that are others each time: what was recorded is no
/// session.
fn streams(bytes: &[u8]) {
    let sent = &*SENT;
    let accepted = accept(bytes, tokio::io::sink(), Some(&sent.own)).now_or_never().unwrap();
    let is_begun = bytes.starts_with(&sized(&sent.first));
    assert_eq!(accepted.is_ok(), is_begun, "somebody made up a holder's message");
    if let Ok((holder, reader, _)) = accepted {
        assert_eq!(holder, secret(9).key());
        assert!(read(reader).is_empty(), "what was recorded was read again");
    }
    let (holder, place) = (secret(9), place());
    let connected = connect(bytes, tokio::io::sink(), &place, &holder, NOW_MS);
    assert!(connected.now_or_never().unwrap().is_err(), "somebody made up a vat");
}

/// What can be read until the end or until something is wrong. The bytes are there, so nothing waits.
fn read(mut reader: SealedReader<&[u8]>) -> Vec<u8> {
    let mut read = Vec::new();
    let _ = reader.read_to_end(&mut read).now_or_never().expect("all bytes are there");
    read
}
