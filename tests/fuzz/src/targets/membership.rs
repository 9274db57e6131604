//! What holds in a cluster, votes on its nodes, and revocations on their way.

use std::collections::BTreeMap;

use distos_abi::{Authority, CapId, Kind, NodeId, ObjectId, VatName};
use distos_identity::{Bundle, ClusterName, KeyExchange, Root, Serial, Validity};
use distos_membership::{
    Cast, Configuration, Members, Revocations, Signed, Stance, Vote, Voter, Voting,
};
use distos_types::{Chain, HolderSecret, Revocation};

use super::seed;

const NOW_S: u64 = 1_800_000_000;

fn secret(number: u8) -> HolderSecret {
    HolderSecret::from_seed([number; 32])
}

fn cluster() -> ClusterName {
    ClusterName::new("demo").expect("a name")
}

fn bundle() -> Bundle {
    let validity = Validity { from_s: NOW_S, until_s: NOW_S + 1 };
    let root = secret(1);
    let root = Root::new(cluster(), &root).certificate(validity, Serial([1; 16]));
    Bundle::new(vec![root.expect("it is signed")], 1).expect("a bundle")
}

fn signed() -> Signed {
    let voter = |n: u8| (NodeId([n; 32]), Voter { key: secret(n).key(), since: 1 });
    let voters: BTreeMap<_, _> = [10, 11].into_iter().map(voter).collect();
    let configuration = Configuration {
        cluster: cluster(),
        number: 1,
        key_exchange: KeyExchange::HybridOnly,
        voting: Some(Voting { voters, admit: 1, remove: 1 }),
    };
    configuration.sign(&secret(1)).expect("it makes sense")
}

fn cast(stance: Stance) -> Cast {
    let (voter, node) = (NodeId([10; 32]), NodeId([12; 32]));
    Vote { cluster: cluster(), voter, since: 1, node, number: 2, stance }.sign(&secret(10))
}

pub(super) fn configuration_seeds() -> Vec<(String, Vec<u8>)> {
    let alone = Configuration { voting: None, ..signed().configuration().clone() };
    let alone = alone.sign(&secret(1)).expect("it makes sense");
    vec![seed("voting", signed().to_json()), seed("alone", alone.to_json())]
}

/// What is read is written again as the same, and is taken only if the root has signed it.
pub(super) fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(read) = Signed::parse(text) else { return };
    assert_eq!(Signed::parse(&read.to_json()).as_ref(), Ok(&read));
    let bundle = bundle();
    let is_signed = read.verify(&bundle, NOW_S).is_ok();
    let mut members = Members::default();
    assert_eq!(members.configure(read, &bundle, NOW_S).is_ok(), is_signed);
}

pub(super) fn vote_seeds() -> Vec<(String, Vec<u8>)> {
    let at = Stance::Admit(Some(([10, 0, 0, 7], 7400).into()));
    let stances = [
        ("none", Stance::None),
        ("admit", at),
        ("remove", Stance::Remove),
        ("invite", Stance::Invite { since_s: 9, address: None }),
    ];
    stances.map(|(name, stance)| seed(name, cast(stance).bytes())).into()
}

/// A vote has one form, and none counts but those that a voter has signed.
pub(super) fn vote(bytes: &[u8]) {
    let Ok(read) = Cast::decode(bytes) else { return };
    assert_eq!(read.bytes(), bytes);
    let mut members = Members::restore(Some(signed()), []);
    let before = members.summary();
    let is_signed = read.verify(secret(10).key()).is_ok() || read.verify(secret(11).key()).is_ok();
    match members.take(read.clone()) {
        Ok(true) => {
            assert!(is_signed);
            assert_eq!(members.take(read), Ok(false));
        }
        _ => assert_eq!(members.summary(), before),
    }
}

fn ended(by: u8) -> Revocation {
    let root = distos_types::Root {
        node: NodeId(secret(9).key().0),
        key_epoch: 1,
        vat: VatName::new("memory").expect("a name"),
        kind: Kind(1),
        object: ObjectId(7),
        cap: CapId(1),
        holder: secret(1).key(),
        authority: Authority::FULL,
        nonce: [0; 16],
    };
    let chain = Chain::issue(root, &secret(9));
    let chain = chain.delegate(&secret(1), secret(2).key(), Authority::FULL, [1; 16]);
    let revocation = Revocation::sign(&chain.expect("it holds it"), &secret(by), NOW_S * 1000);
    revocation.expect("it may end it")
}

pub(super) fn revocation_seeds() -> Vec<(String, Vec<u8>)> {
    [("given", 1), ("own", 2)].map(|(name, by)| seed(name, ended(by).bytes())).into()
}

/// A revocation has one form, and none is kept but those that somebody has signed who may.
pub(super) fn revocation(bytes: &[u8]) {
    let Ok(read) = Revocation::decode(bytes) else { return };
    assert_eq!(read.bytes(), bytes);
    let (mut kept, now_ms) = (Revocations::default(), NOW_S * 1000);
    let counts = read.verify(now_ms).is_ok();
    assert_eq!(kept.take(read.clone(), now_ms) == Ok(true), counts);
    assert_eq!(kept.contains(&read), counts);
}
