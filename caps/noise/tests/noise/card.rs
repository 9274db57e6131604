//! Nobody is a vat that it is not.

use distos_abi::Fault;
use distos_noise::{CARD_BYTES, Card};
use proptest::prelude::*;

use crate::world::{HOUR, NOW, card, memory, node, other_node, place, static_key};

#[test]
fn a_vat_is_known_by_its_card_and_the_card_has_one_encoding() {
    let card = card(&memory(), 40, 1);
    assert_eq!(card.verify(&memory(), NOW), Ok(static_key(40).public()));
    let bytes = card.encode();
    assert_eq!(Card::decode(&bytes), Ok(card));
    for len in 0..bytes.len() {
        assert!(matches!(Card::decode(&bytes[..len]), Err(Fault::Malformed(_))), "{len}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(matches!(Card::decode(&longer), Err(Fault::Malformed(_))));
    let mut newer = bytes;
    newer[0] = 2;
    let Err(Fault::Malformed(why)) = Card::decode(&newer) else { panic!("it is of version 2") };
    assert!(why.contains("version 2"), "{why}");
}

#[test]
fn a_changed_byte_anywhere_in_a_card_is_noticed() {
    let good = card(&memory(), 40, 1).encode();
    for at in 0..good.len() {
        let mut bytes = good;
        bytes[at] ^= 1;
        let taken = Card::decode(&bytes).and_then(|card| card.verify(&memory(), NOW));
        assert!(taken.is_err(), "byte {at}");
    }
}

#[test]
fn a_card_is_of_its_node_its_place_its_key_and_its_time() {
    let good = card(&memory(), 40, 1);
    let refused = |card: &Card| {
        let found = card.verify(&memory(), NOW);
        assert!(matches!(found, Err(Fault::Unauthenticated(_))), "{found:?}");
    };
    // Another service of the same node, the same one of another node, and one that says it is this one.
    for other in
        [place(node(), "audit"), place(node(), "memory/red"), place(other_node(), "memory")]
    {
        let found = good.verify(&other, NOW);
        assert!(matches!(found, Err(Fault::Unauthenticated(_))), "{found:?}");
        refused(&card(&other, 40, 1));
        refused(&card(&other, 40, 2));
    }
    refused(&card(&memory(), 40, 2));
    refused(&Card { key: static_key(41).public(), ..good });
    refused(&Card { until_ms: NOW + 2 * HOUR, ..good });
    let late = good.verify(&memory(), NOW + HOUR);
    let Err(Fault::Unauthenticated(why)) = late else { panic!("it is over: {late:?}") };
    assert!(why.contains("clock"), "{why}");
}

proptest! {
    #[test]
    fn bytes_of_anybody_are_a_card_of_one_encoding_or_none(
        bytes in proptest::collection::vec(any::<u8>(), CARD_BYTES),
    ) {
        let mut shaped = bytes;
        shaped[0] = 1;
        let card = Card::decode(&shaped).unwrap();
        prop_assert_eq!(&card.encode()[..], &shaped[..]);
        prop_assert!(card.verify(&memory(), NOW).is_err());
    }
}
