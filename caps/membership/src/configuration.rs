//! What holds for a whole cluster, as its root has signed it.

use std::collections::BTreeMap;

use distos_abi::{Fault, HolderKey, NodeId};
use distos_identity::{Bundle, ClusterName, KeyExchange, Peer};
use distos_types::{HolderSecret, is_usable, verify_signature};
use serde::{Deserialize, Serialize};

/// The longest configuration that is read, in bytes.
pub const MAX_CONFIGURATION_BYTES: usize = 16 * 1024;
/// Voters of a cluster.
pub const MAX_VOTERS: usize = 32;
/// What is signed begins with this, and so means nothing else.
const DOMAIN: &[u8] = b"distos configuration 1\0";
const KIND: &str = "configuration";
const VERSION: u32 = 1;

/// What holds for a whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its number: a node that has one takes none with a smaller one.
    pub number: u64,
    /// How keys are agreed on at connections between its members.
    pub key_exchange: KeyExchange,
    /// Who decides which nodes belong to it; without it each node's operator decides whom that node lets in.
    pub voting: Option<Voting>,
}

/// Who decides which nodes belong to a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voting {
    /// The nodes that vote: 1 to [`MAX_VOTERS`].
    pub voters: BTreeMap<NodeId, Voter>,
    /// How many of them it takes to let a node in: 1 to all of them.
    pub admit: u32,
    /// How many of them it takes to put a node out: 1 to all of them.
    pub remove: u32,
}

/// One who votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voter {
    /// The key with which it signs its votes.
    pub key: HolderKey,
    /// The number of the configuration that has named it with this key, and that each of its votes repeats. A voter
    /// that was left out and is named again has another one: what it had said counts no more, and nobody can bring it
    /// up again.
    pub since: u64,
}

impl Voting {
    /// [`Fault::Malformed`] if a number is none of those that it may be, or a key is two voters' or nobody's.
    pub fn check(&self) -> Result<(), Fault> {
        let voters = self.voters.len();
        if !(1..=MAX_VOTERS).contains(&voters) {
            return Err(Fault::malformed(format!("a cluster has 1 to {MAX_VOTERS} voters")));
        }
        let votes = 1..=voters as u32;
        if !votes.contains(&self.admit) || !votes.contains(&self.remove) {
            let why =
                format!("{voters} vote: it takes 1 to {voters} votes to let a node in or out");
            return Err(Fault::malformed(why));
        }
        let mut keys: Vec<&HolderKey> = self.voters.values().map(|voter| &voter.key).collect();
        keys.sort_unstable();
        if keys.windows(2).any(|two| two[0] == two[1]) {
            return Err(Fault::malformed("two voters have the same key"));
        }
        match keys.iter().find(|key| !is_usable(***key)) {
            Some(key) => Err(Fault::malformed(format!("{key} is no key that signs"))),
            None => Ok(()),
        }
    }
}

impl Configuration {
    /// Signed by a root of the cluster. [`Fault::Malformed`] if it makes no sense.
    pub fn sign(self, root: &HolderSecret) -> Result<Signed, Fault> {
        self.check()?;
        let signature = root.sign(&self.signed());
        Ok(Signed { configuration: self, by: root.key(), signature })
    }

    fn check(&self) -> Result<(), Fault> {
        let Some(voting) = &self.voting else { return Ok(()) };
        voting.check()?;
        match voting.voters.values().all(|voter| voter.since <= self.number) {
            true => Ok(()),
            false => Err(Fault::malformed("a voter is named by a configuration that is to come")),
        }
    }

    /// The bytes that are signed: numbers big-endian, the name behind its length, the voters behind their number.
    fn signed(&self) -> Vec<u8> {
        let mut bytes = DOMAIN.to_vec();
        let name = self.cluster.as_str();
        // The longest name has 255 bytes, and there are as few voters.
        bytes.push(name.len() as u8);
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes.push(match self.key_exchange {
            KeyExchange::HybridPreferred => 0,
            KeyExchange::HybridOnly => 1,
        });
        let Some(voting) = &self.voting else {
            bytes.push(0);
            return bytes;
        };
        bytes.push(voting.voters.len() as u8);
        for (node, voter) in &voting.voters {
            bytes.extend_from_slice(&node.0);
            bytes.extend_from_slice(&voter.key.0);
            bytes.extend_from_slice(&voter.since.to_be_bytes());
        }
        bytes.extend_from_slice(&voting.admit.to_be_bytes());
        bytes.extend_from_slice(&voting.remove.to_be_bytes());
        bytes
    }
}

/// A configuration, and who is said to have signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    configuration: Configuration,
    by: HolderKey,
    signature: [u8; 64],
}

/// As JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    distos: String,
    version: u32,
    cluster: String,
    number: u64,
    key_exchange: KeyExchangeText,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    voting: Option<VotingText>,
    by: String,
    signature: String,
}

#[derive(Serialize, Deserialize)]
enum KeyExchangeText {
    #[serde(rename = "hybrid preferred")]
    HybridPreferred,
    #[serde(rename = "hybrid only")]
    HybridOnly,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VotingText {
    voters: BTreeMap<String, VoterText>,
    admit: u32,
    remove: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VoterText {
    key: String,
    since: u64,
}

impl Signed {
    /// BLAKE3 of what was signed.
    pub(crate) fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.configuration.signed()).as_bytes()
    }

    /// What was signed, if `verify` says so.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Reads a configuration's JSON. [`Fault::Malformed`] says what is wrong; who has signed it is for
    /// [`Signed::verify`] to say.
    pub fn parse(text: &str) -> Result<Signed, Fault> {
        if text.len() > MAX_CONFIGURATION_BYTES {
            return Err(Fault::malformed("a cluster's configuration is not so long"));
        }
        let no = |why: &dyn std::fmt::Display| {
            Fault::malformed(format!("this is no cluster's configuration: {why}"))
        };
        let read: Text = serde_json::from_str(text).map_err(|e| no(&e))?;
        if read.distos != KIND {
            return Err(no(&"it says that it is something else"));
        }
        if read.version != VERSION {
            let why = format!("a configuration of version {}: use the newer program", read.version);
            return Err(Fault::malformed(why));
        }
        let mut signature = [0; 64];
        hex::decode_to_slice(&read.signature, &mut signature)
            .map_err(|_| no(&"its signature is 128 hexadecimal digits"))?;
        let configuration = Configuration {
            cluster: ClusterName::new(&read.cluster)?,
            number: read.number,
            key_exchange: match read.key_exchange {
                KeyExchangeText::HybridPreferred => KeyExchange::HybridPreferred,
                KeyExchangeText::HybridOnly => KeyExchange::HybridOnly,
            },
            voting: read.voting.map(VotingText::read).transpose()?,
        };
        configuration.check()?;
        Ok(Signed { configuration, by: key(&read.by)?, signature })
    }

    /// The configuration as JSON.
    pub fn to_json(&self) -> String {
        let Configuration { cluster, number, key_exchange, voting } = &self.configuration;
        let text = Text {
            distos: KIND.to_owned(),
            version: VERSION,
            cluster: cluster.to_string(),
            number: *number,
            key_exchange: match key_exchange {
                KeyExchange::HybridPreferred => KeyExchangeText::HybridPreferred,
                KeyExchange::HybridOnly => KeyExchangeText::HybridOnly,
            },
            voting: voting.as_ref().map(VotingText::of),
            by: self.by.to_string(),
            signature: hex::encode(self.signature),
        };
        // Strings and numbers have a form in JSON.
        let text = serde_json::to_string_pretty(&text).unwrap_or_default();
        text + "\n"
    }

    /// What a root of this cluster has signed that holds at this time.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] if no such root has; [`Fault::Malformed`] if it is another cluster's.
    pub fn verify(&self, bundle: &Bundle, now_s: u64) -> Result<&Configuration, Fault> {
        let found = &self.configuration;
        if found.cluster != *bundle.cluster() {
            return Err(Fault::malformed(format!(
                "this is the configuration of {}, and this node is in {}",
                found.cluster,
                bundle.cluster()
            )));
        }
        if !bundle.keys_at(now_s).any(|root| root == self.by) {
            return Err(Fault::Unauthenticated(format!(
                "this configuration is signed by {}, which is no root of {}",
                self.by, found.cluster
            )));
        }
        verify_signature(self.by, &found.signed(), &self.signature)?;
        Ok(found)
    }
}

fn key(text: &str) -> Result<HolderKey, Fault> {
    let mut key = [0; 32];
    hex::decode_to_slice(text, &mut key)
        .map_err(|_| Fault::malformed("a key is 64 hexadecimal digits"))?;
    Ok(HolderKey(key))
}

impl VotingText {
    fn of(voting: &Voting) -> VotingText {
        let voter = |(node, voter): (&NodeId, &Voter)| {
            let text = VoterText { key: voter.key.to_string(), since: voter.since };
            (Peer::Node(*node).to_string(), text)
        };
        let Voting { voters, admit, remove } = voting;
        VotingText { voters: voters.iter().map(voter).collect(), admit: *admit, remove: *remove }
    }

    fn read(self) -> Result<Voting, Fault> {
        if self.voters.len() > MAX_VOTERS {
            return Err(Fault::malformed(format!("a cluster has 1 to {MAX_VOTERS} voters")));
        }
        let mut voters = BTreeMap::new();
        for (name, voter) in self.voters {
            let Peer::Node(node) = name.parse()? else {
                return Err(Fault::malformed(format!("{name} is no node, and votes for nothing")));
            };
            voters.insert(node, Voter { key: key(&voter.key)?, since: voter.since });
        }
        Ok(Voting { voters, admit: self.admit, remove: self.remove })
    }
}

#[cfg(test)]
mod tests {
    use distos_identity::{Root, Serial, Validity};

    use super::*;

    const NOW_S: u64 = 1_800_000_000;

    fn secret(seed: u8) -> HolderSecret {
        HolderSecret::from_seed([seed; 32])
    }

    fn bundle(name: &str, root: u8, until_s: u64) -> Bundle {
        let root = secret(root);
        let validity = Validity { from_s: NOW_S - 100, until_s };
        let root = Root::new(ClusterName::new(name).unwrap(), &root);
        Bundle::new(vec![root.certificate(validity, Serial([1; 16])).unwrap()], 1).unwrap()
    }

    fn configuration(voters: &[u8], admit: u32, remove: u32) -> Configuration {
        let voter = |n: &u8| (NodeId([*n; 32]), Voter { key: secret(*n).key(), since: 2 });
        let voters = voters.iter().map(voter).collect();
        Configuration {
            cluster: ClusterName::new("demo").unwrap(),
            number: 3,
            key_exchange: KeyExchange::HybridOnly,
            voting: Some(Voting { voters, admit, remove }),
        }
    }

    #[test]
    fn what_a_root_has_signed_is_read_as_it_was_signed_and_nothing_else_is_believed() {
        let root = secret(1);
        let bundle = bundle("demo", 1, NOW_S + 100);
        let alone = Configuration { voting: None, ..configuration(&[], 0, 0) };
        for made in [configuration(&[10, 11, 12], 2, 1), alone] {
            let signed = made.clone().sign(&root).unwrap();
            let text = signed.to_json();
            assert_eq!(Signed::parse(&text).unwrap(), signed);
            assert_eq!(signed.verify(&bundle, NOW_S), Ok(&made));
            assert!(signed.verify(&bundle, NOW_S + 101).is_err(), "the root's time is over");
            let stranger = made.clone().sign(&secret(2)).unwrap();
            assert!(matches!(stranger.verify(&bundle, NOW_S), Err(Fault::Unauthenticated(_))));
            let foreign = super::tests::bundle("other", 1, NOW_S + 100);
            assert!(matches!(signed.verify(&foreign, NOW_S), Err(Fault::Malformed(_))));
        }
        // Whatever is changed, it is not what was signed.
        let text = configuration(&[10, 11, 12], 2, 1).sign(&root).unwrap().to_json();
        let other = NodeId([10; 32]).to_string();
        for (what, with) in [
            ("\"number\": 3", "\"number\": 4"),
            ("hybrid only", "hybrid preferred"),
            ("\"admit\": 2", "\"admit\": 1"),
            ("\"remove\": 1", "\"remove\": 3"),
            ("\"since\": 2", "\"since\": 1"),
            (other.as_str(), &NodeId([13; 32]).to_string()),
            (&secret(11).key().to_string(), &secret(14).key().to_string()),
        ] {
            let changed = text.replacen(what, with, 1);
            assert_ne!(changed, text, "{what}");
            let changed = Signed::parse(&changed).unwrap();
            assert!(changed.verify(&bundle, NOW_S).is_err(), "{what}");
        }
        for (what, with) in [
            ("\"version\": 1", "\"version\": 2"),
            ("\"distos\": \"configuration\"", "\"distos\": \"invitation\""),
            ("\"number\": 3", "\"number\": 3, \"more\": 1"),
            ("\"admit\": 2", "\"admit\": 4"),
            ("\"since\": 2", "\"since\": 4"),
        ] {
            let changed = text.replacen(what, with, 1);
            assert!(matches!(Signed::parse(&changed), Err(Fault::Malformed(_))), "{what}");
        }
    }

    #[test]
    fn a_configuration_by_which_nobody_could_decide_is_not_signed() {
        let refused = |configuration: Configuration| {
            assert!(configuration.sign(&secret(1)).is_err());
        };
        refused(configuration(&[], 1, 1));
        refused(configuration(&[10, 11], 0, 1));
        refused(configuration(&[10, 11], 3, 1));
        refused(configuration(&[10, 11], 1, 0));
        refused(configuration(&(10..10 + MAX_VOTERS as u8 + 1).collect::<Vec<_>>(), 1, 1));
        let mut same = configuration(&[10, 11], 2, 1);
        for voter in same.voting.iter_mut().flat_map(|voting| voting.voters.values_mut()) {
            voter.key = secret(10).key();
        }
        refused(same);
        // One that everybody could sign for.
        let mut weak = configuration(&[10], 1, 1);
        for voter in weak.voting.iter_mut().flat_map(|voting| voting.voters.values_mut()) {
            voter.key = HolderKey([0; 32]);
        }
        refused(weak);
    }
}
