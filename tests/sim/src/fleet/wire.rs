//! What nodes say to one another, and the network between them.

use distos_abi::CapId;
use distos_core::LinkClaim;
use distos_lease::{Ask, Loan, News};

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

pub(super) struct Network {
    /// On which side of a cut each node is.
    side: Vec<bool>,
    cut: bool,
    troubles: bool,
}

impl Network {
    pub(super) fn new(nodes: usize, troubles: bool) -> Network {
        Network { side: vec![false; nodes], cut: false, troubles }
    }

    pub(super) fn cut(&mut self, random: &mut Random) {
        self.cut = true;
        let share = 1 + random.below(4);
        for side in &mut self.side {
            *side = random.below(5) < share;
        }
    }

    pub(super) fn mend(&mut self) {
        self.cut = false;
    }

    /// When a message arrives, and as what: never, once, or several times.
    pub(super) fn arrivals(
        &self,
        random: &mut Random,
        (from, to): (usize, usize),
        message: &Message,
        now_us: u64,
    ) -> Vec<(u64, Message)> {
        let mut once = |message: Message| {
            let mut delay_us = 100 + random.below(400);
            if self.troubles && random.below(20) == 0 {
                delay_us += random.below(3_000_000);
            }
            (now_us + delay_us, message)
        };
        let first = once(message.clone());
        if !self.troubles {
            return vec![first];
        }
        let second = once(message.clone());
        if (self.cut && self.side[from] != self.side[to]) || random.below(50) == 0 {
            return Vec::new();
        }
        match message {
            // Somebody listens, repeats, and changes.
            Message::Statement(bytes, signature) => {
                let mut bytes = bytes.clone();
                let place = random.below(bytes.len() as u64) as usize;
                bytes[place] ^= 1 << random.below(8);
                let late_us = now_us + random.below(20_000_000);
                let changed = (late_us, Message::Statement(bytes, *signature));
                match random.below(8) {
                    0 => vec![first, second],
                    1 => vec![first, (late_us, message.clone())],
                    2 => vec![changed, first],
                    _ => vec![first],
                }
            }
            // A connection gives nothing back twice.
            Message::Renew(_, _, released) if !released.is_empty() => vec![first],
            _ if random.below(30) == 0 => vec![first, second],
            _ => vec![first],
        }
    }
}
