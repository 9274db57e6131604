//! Nobody has keys in common with anybody but the one it means.

use std::sync::Arc;

use distos_abi::{Fault, HolderKey, NodeId};
use distos_noise::{
    Card, HELLO, Initiator, MESSAGE_1_BYTES, MESSAGE_2_BYTES, Opener, Own, Place, Sealer, Session,
    TAG_BYTES,
};
use distos_types::HolderSecret;
use proptest::prelude::*;

use crate::world::{
    NOW, card, memory, node, other_node, place, random, secret, static_key, vat_at,
};

/// What a holder says first to the vat at `place`, which has this card.
fn begin(card: &Card, place: &Place) -> (Initiator, [u8; MESSAGE_1_BYTES]) {
    Initiator::begin(card, place, &secret(9), NOW, &mut random(50)).unwrap()
}

fn answer(own: &Own, message: &[u8]) -> Result<(Session, HolderKey, [u8; MESSAGE_2_BYTES]), Fault> {
    own.answer(message, &mut random(60))
}

fn seal(sealer: &mut Sealer, plain: &[u8]) -> Vec<u8> {
    let mut sealed = vec![0; plain.len() + TAG_BYTES];
    assert_eq!(sealer.seal(plain, &mut sealed).unwrap(), sealed.len());
    sealed
}

fn open(opener: &mut Opener, sealed: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut plain = vec![0; 100];
    let bytes = opener.open(sealed, &mut plain)?;
    Ok(plain[..bytes].to_vec())
}

/// What an intermediary has of a session that went well, and both ends of it.
struct Recorded {
    message: [u8; MESSAGE_1_BYTES],
    holder: (Sealer, Opener),
    vat: (Sealer, Opener),
}

fn recorded(own: &Own) -> Recorded {
    let (initiator, message) = begin(&Card::decode(own.card()).unwrap(), &memory());
    let (session, holder, second) = answer(own, &message).unwrap();
    assert_eq!(holder, secret(9).key());
    let holder = initiator.finish(&second).unwrap().split();
    Recorded { message, holder, vat: session.split() }
}

#[test]
fn what_one_side_seals_the_other_opens_in_the_order_in_which_it_was_sealed() {
    let own = vat_at(&memory());
    let Recorded { mut holder, mut vat, .. } = recorded(&own);
    for text in [&b"read"[..], b"another", b"x"] {
        let (there, back) = (seal(&mut holder.0, text), seal(&mut vat.0, text));
        assert_ne!(there, back, "a key for each direction");
        assert_eq!(open(&mut vat.1, &there).unwrap(), text);
        assert_eq!(open(&mut holder.1, &back).unwrap(), text);
    }
    // Frames that are none.
    let mut sealed = vec![0; 70_000];
    assert!(holder.0.seal(&[], &mut sealed).is_err(), "nothing");
    assert!(holder.0.seal(&[0; 65_520], &mut sealed).is_err(), "too much");
    assert!(holder.0.seal(&[0; 65_519], &mut sealed[..100]).is_err(), "no room");
}

/// Else whoever passes frames on chooses which of them count.
#[test]
fn a_frame_that_is_not_the_next_one_ends_the_session() {
    let own = vat_at(&memory());
    type Way = fn(&mut Vec<Vec<u8>>);
    let ways: [(&str, usize, Way); 5] = [
        ("dropped", 0, |frames| drop(frames.remove(0))),
        ("repeated", 1, |frames| frames.insert(1, frames[0].clone())),
        ("reordered", 1, |frames| frames.swap(1, 2)),
        ("longer", 1, |frames| frames[1].push(0)),
        ("cut", 1, |frames| frames[1].truncate(18)),
    ];
    for (what, good, way) in ways {
        let Recorded { mut holder, mut vat, .. } = recorded(&own);
        let mut frames: Vec<_> =
            ["one", "two", "three"].map(|text| seal(&mut holder.0, text.as_bytes())).into();
        way(&mut frames);
        let opened: Vec<_> = frames.iter().map(|frame| open(&mut vat.1, frame)).collect();
        assert!(opened[..good].iter().all(Result::is_ok), "{what}");
        let failed = opened[good].as_ref().unwrap_err();
        assert!(matches!(failed, Fault::Unauthenticated(_)), "{what}: {failed}");
        for after in &opened[good + 1..] {
            assert!(matches!(after, Err(Fault::Unavailable { .. })), "{what}: {after:?}");
        }
    }
    // Back to whoever sealed it.
    let Recorded { mut holder, .. } = recorded(&own);
    let frame = seal(&mut holder.0, b"one");
    assert!(open(&mut holder.1, &frame).is_err());
    for frame in [&[][..], &[0; 15], &[0; 16], &[0; 17]] {
        let Recorded { mut vat, .. } = recorded(&own);
        assert!(open(&mut vat.1, frame).is_err());
    }
}

#[test]
fn a_changed_byte_anywhere_in_either_message_is_noticed() {
    let own = vat_at(&memory());
    let card = Card::decode(own.card()).unwrap();
    let (_, message) = begin(&card, &memory());
    for at in 0..message.len() {
        let mut changed = message;
        changed[at] ^= 1;
        // X25519 does not look at the highest bit of a key; the transcript does.
        assert!(answer(&own, &changed).is_err(), "byte {at} of the first");
        changed[at] ^= 1 | 0x80;
        assert!(answer(&own, &changed).is_err(), "byte {at} of the first");
    }
    let (_, _, second) = answer(&own, &message).unwrap();
    for (at, bit) in (0..second.len()).flat_map(|at| [(at, 1), (at, 0x80)]) {
        let (initiator, _) = begin(&card, &memory());
        let mut changed = second;
        changed[at] ^= bit;
        assert!(initiator.finish(&changed).is_err(), "byte {at} of the second");
    }
    for len in [0, 1, 191, 193] {
        assert!(matches!(answer(&own, &vec![0; len]), Err(Fault::Malformed(_))));
        let (initiator, _) = begin(&card, &memory());
        assert!(matches!(initiator.finish(&vec![0; len]), Err(Fault::Malformed(_))));
    }
}

/// C4: a recording makes nobody the holder.
#[test]
fn whoever_sends_a_recorded_message_again_gets_no_session() {
    let own = vat_at(&memory());
    let Recorded { message, mut holder, .. } = recorded(&own);
    let frame = seal(&mut holder.0, b"read");
    // The vat cannot know yet that it is not the holder who sends it.
    let (session, _, _) = own.answer(&message, &mut random(70)).unwrap();
    let (_, mut opener) = session.split();
    assert!(open(&mut opener, &frame).is_err(), "nor is what was recorded with it any good");
}

#[test]
fn both_have_seen_the_same_card_or_have_no_session() {
    let own = vat_at(&memory());
    // Another valid card of the same vat, for the same static key.
    let mut newer = card(&memory(), 40, 1);
    newer.until_ms += 1;
    let other = Own::new(Arc::new(static_key(40)), memory(), &newer);
    let (_, message) = begin(&Card::decode(own.card()).unwrap(), &memory());
    assert!(answer(&own, &message).is_ok());
    assert!(matches!(answer(&other, &message), Err(Fault::Unauthenticated(_))));
    // The same vat, started again.
    let later = Own::new(Arc::new(static_key(41)), memory(), &card(&memory(), 41, 1));
    assert!(matches!(answer(&later, &message), Err(Fault::Unauthenticated(_))));
    // Another vat that has the same static key.
    for elsewhere in [place(node(), "audit"), place(other_node(), "memory")] {
        let elsewhere = vat_at(&elsewhere);
        assert!(matches!(answer(&elsewhere, &message), Err(Fault::Unauthenticated(_))));
    }
}

#[test]
fn nobody_begins_a_session_with_somebody_else() {
    let gateway = place(node(), "gateway");
    // Its own card, and one by which it says that it is the memory service.
    for claimed in [card(&gateway, 42, 1), card(&memory(), 42, 2)] {
        let mut random = random(50);
        let begun = Initiator::begin(&claimed, &memory(), &secret(9), NOW, &mut random);
        assert!(matches!(begun, Err(Fault::Unauthenticated(_))), "{begun:?}");
    }
    let good = card(&memory(), 40, 1);
    let begun = Initiator::begin(&good, &memory(), &secret(9), NOW, &mut |_| {
        Err(Fault::internal("no randomness"))
    });
    assert!(matches!(begun, Err(Fault::Internal(_))));
}

/// What a holder could send that does not have the key it names, or that was meant for another vat: Noise's first message with
/// a payload of one's own.
fn made_up(own: &Own, payload: impl FnOnce(&[u8; 32], &[u8; 32]) -> Vec<u8>) -> Vec<u8> {
    let vat = static_key(40).public();
    let place = [&node().0[..], &[6], b"memory"].concat();
    let prologue = [&HELLO, &place[..], own.card()].concat();
    let (secret, public) = ([50; 32], static_key(50).public());
    let mut state = snow::Builder::with_resolver(
        "Noise_IK_25519_XChaChaPoly_BLAKE2s".parse().unwrap(),
        Box::new(Known),
    )
    .local_private_key(&secret)
    .unwrap()
    .remote_public_key(&vat.0)
    .unwrap()
    .prologue(&prologue)
    .unwrap()
    .build_initiator()
    .unwrap();
    let mut message = vec![0; 400];
    let written = state.write_message(&payload(&public.0, &vat.0), &mut message).unwrap();
    message.truncate(written);
    message
}

struct Known;

impl snow::resolvers::CryptoResolver for Known {
    fn resolve_rng(&self) -> Option<Box<dyn snow::types::Random>> {
        Some(Box::new(Known))
    }

    fn resolve_dh(&self, choice: &snow::params::DHChoice) -> Option<Box<dyn snow::types::Dh>> {
        snow::resolvers::DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(
        &self,
        choice: &snow::params::HashChoice,
    ) -> Option<Box<dyn snow::types::Hash>> {
        snow::resolvers::DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(
        &self,
        choice: &snow::params::CipherChoice,
    ) -> Option<Box<dyn snow::types::Cipher>> {
        snow::resolvers::DefaultResolver.resolve_cipher(choice)
    }
}

impl snow::types::Random for Known {
    fn try_fill_bytes(&mut self, place: &mut [u8]) -> Result<(), snow::Error> {
        place.fill(51);
        Ok(())
    }
}

#[test]
fn nobody_is_a_holder_without_its_signature_for_this_vat_and_these_keys() {
    let own = vat_at(&memory());
    let place = |node: NodeId, vat: &[u8]| [&node.0[..], &[vat.len() as u8], vat].concat();
    let signed = |by: &HolderSecret, domain: &[u8], place: &[u8], s: &[u8; 32], rs: &[u8; 32]| {
        let signature = by.sign(&[domain, place, s, rs].concat());
        [&secret(9).key().0[..], &signature].concat()
    };
    let here = place(node(), b"memory");
    let domain = b"distos-noise-holder-v1";
    // What the crate's documentation says is what is sent; what follows differs from it in one thing.
    let good = made_up(&own, |s, rs| signed(&secret(9), domain, &here, s, rs));
    let (_, message) = begin(&Card::decode(own.card()).unwrap(), &memory());
    assert_eq!(good, message);
    assert_eq!(answer(&own, &good).unwrap().1, secret(9).key());
    let bad = [
        made_up(&own, |s, rs| signed(&secret(8), domain, &here, s, rs)),
        made_up(&own, |s, rs| signed(&secret(9), b"distos-restore-v1", &here, s, rs)),
        made_up(&own, |s, rs| signed(&secret(9), domain, &place(node(), b"audit"), s, rs)),
        made_up(&own, |s, rs| signed(&secret(9), domain, &place(other_node(), b"memory"), s, rs)),
        made_up(&own, |_, rs| signed(&secret(9), domain, &here, &[7; 32], rs)),
        made_up(&own, |s, _| signed(&secret(9), domain, &here, s, &[7; 32])),
        made_up(&own, |_, _| vec![0; 96]),
        // The identity, for which anybody can sign: R and S of nothing.
        made_up(&own, |_, _| {
            let mut weak = vec![0; 96];
            (weak[0], weak[32]) = (1, 1);
            weak
        }),
    ];
    for (which, message) in bad.iter().enumerate() {
        let refused = answer(&own, message).map(|(_, holder, _)| holder);
        assert!(matches!(refused, Err(Fault::Unauthenticated(_))), "{which}: {refused:?}");
    }
    for payload in [Vec::new(), vec![0; 95], vec![0; 97]] {
        let message = made_up(&own, |_, _| payload);
        assert!(matches!(answer(&own, &message), Err(Fault::Malformed(_))));
    }
}

#[test]
fn no_secret_shows_in_logs() {
    let own = vat_at(&memory());
    let shown = format!("{own:?}");
    assert!(!shown.contains("40, 40, 40"), "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn bytes_of_anybody_are_no_message(bytes in proptest::collection::vec(any::<u8>(), 0..250)) {
        let own = vat_at(&memory());
        prop_assert!(answer(&own, &bytes).is_err());
        let mut long = bytes;
        long.resize(MESSAGE_1_BYTES, 0);
        prop_assert!(answer(&own, &long).is_err());
    }
}
