//! What nodes say to one another.

use distos_abi::CapId;
use distos_core::LinkClaim;
use distos_lease::{Ask, Loan, News};

use super::network::{Travels, flipped};
use crate::random::Random;

/// A capability at rest.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub(super) home: usize,
    pub(super) root: CapId,
    pub(super) links: Vec<LinkClaim>,
}

/// How something is asked to be lent.
#[derive(Clone, Debug)]
pub(super) enum By {
    Chain(CapId, Vec<LinkClaim>),
    Ticket([u8; 32]),
}

/// What is lent.
#[derive(Clone, Debug)]
pub(super) struct Granted {
    pub(super) loan: Loan,
    /// By the home's numbers, the root first. What nodes do not tell one another, and the checks need.
    pub(super) lineage: Vec<CapId>,
    pub(super) lasts_ms: u64,
}

/// A message; those of a connection begin with its number.
#[derive(Clone, Debug)]
pub(super) enum Message {
    /// Somebody gives somebody a chain.
    Give(Chain),
    Lend(u64, Ask, By),
    Lent(u64, Ask, Granted),
    /// The connection is not there, or what was asked for is not given.
    NotLent(u64, Ask, bool),
    Renew(u64, Ask, Vec<u64>),
    Renewed(u64, Ask, News),
    Ended(u64, News),
    Heard(u64, Vec<u64>),
    /// Leave this capability for that node.
    Deposit(u64, CapId, usize),
    /// The home and a ticket for the receiver.
    Offer(usize, [u8; 32]),
    Statement(Vec<u8>, [u8; 64]),
}

impl Travels for Message {
    fn is_overheard(&self) -> bool {
        matches!(self, Message::Statement(..))
    }

    /// Somebody listens, repeats, and changes.
    fn changed(&self, random: &mut Random) -> Option<Message> {
        match self {
            Message::Statement(bytes, signature) => {
                Some(Message::Statement(flipped(bytes, random), *signature))
            }
            _ => None,
        }
    }

    /// A connection gives nothing back twice.
    fn is_repeated(&self) -> bool {
        !matches!(self, Message::Renew(_, _, released) if !released.is_empty())
    }
}
