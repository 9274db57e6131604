//! A vat that is reached over the network: whoever is let in begins at its door, as one who connects to
//! its Unix socket does.

use std::time::{Duration, Instant};

use distos_abi::{CapId, TenantId};
use distos_identity::Peer;
use distos_rpc::{Party, Remote, Vat};

use crate::endpoint::{Arrivals, Refused};
use crate::streams;

/// How often refusals are put into the audit log: whoever is refused decides how often it is.
const TOLD: Duration = Duration::from_secs(1);

/// Lets `vat` serve those who arrive at an endpoint, until the endpoint is gone. Who was refused is
/// reported to the audit log.
pub async fn serve(vat: Vat, mut arrivals: Arrivals) {
    let mut refusals = Refusals::default();
    while let Some(arrival) = arrivals.recv().await {
        match arrival {
            Ok(link) => {
                let closed = link.connection().clone();
                let subject = &link.peer().id.subject;
                let party = party(&Peer::of(subject));
                let from = Remote { party, name: subject.to_string(), binding: link.binding() };
                let (reader, writer) = link.into_halves();
                let over = closed.clone();
                let arrived = vat.take_stream(reader, writer, from, async move {
                    over.closed().await;
                });
                tokio::task::spawn_local(streams::serve(vat.clone(), arrived, closed));
            }
            Err(refused) => {
                if let Some(told) = refusals.note(&refused, Instant::now()) {
                    vat.report("denial", TenantId::OPERATOR, CapId(0), told);
                }
            }
        }
        // One connection, then everybody's turn.
        tokio::task::yield_now().await;
    }
}

/// Who shares the time that strangers have.
fn party(peer: &Peer) -> Party {
    Party::Peer(*blake3::hash(peer.to_string().as_bytes()).as_bytes())
}

/// Refusals that were not told yet: whoever is refused without end must not fill the audit log.
#[derive(Default)]
pub struct Refusals {
    count: u64,
    told: Option<Instant>,
}

impl Refusals {
    /// What is to be told of them, if it is time.
    pub fn note(&mut self, refused: &Refused, now: Instant) -> Option<String> {
        self.count += 1;
        if self.told.is_some_and(|told| now.duration_since(told) < TOLD) {
            return None;
        }
        let more = match self.count {
            1 => String::new(),
            count => format!(" ({} before it were refused, too)", count - 1),
        };
        *self = Refusals { count: 0, told: Some(now) };
        Some(format!("connection from {}: {}{more}", refused.from, refused.why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_refused_without_end_does_not_fill_the_audit_log() {
        let refused = Refused { from: ([127, 0, 0, 1], 9).into(), why: "a stranger".into() };
        let mut refusals = Refusals::default();
        let start = Instant::now();
        let told: Vec<String> = (0..5000)
            .filter_map(|ms| refusals.note(&refused, start + Duration::from_millis(ms)))
            .collect();
        assert_eq!(told.len(), 5);
        assert_eq!(told[0], "connection from 127.0.0.1:9: a stranger");
        assert!(told[1].ends_with("(999 before it were refused, too)"), "{}", told[1]);
    }
}
