use distos_identity::{
    Home, Issuer, Refusal, Root, Serial, Token, TokenAuthority, TokenSecret, Validity,
};

use super::*;

const NOW_S: u64 = 1_800_000_000;
const NODE: NodeId = NodeId([1; 32]);
const OTHER: NodeId = NodeId([2; 32]);
/// Its network service.
const BY: Bound = Bound { key: HolderKey([6; 32]), life: [5; 32] };

fn secret(seed: u8) -> HolderSecret {
    HolderSecret::from_seed([seed; 32])
}

/// A cluster with an issuer on no node.
struct Cluster {
    root: HolderSecret,
    issuer: HolderSecret,
    certificate: Vec<u8>,
    name: distos_identity::ClusterName,
}

fn validity() -> Validity {
    Validity { from_s: NOW_S - 100, until_s: NOW_S + 3600 }
}

impl Cluster {
    fn new(name: &str, seed: u8) -> Cluster {
        let name = distos_identity::ClusterName::new(name).unwrap();
        let (root, issuer) = (secret(seed), secret(seed + 1));
        let certificate = Root::new(name.clone(), &root)
            .certify(issuer.key(), Home::Offline, validity(), Serial([1; 16]))
            .unwrap();
        Cluster { root, issuer, certificate, name }
    }

    fn bundle(&self, sequence: u64) -> Bundle {
        let root = Root::new(self.name.clone(), &self.root);
        Bundle::new(vec![root.certificate(validity(), Serial([2; 16])).unwrap()], sequence).unwrap()
    }

    fn svid(&self, who: &str, key: HolderKey) -> Vec<Vec<u8>> {
        let id = SpiffeId { cluster: self.name.clone(), subject: who.parse().unwrap() };
        let issuer = Issuer::new(self.certificate.clone(), &self.issuer).unwrap();
        issuer.issue(&id, key, validity(), Serial([3; 16])).unwrap()
    }

    fn issuer_on(&self, node: NodeId, key: HolderKey) -> Vec<u8> {
        let root = Root::new(self.name.clone(), &self.root);
        root.certify(key, Home::Node(node), validity(), Serial([4; 16])).unwrap()
    }
}

fn keys() -> (HolderKey, HolderKey) {
    (secret(10).key(), secret(11).key())
}

fn restored(state: &State, keys: (HolderKey, HolderKey)) -> State {
    State::restore(NODE, keys, state.keep(), &|_| Ok(Vec::new()), Vec::new()).unwrap()
}

fn me() -> String {
    format!("node/{NODE}/service/network")
}

fn joined(cluster: &Cluster) -> State {
    let mut state = State::new(NODE, keys());
    state.join(cluster.bundle(2), cluster.svid(&me(), keys().0), NOW_S).unwrap();
    state
}

/// That the operator of the node with this seed ends what it gave to `tenant`.
fn revocation(home: u8, tenant: u8) -> Revocation {
    revocation_of(home, tenant, 1)
}

fn revocation_of(home: u8, tenant: u8, nonce: u8) -> Revocation {
    let root = distos_types::Root {
        node: NodeId(secret(home).key().0),
        key_epoch: 1,
        vat: VatName::new("memory").unwrap(),
        kind: distos_abi::Kind(1),
        object: ObjectId(7),
        cap: distos_abi::CapId(1),
        holder: secret(2).key(),
        authority: distos_abi::Authority::FULL,
        nonce: [0; 16],
    };
    let chain = distos_types::Chain::issue(root, &secret(home));
    let all = distos_abi::Authority::FULL;
    let chain = chain.delegate(&secret(2), secret(tenant).key(), all, [nonce; 16]).unwrap();
    Revocation::sign(&chain, &secret(2), NOW_S * 1000).unwrap()
}

/// Or whoever is let in could fill this node's disk with what is to be ended at nodes that are none.
#[test]
fn revocations_are_carried_to_nodes_of_this_cluster_and_to_no_other_and_come_back_after_a_restart()
{
    let (cluster, now_ms) = (Cluster::new("demo", 1), NOW_S * 1000);
    let mut state = joined(&cluster);
    let (one, other) = (revocation(60, 70), revocation(61, 70));
    assert!(matches!(state.bring(one.clone(), now_ms), Err(Fault::NotFound(_))));
    assert_eq!(state.take_revocations([one.clone()], now_ms), (0, None), "it is passed over");
    state.add(Peer::Node(one.home()), None).unwrap();
    assert_eq!(state.bring(one.clone(), now_ms), Ok(true));
    assert_eq!(state.bring(one.clone(), now_ms), Ok(false), "again");
    let mut forged = one.bytes().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let forged = Revocation::decode(&forged).unwrap();
    assert!(matches!(state.bring(forged, now_ms), Err(Fault::Unauthenticated(_))));
    let late_ms = now_ms + distos_types::REVOCATION_LASTS_MS;
    assert!(matches!(state.bring(one.clone(), late_ms), Err(Fault::Expired { .. })));
    // Dated back, it would stay in place of others.
    let mut empty = joined(&cluster);
    empty.add(Peer::Node(one.home()), None).unwrap();
    let old = empty.bring(one.clone(), now_ms + 300_001);
    assert!(matches!(old, Err(Fault::Unauthenticated(_))), "{old:?}");
    // One of somebody's whom it does not let in says nothing about the others.
    let more = revocation(60, 71);
    assert_eq!(state.take_revocations([other, more], now_ms), (1, None));
    // What is too much displaces nothing that was brought before.
    let full = (0..=255).find_map(|tenant| state.bring(revocation(60, tenant), now_ms).err());
    assert!(matches!(full, Some(Fault::Unavailable { .. })), "{full:?}");
    let all = state.members().revocations().of(one.home()).count();
    assert_eq!(all, 192);
    let full = state.bring(revocation_of(60, 2, 3), now_ms);
    assert!(matches!(full, Err(Fault::Unavailable { .. })), "{full:?}");
    assert!(state.members().revocations().contains(&one));
    let kept = vec![one.clone()];
    let back = State::restore(NODE, keys(), state.keep(), &|_| Ok(Vec::new()), kept).unwrap();
    assert!(back.members().revocations().contains(&one));
    assert!(state.expire_revocations(late_ms) && !state.expire_revocations(late_ms));
}

/// N3: what a node says has its effect once, at whom it is for, while that node is let in.
#[test]
fn a_statement_is_heard_once_and_from_a_member_for_this_node_only() {
    let cluster = Cluster::new("demo", 1);
    let mut state = joined(&cluster);
    state.add(Peer::Node(OTHER), None).unwrap();
    let secret = secret(20);
    let who = |node: NodeId| Subject::Service { node, service: VatName::new(SERVICE).unwrap() };
    let chain = |node: NodeId| cluster.svid(&who(node).to_string(), secret.key());
    let now_us = NOW_S * 1_000_000;
    let said = |from: NodeId, to: NodeId, at_us: u64| {
        let body = b"here".to_vec();
        Statement { from: who(from), to: who(to), at_us, body }.sign(&secret)
    };
    let hears = |state: &State, heard: &Heard, said: &(Vec<u8>, [u8; 64]), chain: &[Vec<u8>]| {
        state.hears(heard, &said.0, &said.1, chain, now_us)
    };
    let mut heard = Heard::default();
    let first = said(OTHER, NODE, now_us);
    let taken = hears(&state, &heard, &first, &chain(OTHER)).unwrap();
    assert_eq!((&taken.from, &taken.body[..]), (&who(OTHER), &b"here"[..]));
    heard.reserve(&taken.from, taken.at_us, now_us);
    heard.note(&taken.from, taken.at_us);
    let is_refused =
        |state: &State, heard: &Heard, said: &(Vec<u8>, [u8; 64]), chain: &[Vec<u8>]| {
            let refused = hears(state, heard, said, chain).unwrap_err();
            assert!(matches!(refused, Fault::Unauthenticated(_)), "{refused}");
        };
    is_refused(&state, &heard, &first, &chain(OTHER));
    // After a restart, with what is on disk.
    let (until_us, floor_us) = heard.kept();
    is_refused(&state, &Heard::restore(until_us.clone(), floor_us), &first, &chain(OTHER));
    let fresh = Heard::default();
    is_refused(&state, &fresh, &said(OTHER, OTHER, now_us), &chain(OTHER));
    is_refused(&state, &fresh, &said(NODE, NODE, now_us), &chain(OTHER));
    // Nobody's peer; a peer at the word of an issuer whose node is not in the list; one that was taken off.
    let stranger = NodeId([3; 32]);
    is_refused(&state, &fresh, &said(stranger, NODE, now_us), &chain(stranger));
    let gone = HolderSecret::from_seed([30; 32]);
    let issuer = Issuer::new(cluster.issuer_on(stranger, gone.key()), &gone).unwrap();
    let id = SpiffeId { cluster: cluster.name.clone(), subject: who(OTHER) };
    let vouched = issuer.issue(&id, secret.key(), validity(), Serial([5; 16])).unwrap();
    is_refused(&state, &fresh, &first, &vouched);
    state.remove(&Peer::Node(OTHER)).unwrap();
    is_refused(&state, &fresh, &first, &chain(OTHER));
}

#[test]
fn a_node_joins_with_an_svid_of_its_own_and_with_no_older_or_other_bundle() {
    let (cluster, foreign) = (Cluster::new("demo", 20), Cluster::new("other", 30));
    let mut state = State::new(NODE, keys());
    assert!(matches!(state.id(), Err(Fault::Unavailable { .. })), "in no cluster");
    let mut refused = |bundle, chain: Vec<Vec<u8>>| {
        let fault = state.join(bundle, chain, NOW_S).unwrap_err();
        assert!(state.id().is_err() && state.own().is_none());
        fault
    };
    let other = format!("node/{OTHER}/service/network");
    refused(cluster.bundle(1), cluster.svid(&other, keys().0));
    refused(cluster.bundle(1), cluster.svid(&format!("node/{NODE}/service/memory"), keys().0));
    refused(cluster.bundle(1), cluster.svid(&me(), keys().1));
    refused(cluster.bundle(1), foreign.svid(&me(), keys().0));
    refused(cluster.bundle(1), Vec::new());
    let mut state = joined(&cluster);
    let own = cluster.svid(&me(), keys().0);
    let fault = state.join(cluster.bundle(1), own.clone(), NOW_S).unwrap_err();
    assert!(fault.to_string().contains("number 1"), "{fault}");
    let theirs = foreign.svid(&me(), keys().0);
    assert!(state.join(foreign.bundle(9), theirs, NOW_S).is_err());
    assert_eq!(state.bundle().unwrap().sequence(), 2);
    state.join(cluster.bundle(3), own.clone(), NOW_S).unwrap();
    assert!(state.join(cluster.bundle(3), own, NOW_S + 3601).is_err(), "its time is over");
}

#[test]
fn an_issuer_signs_for_services_of_the_peer_that_asks_and_for_nobody_else() {
    let cluster = Cluster::new("demo", 20);
    let mut state = joined(&cluster);
    let issuer = secret(11);
    let service: Subject = format!("node/{OTHER}/service/memory").parse().unwrap();
    let key = secret(40);
    let proof = distos_identity::prove(&service, &key);
    let asks = |node, service, proof| Request { node, by: BY, service, key: key.key(), proof };
    let sign = |state: &State, asks| state.sign(&issuer, &asks, 60, NOW_S, Serial([5; 16]));
    assert!(sign(&state, asks(OTHER, "memory", &proof)).is_err(), "it is no issuer");
    let mut certify = |certificate| state.certify(certificate, &issuer, NOW_S, Serial([6; 16]));
    assert!(certify(cluster.issuer_on(OTHER, keys().1)).is_err(), "another node's");
    assert!(certify(cluster.issuer_on(NODE, keys().0)).is_err(), "for another key");
    let foreign = Cluster::new("demo", 50);
    assert!(certify(foreign.issuer_on(NODE, keys().1)).is_err(), "no root of the cluster's");
    certify(cluster.issuer_on(NODE, keys().1)).unwrap();
    assert!(sign(&state, asks(OTHER, "memory", &proof)).is_err(), "it is no peer");
    state.add(Peer::Node(OTHER), None).unwrap();
    let chain = sign(&state, asks(OTHER, "memory", &proof)).unwrap();
    let id = SpiffeId { cluster: cluster.name.clone(), subject: service };
    check(&cluster.bundle(1), &chain.0, &id, key.key(), NOW_S).unwrap();
    assert!(sign(&state, asks(OTHER, "audit", &proof)).is_err(), "another service's proof");
    assert!(sign(&state, asks(NODE, "memory", &proof)).is_err(), "its own node");
    assert!(sign(&state, asks(OTHER, "Memory/", &proof)).is_err(), "no name");
    state.remove(&Peer::Node(OTHER)).unwrap();
    assert!(sign(&state, asks(OTHER, "memory", &proof)).is_err(), "it was taken off the list");
    assert!(state.remove(&Peer::Node(OTHER)).is_err());
    assert!(state.add(Peer::Node(NODE), None).is_err(), "itself");
}

#[test]
fn agents_are_of_their_tenant_for_good_and_nothing_of_theirs_outlasts_the_issuer() {
    let cluster = Cluster::new("demo", 20);
    let mut state = joined(&cluster);
    let (issuer, key) = (secret(11), secret(40).key());
    let name = |name: &str| TenantName::new(name).unwrap();
    assert_eq!(state.agents_of(&name("red")), None);
    state.serve_agents_of(&name("red")).unwrap();
    let red = state.agents_of(&name("red")).unwrap();
    assert!(state.tenant_of(ObjectId::ROOT).is_err());
    // The same number whoever came before, and after a restart.
    let mut other = joined(&cluster);
    for tenant in ["blue", "red"] {
        other.serve_agents_of(&name(tenant)).unwrap();
    }
    assert_eq!(other.agents_of(&name("red")), Some(red));
    assert_eq!(restored(&other, keys()).tenant_of(red), Ok(&name("red")));

    let until_s = validity().until_s;
    let long = |from_s| Validity { from_s, until_s: u64::MAX };
    let short = |from_s: u64| Validity { from_s, until_s: from_s + 300 };
    let svid = |state: &State, at_s: u64| {
        state.sign_agent(&issuer, red, key, long(at_s - SKEW_S), Serial([9; 16]))
    };
    let token = |state: &State, at_s| {
        state.sign_token(&issuer, red, key, vec!["shop".to_owned()], short(at_s))
    };
    let is_away = |fault: Option<Fault>| matches!(fault, Some(Fault::Unavailable { .. }));
    assert!(is_away(svid(&state, NOW_S).err()), "it is no issuer");
    state.certify(cluster.issuer_on(NODE, keys().1), &issuer, NOW_S, Serial([7; 16])).unwrap();
    let (id, chain) = svid(&state, NOW_S).unwrap();
    assert_eq!(check(&cluster.bundle(1), &chain, &id, key, NOW_S).unwrap().until_s, until_s);
    assert!(is_away(token(&state, NOW_S).err()), "nobody would take it");
    let own = TokenSecret::of_issuer(&issuer).unwrap().key();
    let bundle =
        |home| cluster.bundle(3).with_authority(TokenAuthority { key: own, home }).unwrap();
    state.join(bundle(Home::Node(OTHER)), Vec::new(), NOW_S).unwrap();
    assert!(is_away(token(&state, NOW_S).err()), "the bundle says that it is elsewhere");
    state.join(bundle(Home::Node(NODE)), Vec::new(), NOW_S).unwrap();
    let (said, text) = token(&state, until_s - 100).unwrap();
    assert_eq!(said.validity.until_s, until_s, "the issuer's end");
    let verified = Token::verify(&text, &bundle(Home::Node(NODE)), "shop", until_s - 100);
    assert_eq!(verified, Ok(said));
    assert!(is_away(token(&state, until_s).err()) && is_away(svid(&state, until_s).err()));
}

#[test]
fn an_invitation_is_for_one_key_and_ends_unless_the_node_comes() {
    let cluster = Cluster::new("demo", 20);
    let mut state = joined(&cluster);
    let (issuer, key) = (secret(11), secret(40).key());
    let until_s = NOW_S + 60;
    let validity = Validity { from_s: NOW_S, until_s };
    let invite = |state: &mut State| state.invite(&issuer, OTHER, key, validity, Serial([8; 16]));
    assert!(invite(&mut state).is_err(), "it is no issuer");
    state.certify(cluster.issuer_on(NODE, keys().1), &issuer, NOW_S, Serial([7; 16])).unwrap();
    let chain = invite(&mut state).unwrap();
    let mut invited = State::new(OTHER, (key, secret(41).key()));
    invited.join(cluster.bundle(1), chain.clone(), NOW_S).unwrap();
    let mut thief = State::new(OTHER, (secret(42).key(), secret(41).key()));
    assert!(thief.join(cluster.bundle(1), chain, NOW_S).is_err(), "another key");
    // Nobody came in time; the invitation is good for nothing after that.
    let mut restarted = restored(&state, keys());
    assert_eq!(restarted.expire(until_s - 1), []);
    let service: Subject = format!("node/{OTHER}/service/network").parse().unwrap();
    let proof = distos_identity::prove(&service, &secret(40));
    let asks = Request { node: OTHER, by: BY, service: SERVICE, key, proof: &proof };
    let sign = |state: &State, at| state.sign(&issuer, &asks, 60, at, Serial([9; 16]));
    assert!(sign(&restarted, until_s).is_err(), "late, and not yet off the list");
    let listed = |at| restarted.trust(at).unwrap().peers.nodes.contains(&OTHER);
    assert!(listed(until_s - 1) && !listed(until_s));
    assert_eq!(restarted.expire(until_s), [Peer::Node(OTHER)]);
    assert!(sign(&restarted, NOW_S).is_err());
    // It came: it stays, and is not invited a second time.
    assert!(
        sign(&state, NOW_S).is_ok() && state.came(OTHER).is_some() && state.came(OTHER).is_none()
    );
    assert_eq!(state.expire(until_s), []);
    assert!(matches!(invite(&mut state), Err(Fault::Exists(_))));
}

/// Else somebody who has taken what a node had comes back in its name when the node does.
#[test]
fn who_comes_back_by_an_invitation_does_so_with_nothing_that_was_signed_for_it_before() {
    let cluster = Cluster::new("demo", 20);
    let mut state = joined(&cluster);
    let issuer = secret(11);
    state.certify(cluster.issuer_on(NODE, keys().1), &issuer, NOW_S, Serial([7; 16])).unwrap();
    let signed = |state: &State, at_s| {
        let memory: Subject = format!("node/{OTHER}/service/memory").parse().unwrap();
        let (key, proof) = (secret(43).key(), distos_identity::prove(&memory, &secret(43)));
        let asks = Request { node: OTHER, by: BY, service: "memory", key, proof: &proof };
        state.sign(&issuer, &asks, 600, at_s, Serial([9; 16])).unwrap().0
    };
    let admit = |state: &State, chain: &[Vec<u8>], at_s| {
        state.trust(at_s).unwrap().admit(chain, at_s, Usage::Client).map(drop)
    };
    state.add(Peer::Node(OTHER), None).unwrap();
    let old = signed(&state, NOW_S);
    assert_eq!(admit(&state, &old, NOW_S), Ok(()));
    let before = state.nodes(NOW_S).into_keys().collect();
    state.remove(&Peer::Node(OTHER)).unwrap();
    assert!(state.note_put_out(&before, NOW_S) && !state.note_put_out(&BTreeSet::new(), NOW_S));
    // Its operator takes it back as it is.
    let mut named = state.clone();
    named.add(Peer::Node(OTHER), None).unwrap();
    assert_eq!(admit(&named, &old, NOW_S), Ok(()));
    // Or invites it, right away: what says that it holds from a little before does not, then.
    let at_s = NOW_S + 2;
    let key = secret(40).key();
    let chain =
        state.invite(&issuer, OTHER, key, super::validity(at_s, 600), Serial([8; 16])).unwrap();
    let refused = Err(Refusal::Former { since_s: NOW_S });
    let state = restored(&state, keys());
    for mut state in [state.clone(), restored(&state, keys())] {
        assert_eq!(admit(&state, &old, at_s), refused);
        assert_eq!(admit(&state, &chain, at_s), Ok(()));
        assert_eq!(admit(&state, &signed(&state, at_s), at_s), Ok(()));
        state.came(OTHER).unwrap();
        state.add(Peer::Node(OTHER), Some(([127, 0, 0, 1], 7400).into())).unwrap();
        assert_eq!(admit(&state, &old, at_s), refused, "it has come, and told where it is");
    }
    // It asks for its services anew, once.
    let mut back = State::new(OTHER, (key, secret(41).key()));
    back.join(cluster.bundle(1), chain, at_s).unwrap();
    assert_eq!(back.fresh_s(), NOW_S);
    back.join(cluster.bundle(1), Vec::new(), at_s).unwrap();
    assert_eq!(back.fresh_s(), NOW_S);
    // Those who hear of it by a vote go by the same.
    let mut voting = joined(&cluster);
    let voter = NodeId([7; 32]);
    let signed = configuration(&cluster, 1, &[(voter, 12)], 1);
    voting.configure(signed, &issuer, NOW_S * 1_000_000).unwrap();
    let members = Members::restore(voting.members().signed().cloned(), []);
    let stance = state.for_it(OTHER, None);
    let cast = members.cast((voter, &secret(12)), OTHER, stance, at_s * 1_000_000).unwrap();
    assert_eq!(voting.take([cast]), (1, None));
    assert_eq!(voting.trust(at_s).unwrap().peers.since_s, BTreeMap::from([(OTHER, NOW_S)]));
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart() {
    let cluster = Cluster::new("demo", 20);
    let mut state = joined(&cluster);
    state.certify(cluster.issuer_on(NODE, keys().1), &secret(11), NOW_S, Serial([7; 16])).unwrap();
    state.add("tenant/red".parse().unwrap(), None).unwrap();
    state.add(Peer::Node(OTHER), Some(([127, 0, 0, 1], 7400).into())).unwrap();
    let back = restored(&state, keys());
    assert_eq!(back.peers(), state.peers());
    assert_eq!(back.address(OTHER, NOW_S), Ok(([127, 0, 0, 1], 7400).into()));
    assert_eq!(back.reachable(NOW_S), [OTHER]);
    assert!(back.issues() && back.trust(NOW_S).unwrap().peers.nodes.contains(&OTHER));
    let (own, before) = (back.own().unwrap(), state.own().unwrap());
    assert_eq!((own.0, &own.1.id, own.1.until_s), (before.0, &before.1.id, before.1.until_s));
    // Another key: what was signed for the old one is not this node's.
    let other = restored(&state, (secret(9).key(), keys().1));
    assert!(other.own().is_none());
}

/// The root of `cluster` says who votes, and how many it takes.
fn configuration(cluster: &Cluster, number: u64, voters: &[(NodeId, u8)], admit: u32) -> Signed {
    let voter = |(node, key): &(NodeId, u8)| {
        (*node, distos_membership::Voter { key: secret(*key).key(), since: number.min(1) })
    };
    let voters = voters.iter().map(voter).collect();
    let voting = Some(distos_membership::Voting { voters, admit, remove: 1 });
    let cluster_name = cluster.name.clone();
    let configuration = distos_membership::Configuration {
        cluster: cluster_name,
        number,
        key_exchange: distos_identity::KeyExchange::HybridOnly,
        voting,
    };
    configuration.sign(&cluster.root).unwrap()
}

/// Where a cluster votes, an operator alone lets nobody in, and can put out whomever others are for.
#[test]
fn who_is_let_in_is_for_the_voters_to_say_and_for_each_operator_to_refuse() {
    let cluster = Cluster::new("demo", 20);
    let mut state = joined(&cluster);
    let (voter, third) = (NodeId([7; 32]), NodeId([8; 32]));
    let (own, now_us) = (secret(11), NOW_S * 1_000_000);
    let address: SocketAddr = ([127, 0, 0, 1], 7400).into();
    let at = Some(address);
    state.add(Peer::Node(OTHER), at).unwrap();
    state.add("tenant/red".parse().unwrap(), None).unwrap();
    let lets_in = |state: &State| state.trust(NOW_S).unwrap().peers.nodes;
    assert_eq!(lets_in(&state), BTreeSet::from([OTHER]));
    // This node is one of two voters: it is for whom it has let in, and that is not enough any more.
    let signed = configuration(&cluster, 1, &[(NODE, 11), (voter, 12)], 2);
    assert!(state.configure(signed.clone(), &own, now_us).unwrap());
    assert_eq!(state.members().stance(NODE, OTHER), Stance::Admit(at));
    assert_eq!(lets_in(&state), BTreeSet::from([voter]));
    let trust = state.trust(NOW_S).unwrap();
    assert_eq!(trust.exchange, distos_identity::KeyExchange::HybridOnly);
    assert_eq!(trust.peers.tenants.len(), 1, "tenants are not voted on");
    assert_eq!(state.configure(signed, &own, now_us), Ok(false));
    // The other voter says so too.
    let mut other = Members::restore(state.members().signed().cloned(), []);
    let mut says = |state: &mut State, node: NodeId, stance: Stance| {
        let cast = other.cast((voter, &secret(12)), node, stance, now_us).unwrap();
        other.take(cast.clone()).unwrap();
        assert_eq!(state.take([cast]), (1, None));
    };
    says(&mut state, OTHER, Stance::Admit(None));
    assert_eq!(lets_in(&state), BTreeSet::from([OTHER, voter]));
    assert_eq!(state.address(OTHER, NOW_S), Ok(address));
    // One whom its operator has put out stays out, whatever the others say.
    state.remove(&Peer::Node(OTHER)).unwrap();
    assert_eq!(lets_in(&state), BTreeSet::from([voter]));
    let kept = |key| match key == secret(12).key() {
        true => Ok(state.members().casts(voter).cloned().collect()),
        false => Ok(state.members().casts(NODE).cloned().collect()),
    };
    let mut back = State::restore(NODE, keys(), state.keep(), &kept, Vec::new()).unwrap();
    assert_eq!((lets_in(&back), lets_in(&state)), (BTreeSet::from([voter]), lets_in(&back)));
    back.add(Peer::Node(OTHER), None).unwrap();
    assert_eq!(lets_in(&back), BTreeSet::from([OTHER, voter]));
    // Also one of whom nobody has spoken yet.
    back.remove(&Peer::Node(third)).unwrap();
    let mut later = back.clone();
    says(&mut later, third, Stance::Admit(None));
    later.vote(&own, third, Stance::Admit(None), now_us).unwrap();
    assert!(later.members().standing(third).is_member);
    assert!(!lets_in(&later).contains(&third));
    // What its operator has said it says again when it is named anew: against whom it has put out, too.
    let anew = {
        let signed = configuration(&cluster, 2, &[(NODE, 11), (voter, 12)], 1);
        let mut anew = signed.configuration().clone();
        let voters = &mut anew.voting.as_mut().unwrap().voters;
        voters.get_mut(&NODE).unwrap().since = 2;
        anew.sign(&cluster.root).unwrap()
    };
    let mut named = back.clone();
    assert_eq!(named.configure(anew, &own, now_us), Ok(true));
    assert_eq!(named.members().stance(NODE, third), Stance::Remove);
    assert_eq!(named.members().stance(NODE, OTHER), Stance::Admit(None));
    // One vote against it is enough here, and the root's next word ends the other's.
    says(&mut back, OTHER, Stance::Remove);
    assert_eq!(lets_in(&back), BTreeSet::from([voter]));
    let alone = configuration(&cluster, 2, &[(NODE, 11)], 1);
    back.configure(alone, &own, now_us).unwrap();
    assert_eq!(lets_in(&back), BTreeSet::from([OTHER]));
}

#[test]
fn a_node_that_is_named_with_another_key_has_no_vote_and_goes_by_those_of_others() {
    let cluster = Cluster::new("demo", 20);
    let mut state = joined(&cluster);
    state.add(Peer::Node(OTHER), None).unwrap();
    let signed = configuration(&cluster, 1, &[(NODE, 10)], 1);
    let now_us = NOW_S * 1_000_000;
    assert_eq!(state.configure(signed, &secret(11), now_us), Ok(true));
    assert_eq!(state.vote(&secret(11), OTHER, Stance::Remove, now_us), Ok(None));
    assert!(state.trust(NOW_S).unwrap().peers.nodes.is_empty());
    // Its operator refuses whom they like all the same.
    state.remove(&Peer::Node(OTHER)).unwrap();
    let older = configuration(&cluster, 0, &[(NODE, 11)], 1);
    assert!(state.configure(older, &secret(11), now_us).is_err());
}

/// A node of a cluster that demands evidence and signs for others, and whose peer is `OTHER`.
fn demanding(cluster: &Cluster) -> State {
    let mut state = joined(cluster);
    let certificate = cluster.issuer_on(NODE, keys().1);
    state.certify(certificate, &secret(11), NOW_S, Serial([7; 16])).unwrap();
    state.add(Peer::Node(OTHER), None).unwrap();
    state.require_evidence();
    state
}

fn said(node: NodeId, standing: Standing, until_s: u64, epoch: u64) -> Vec<Judgement> {
    let reason = "PCR 11 differs".into();
    vec![Judgement { node, standing, until_s, epoch, reason, bound: Some(BY) }]
}

fn judged(state: &mut State, judgements: Vec<Judgement>) -> Judged {
    state.judge(&secret(11), judgements, NOW_S * 1_000_000)
}

/// What is signed for a service of `OTHER`.
fn signed_for(state: &State, service: &str, at_s: u64) -> Result<Vec<Vec<u8>>, Fault> {
    let subject: Subject = format!("node/{OTHER}/service/{service}").parse().unwrap();
    let (key, proof) = (secret(43).key(), distos_identity::prove(&subject, &secret(43)));
    let asks = Request { node: OTHER, by: BY, service, key, proof: &proof };
    state.sign(&secret(11), &asks, 600, at_s, Serial([9; 16])).map(|(chain, _)| chain)
}

#[test]
fn what_is_signed_for_a_node_ends_with_its_evidence_and_not_later() {
    let cluster = Cluster::new("demo", 20);
    let mut state = demanding(&cluster);
    assert!(matches!(signed_for(&state, "memory", NOW_S), Err(Fault::StaleAttestation(_))));
    assert!(signed_for(&state, SERVICE, NOW_S).is_ok(), "it is to be asked for evidence");
    let until_s = NOW_S + 30;
    assert_eq!(judged(&mut state, said(OTHER, Standing::Fresh, until_s, 0)).wrong, None);
    let memory = signed_for(&state, "memory", NOW_S).unwrap();
    let admitted =
        |chain: &[Vec<u8>], at_s| state.trust(at_s).unwrap().admit(chain, at_s, Usage::Client);
    assert!(admitted(&memory, until_s - 1).is_ok());
    assert!(matches!(admitted(&memory, until_s), Err(Refusal::Expired { .. })));
    let network = signed_for(&state, SERVICE, NOW_S).unwrap();
    assert_eq!(admitted(&network, NOW_S).unwrap().until_s, NOW_S + 600);
    assert!(matches!(signed_for(&state, "memory", until_s), Err(Fault::StaleAttestation(_))));
}

#[test]
fn a_node_that_has_failed_is_put_out_and_comes_back_by_its_operators_word_until_it_fails_again() {
    let cluster = Cluster::new("demo", 20);
    let mut state = demanding(&cluster);
    let before = state.nodes(NOW_S).into_keys().collect();
    let out = judged(&mut state, said(OTHER, Standing::Failed, 0, 1));
    assert_eq!((out.out.len(), out.is_new, out.wrong), (1, true, None));
    assert!(state.note_put_out(&before, NOW_S), "what is signed later does not hold from before");
    assert!(state.nodes(NOW_S).is_empty());
    let epoch = state.trust(NOW_S).unwrap().peers.epochs[&OTHER];
    assert!(epoch > 0, "what it holds at other services of this node ends");
    assert!(signed_for(&state, SERVICE, NOW_S).is_err());
    let mut state = restored(&state, keys());
    state.require_evidence();
    assert_eq!(state.standing(OTHER, NOW_S), Some(Standing::Failed));
    assert_eq!(state.trust(NOW_S).unwrap().peers.epochs[&OTHER], epoch);
    // It is said once more of one that is not there: nothing follows.
    assert!(judged(&mut state, said(OTHER, Standing::Failed, 0, 1)).out.is_empty());
    state.add(Peer::Node(OTHER), None).unwrap();
    state.review_standings(NOW_S);
    assert!(state.nodes(NOW_S).contains_key(&OTHER) && signed_for(&state, SERVICE, NOW_S).is_ok());
    assert_eq!(judged(&mut state, said(OTHER, Standing::Failed, 0, 1)).out.len(), 1);
    assert!(state.nodes(NOW_S).is_empty());
}

/// Or a failure of which this service heard nothing, because it was away, has ended nothing.
#[test]
fn evidence_that_was_bad_and_is_good_again_has_ended_what_the_node_held() {
    let cluster = Cluster::new("demo", 20);
    let mut state = demanding(&cluster);
    assert!(judged(&mut state, said(OTHER, Standing::Fresh, NOW_S + 60, 0)).turned.is_empty());
    let mended = judged(&mut state, said(OTHER, Standing::Fresh, NOW_S + 60, 1));
    assert!(!mended.turned.is_empty() && mended.out.is_empty());
    assert_eq!(state.trust(NOW_S).unwrap().peers.epochs[&OTHER], 1);
    assert!(judged(&mut state, said(OTHER, Standing::Fresh, NOW_S + 60, 1)).turned.is_empty());
}

#[test]
fn a_voter_votes_against_who_has_failed_and_one_wrong_judgement_saves_no_other_node() {
    let cluster = Cluster::new("demo", 20);
    let mut state = demanding(&cluster);
    let third = NodeId([8; 32]);
    state.add(Peer::Node(third), None).unwrap();
    let signed = configuration(&cluster, 1, &[(NODE, 11), (NodeId([7; 32]), 12)], 1);
    state.configure(signed, &secret(11), NOW_S * 1_000_000).unwrap();
    judged(&mut state, said(third, Standing::Fresh, NOW_S + 30, 5));
    let mut both = said(third, Standing::Fresh, NOW_S + 60, 4);
    both.extend(said(OTHER, Standing::Failed, 0, 1));
    // Of strangers nothing is kept.
    both.extend(said(NodeId([9; 32]), Standing::Failed, 0, 1));
    let judged = judged(&mut state, both);
    assert!(matches!(judged.wrong, Some(Fault::Malformed(_))), "an epoch goes back");
    assert_eq!(judged.out.iter().map(|(node, _)| *node).collect::<Vec<_>>(), [OTHER]);
    assert_eq!(judged.casts.len(), 1);
    assert_eq!(state.members().stance(NODE, OTHER), Stance::Remove);
    assert!(state.is_banned(OTHER) && !state.is_banned(NodeId([9; 32])));
    assert!(state.nodes(NOW_S).contains_key(&third));
    assert_eq!(state.standing(NodeId([9; 32]), NOW_S), None);
}

#[test]
fn where_no_evidence_is_demanded_nobody_is_put_out_for_it() {
    let cluster = Cluster::new("demo", 20);
    let mut state = joined(&cluster);
    state.add(Peer::Node(OTHER), None).unwrap();
    let judged = judged(&mut state, said(OTHER, Standing::Failed, 0, 1));
    assert!(judged.out.is_empty() && judged.is_new);
    assert!(state.nodes(NOW_S).contains_key(&OTHER));
    assert_eq!(state.standing(OTHER, NOW_S), Some(Standing::Failed));
}

/// A node that was taken over must not go on making others members.
#[test]
fn a_node_that_has_failed_itself_signs_for_no_node_and_no_agent() {
    let cluster = Cluster::new("demo", 20);
    let mut state = demanding(&cluster);
    let third = NodeId([8; 32]);
    judged(&mut state, said(OTHER, Standing::Fresh, NOW_S + 60, 0));
    let tenant = TenantName::new("red").unwrap();
    state.serve_agents_of(&tenant).unwrap();
    let object = state.agents_of(&tenant).unwrap();
    let signs = |state: &mut State| {
        let validity = super::validity(NOW_S, 60);
        let key = secret(44).key();
        let invited = state.clone().invite(&secret(11), third, key, validity, Serial([8; 16]));
        let agent = state.sign_agent(&secret(11), object, key, validity, Serial([9; 16]));
        [signed_for(state, "memory", NOW_S).is_ok(), invited.is_ok(), agent.is_ok()]
    };
    assert_eq!(signs(&mut state), [true; 3]);
    let own = judged(&mut state, said(NODE, Standing::Failed, 0, 1));
    assert!(own.out.is_empty(), "it does not put itself out");
    assert_eq!(signs(&mut state), [false; 3]);
    judged(&mut state, said(NODE, Standing::Fresh, NOW_S + 60, 1));
    assert_eq!(signs(&mut state), [true; 3]);
}
