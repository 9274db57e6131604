//! Who somebody is: certificates as a peer presents them, bundles, and names.

use std::sync::LazyLock;

use distos_abi::{NodeId, VatName};
use distos_identity::{
    Bundle, ClusterName, Home, Identity, Invitation, Issuer, Peer, Root, Serial, SpiffeId,
    Statement, Subject, TenantName, Token, TokenAuthority, TokenSecret, Usage, Validity, did,
    from_pem, to_pem,
};
use distos_quic::renewal;
use distos_types::HolderSecret;

use super::seed;
use crate::Input;

const NOW_S: u64 = 1_800_000_000;
const LONG: Validity = Validity { from_s: NOW_S - 1000, until_s: NOW_S + 1000 };
const HOME: Home = Home::Node(NodeId([9; 32]));
const NODE: NodeId = NodeId([1; 32]);

fn secret(number: u8) -> HolderSecret {
    HolderSecret::from_seed([number; 32])
}

fn cluster() -> ClusterName {
    ClusterName::new("demo.example").unwrap()
}

fn subjects() -> [Subject; 3] {
    let tenant = TenantName::new("red").unwrap();
    [
        Subject::Node(NODE),
        Subject::Service { node: NODE, service: VatName::new("executor/red").unwrap() },
        Subject::Agent { tenant, agent: secret(7).key() },
    ]
}

/// A cluster, and all that was ever signed in it.
struct World {
    bundle: Bundle,
    signed: Vec<Vec<Vec<u8>>>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let (root, issuer) = (secret(1), secret(2));
    let authority = Root::new(cluster(), &root);
    let serial = Serial([5; 16]);
    let own = authority.certificate(LONG, serial).unwrap();
    let by = authority.certify(issuer.key(), HOME, LONG, serial).unwrap();
    let issuer = Issuer::new(by, &issuer).unwrap();
    let issue = |subject| {
        let id = SpiffeId { cluster: cluster(), subject };
        issuer.issue(&id, secret(3).key(), LONG, serial).unwrap()
    };
    let signed = subjects().map(issue).into();
    let authority = TokenAuthority { key: token_secret().key(), home: HOME };
    let bundle = Bundle::new(vec![own], 3).unwrap().with_authority(authority).unwrap();
    World { bundle, signed }
});

fn token_secret() -> TokenSecret {
    TokenSecret::from_seed(&[8; 32]).unwrap()
}

/// Every token that was ever signed, and what it says.
static TOKENS: LazyLock<Vec<(String, Token)>> = LazyLock::new(|| {
    let token = |subject| {
        let id = SpiffeId { cluster: cluster(), subject };
        let validity = Validity { from_s: NOW_S, until_s: NOW_S + 300 };
        let token = Token { id, audiences: vec!["shop".to_owned(), "other".to_owned()], validity };
        (token.sign(&token_secret(), HOME).unwrap(), token)
    };
    subjects().map(token).into()
});

pub(super) fn token_seeds() -> Vec<(String, Vec<u8>)> {
    let names = ["node", "service", "agent"];
    names.iter().zip(&*TOKENS).map(|(name, (text, _))| seed(name, text.as_bytes())).collect()
}

/// Nobody becomes somebody by a token that says anything else than what was signed.
pub(super) fn token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(found) = Token::verify(text, &WORLD.bundle, "shop", NOW_S) {
        // Of a signature of this kind there is a second one, which says the same.
        let said = |text: &str| text.rsplit_once('.').map(|(said, _)| said.to_owned());
        let signed = |(own, token): &(String, Token)| *token == found && said(own) == said(text);
        assert!(TOKENS.iter().any(signed), "{found:?} is made up");
    }
    assert!(Token::verify(text, &WORLD.bundle, "shop", NOW_S + 301).is_err());
}

/// Two certificates, the first behind its length.
fn presented(chain: &[Vec<u8>]) -> Vec<u8> {
    let length = (chain[0].len() as u16).to_le_bytes();
    [&length[..], &chain[0], &chain[1]].concat()
}

pub(super) fn svid_seeds() -> Vec<(String, Vec<u8>)> {
    let names = ["node", "service", "agent"];
    names.iter().zip(&WORLD.signed).map(|(name, chain)| seed(name, presented(chain))).collect()
}

/// Nobody becomes somebody without a signature of that cluster's.
pub(super) fn svid(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let length = u16::from_le_bytes(input.array());
    let chain = [input.take(length.into()).to_vec(), input.rest().to_vec()];
    for usage in [Usage::Client, Usage::Server] {
        if let Ok(found) = Identity::verify(&chain, &WORLD.bundle, NOW_S, usage) {
            assert!(WORLD.signed.iter().any(|signed| **signed == chain), "{found:?} is made up");
            assert_eq!(found.key, secret(3).key());
        }
    }
    let lone = Bundle::new(vec![chain[1].clone()], 1);
    if let Ok(bundle) = lone {
        assert_eq!(Bundle::parse(&bundle.to_json()), Ok(bundle));
    }
}

/// What a connection binds its renewals to.
const BINDING: [u8; 32] = [6; 32];

static SHOWN: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    WORLD.signed.iter().map(|chain| renewal::encode(chain, &BINDING, &secret(3))).collect()
});

pub(super) fn renewal_seeds() -> Vec<(String, Vec<u8>)> {
    let names = ["node", "service", "agent"];
    names.iter().zip(&*SHOWN).map(|(name, message)| seed(name, message.clone())).collect()
}

/// Nobody shows an SVID whose key it does not have.
pub(super) fn renewal(bytes: &[u8]) {
    let Some(shown) = renewal::decode(bytes) else { return };
    assert!(shown.chain.iter().map(Vec::len).sum::<usize>() <= bytes.len());
    let taken = shown.is_by(secret(3).key(), &BINDING);
    assert_eq!(taken, SHOWN.iter().any(|message| message == bytes), "somebody else showed it");
}

pub(super) fn statement_seeds() -> Vec<(String, Vec<u8>)> {
    let from = format!("node/{}/service/network", "11".repeat(32)).parse().unwrap();
    let to = format!("tenant/red/agent/{}", did::multibase(HolderSecret::from_seed([3; 32]).key()));
    let to = to.parse().unwrap();
    let statement = Statement { from, to, at_us: 1_800_000_000_000_000, body: vec![1, 0, 0] };
    vec![seed("statement", statement.encode())]
}

/// What a member says: read, and the same again when it is written.
pub(super) fn statement(bytes: &[u8]) {
    if let Ok(read) = Statement::decode(bytes) {
        assert_eq!(read.encode(), bytes);
    }
}

pub(super) fn bundle_seeds() -> Vec<(String, Vec<u8>)> {
    let pem = to_pem(&WORLD.signed[0]).unwrap();
    let invitation = Invitation {
        from: Peer::Node(NodeId([7; 32])),
        address: ([127, 0, 0, 1], 7400).into(),
        bundle: WORLD.bundle.clone(),
        chain: WORLD.signed[0].clone(),
    };
    let invitation = invitation.to_json().unwrap();
    vec![seed("bundle", WORLD.bundle.to_json()), seed("pem", pem), seed("invitation", invitation)]
}

/// What is read from a file is written and read again as it was.
pub(super) fn bundle(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(invitation) = Invitation::parse(&text)
        && let Ok(written) = invitation.to_json()
    {
        assert_eq!(Invitation::parse(&written), Ok(invitation));
    }
    if let Ok(bundle) = Bundle::parse(&text) {
        assert_eq!(Bundle::parse(&bundle.to_json()), Ok(bundle));
    }
    if let Ok(chain) = from_pem(&text) {
        assert_eq!(from_pem(&to_pem(&chain).unwrap()), Ok(chain));
    }
}

pub(super) fn name_seeds() -> Vec<(String, Vec<u8>)> {
    let id = |subject| SpiffeId { cluster: cluster(), subject }.to_string();
    let [node, service, agent] = subjects().map(id);
    vec![
        seed("node", node),
        seed("service", service),
        seed("agent", agent),
        seed("did", did::of_node(NODE)),
    ]
}

/// A name has one spelling, so that lists of names can be compared.
pub(super) fn name(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(key) = did::parse(&text) {
        assert_eq!(did::of_agent(key), text);
    }
    if let Ok(home) = text.parse::<Home>() {
        assert_eq!(home.to_string(), text);
    }
}
