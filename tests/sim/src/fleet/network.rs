//! The network between nodes: it delays, and if it is troubled, loses, repeats, changes and cuts.

use crate::random::Random;

/// What travels.
pub(super) trait Travels: Clone {
    /// Whether somebody listens who may repeat it much later, and change it.
    fn is_overheard(&self) -> bool;

    /// The same as somebody has changed it.
    fn changed(&self, random: &mut Random) -> Option<Self>;

    /// Whether it may arrive twice.
    fn is_repeated(&self) -> bool;
}

/// The same bytes but for one bit.
pub(super) fn flipped(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let place = random.below(bytes.len() as u64) as usize;
    bytes[place] ^= 1 << random.below(8);
    bytes
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

    /// Nothing goes wrong from here on.
    pub(super) fn calm(&mut self) {
        self.troubles = false;
    }

    /// When a message arrives, and as what: never, once, or several times.
    pub(super) fn arrivals<M: Travels>(
        &self,
        random: &mut Random,
        (from, to): (usize, usize),
        message: &M,
        now_us: u64,
    ) -> Vec<(u64, M)> {
        let mut once = |message: M| {
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
        if message.is_overheard() {
            let late_us = now_us + random.below(20_000_000);
            let changed = message.changed(random);
            return match (random.below(8), changed) {
                (0, _) => vec![first, second],
                (1, _) => vec![first, (late_us, message.clone())],
                (2, Some(changed)) => vec![(late_us, changed), first],
                _ => vec![first],
            };
        }
        match message.is_repeated() && random.below(30) == 0 {
            true => vec![first, second],
            false => vec![first],
        }
    }
}
