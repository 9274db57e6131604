//! What a voter says of a node, and signs.

use std::net::SocketAddr;

use distos_abi::{Fault, HolderKey, NodeId};
use distos_identity::ClusterName;
use distos_types::{HolderSecret, verify_signature};

/// The longest vote with its signature, in bytes.
pub const MAX_VOTE_BYTES: usize = 512;
/// What is signed begins with this, and so means nothing else.
const DOMAIN: &[u8] = b"distos vote 1\0";
const SIGNATURE_BYTES: usize = 64;

/// What a voter thinks of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stance {
    /// It thinks nothing of it, any more.
    None,
    /// It is to be let in, and its network service may be reached there.
    Admit(Option<SocketAddr>),
    /// It is not to be let in.
    Remove,
    /// It was invited, and is to be let in by what was signed for it since then, in seconds since the Unix epoch: whoever
    /// was let in once and comes back does so with nothing that it had.
    Invite {
        /// When that was.
        since_s: u64,
        /// Where its network service may be reached, once that is known.
        address: Option<SocketAddr>,
    },
}

/// What a voter says of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// In which cluster.
    pub cluster: ClusterName,
    /// Who says it.
    pub voter: NodeId,
    /// The number of the configuration that has named this voter.
    pub since: u64,
    /// Of which node.
    pub node: NodeId,
    /// The later of two votes of a voter has the greater number: microseconds since the Unix epoch by the voter's
    /// clock, or one more than the last if that shows less.
    pub number: u64,
    /// What.
    pub stance: Stance,
}

impl Vote {
    /// As bytes: number, the configuration's number (8 bytes each, big-endian), voter, node (32 each), stance (1), of an
    /// invitation the time (8), the address and the cluster's name as text, each behind its length (1).
    fn encode(&self) -> Vec<u8> {
        let mut bytes = [self.number, self.since].map(u64::to_be_bytes).concat();
        bytes.extend_from_slice(&self.voter.0);
        bytes.extend_from_slice(&self.node.0);
        let (stance, address) = match self.stance {
            Stance::None => (0, None),
            Stance::Admit(address) => (1, address),
            Stance::Remove => (2, None),
            Stance::Invite { address, .. } => (3, address),
        };
        bytes.push(stance);
        if let Stance::Invite { since_s, .. } = self.stance {
            bytes.extend_from_slice(&since_s.to_be_bytes());
        }
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        for text in [address.as_str(), self.cluster.as_str()] {
            // Neither is longer.
            bytes.push(text.len() as u8);
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Vote> {
        let (number, rest) = bytes.split_first_chunk::<8>()?;
        let (since, rest) = rest.split_first_chunk::<8>()?;
        let (voter, rest) = rest.split_first_chunk::<32>()?;
        let (node, rest) = rest.split_first_chunk::<32>()?;
        let (stance, rest) = rest.split_first()?;
        let (since_s, mut rest) = match stance {
            3 => rest.split_first_chunk::<8>()?,
            _ => (&[0; 8], rest),
        };
        let text = |rest: &mut &[u8]| -> Option<String> {
            let (len, after) = rest.split_first()?;
            let (text, after) = after.split_at_checked(usize::from(*len))?;
            *rest = after;
            Some(std::str::from_utf8(text).ok()?.to_owned())
        };
        let address = match text(&mut rest)?.as_str() {
            "" => None,
            text => Some(text.parse().ok()?),
        };
        let vote = Vote {
            cluster: ClusterName::new(&text(&mut rest)?).ok()?,
            voter: NodeId(*voter),
            since: u64::from_be_bytes(*since),
            node: NodeId(*node),
            number: u64::from_be_bytes(*number),
            stance: match stance {
                0 => Stance::None,
                1 => Stance::Admit(address),
                2 => Stance::Remove,
                3 => Stance::Invite { since_s: u64::from_be_bytes(*since_s), address },
                _ => return None,
            },
        };
        // One vote has one form: what is counted by its bytes is counted once.
        (vote.encode() == bytes).then_some(vote)
    }

    /// Signed by its voter.
    pub fn sign(self, secret: &HolderSecret) -> Cast {
        let mut bytes = self.encode();
        let signature = secret.sign(&[DOMAIN, &bytes].concat());
        bytes.extend_from_slice(&signature);
        Cast::new(self, bytes)
    }
}

/// A vote with its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cast {
    vote: Vote,
    bytes: Vec<u8>,
    /// BLAKE3 of the bytes.
    hash: [u8; 32],
}

impl Cast {
    fn new(vote: Vote, bytes: Vec<u8>) -> Cast {
        let hash = *blake3::hash(&bytes).as_bytes();
        Cast { vote, bytes, hash }
    }

    /// What it says.
    pub fn vote(&self) -> &Vote {
        &self.vote
    }

    /// The vote's bytes with the signature behind them, as it travels and is kept.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads what [`Cast::bytes`] writes. [`Fault::Malformed`] for anything else; whether its voter has signed it
    /// is for [`Cast::verify`] to say.
    pub fn decode(bytes: &[u8]) -> Result<Cast, Fault> {
        let read = || {
            let (vote, _) = bytes.split_last_chunk::<SIGNATURE_BYTES>()?;
            Some(Cast::new(Vote::decode(vote)?, bytes.to_vec()))
        };
        let fits = bytes.len() <= MAX_VOTE_BYTES;
        fits.then(read).flatten().ok_or_else(|| Fault::malformed("this is no vote"))
    }

    /// [`Fault::Unauthenticated`] unless whoever has `key` has signed it.
    pub fn verify(&self, key: HolderKey) -> Result<(), Fault> {
        let Some((vote, signature)) = self.bytes.split_last_chunk::<SIGNATURE_BYTES>() else {
            return Err(Fault::malformed("this is no vote"));
        };
        verify_signature(key, &[DOMAIN, vote].concat(), signature)
    }

    /// BLAKE3 of its bytes.
    pub(crate) fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// Whether it replaces another one of the same voter about the same node. Two of one number are a voter's
    /// fault; by their bytes everybody takes the same one.
    pub(crate) fn is_after(&self, other: &Cast) -> bool {
        (self.vote.number, &self.bytes) > (other.vote.number, &other.bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vote(stance: Stance) -> Vote {
        let cluster = ClusterName::new("demo").unwrap();
        let (voter, node) = (NodeId([1; 32]), NodeId([2; 32]));
        Vote { cluster, voter, since: 3, node, number: 7, stance }
    }

    #[test]
    fn a_vote_is_read_as_it_was_cast_and_a_changed_one_is_nobodys() {
        let secret = HolderSecret::from_seed([1; 32]);
        let addresses = ["10.0.0.7:7400", "[2001:db8:1:2:3:4:5:6%4294967295]:65535"];
        let addresses = addresses.map(|text| Stance::Admit(Some(text.parse().unwrap())));
        let address = Some(([10, 0, 0, 7], 7400).into());
        let invited = [None, address].map(|address| Stance::Invite { since_s: 1 << 40, address });
        let stances = [Stance::None, Stance::Admit(None), Stance::Remove].into_iter();
        for stance in addresses.into_iter().chain(stances).chain(invited) {
            let cast = vote(stance).sign(&secret);
            let read = Cast::decode(cast.bytes()).unwrap();
            assert_eq!((&read, read.vote()), (&cast, &vote(stance)));
            assert!(read.verify(secret.key()).is_ok());
            assert!(read.verify(HolderSecret::from_seed([2; 32]).key()).is_err());
            for at in 0..cast.bytes().len() {
                let mut changed = cast.bytes().to_vec();
                changed[at] ^= 1;
                let read = Cast::decode(&changed);
                assert!(read.is_err() || read.unwrap().verify(secret.key()).is_err(), "{at}");
                assert!(Cast::decode(&changed[..at]).is_err(), "{at}");
            }
        }
        let longest = ClusterName::new(&"c".repeat(ClusterName::MAX_BYTES)).unwrap();
        let longest = Vote { cluster: longest, ..vote(addresses[1]) }.sign(&secret);
        assert!(Cast::decode(longest.bytes()).is_ok(), "{}", longest.bytes().len());
    }

    proptest! {
        #[test]
        fn whatever_bytes_arrive_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(read) = Cast::decode(&bytes) {
                prop_assert_eq!(read.bytes(), &bytes[..]);
            }
        }
    }
}
