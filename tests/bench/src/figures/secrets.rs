//! Ending all leases of a node at the secret broker: what it takes must not depend on how many there are. Its state and
//! its log, as the broker has them, without the connection over which it is asked.

use std::path::Path;
use std::time::Instant;

use distos_abi::{CapId, HolderKey, NodeId, ObjectId, TenantId};
use distos_secrets::barrier::WRAPPED_KEY_BYTES;
use distos_secrets::record::{Facts, Holder, LeaseId, Payloads, Record, SecretKind};
use distos_secrets::state::{Limits, State};
use distos_secrets::store::Log;

use super::{Failure, Outcome};
use crate::report::{Figure, time};
use crate::sample::quantile;

const MANY: u64 = 1_000_000;
/// How often the many are ended. Making them takes most of the time.
const ROUNDS: usize = 25;
/// How often one is, in each round.
const SINGLES: usize = 40;
const NOW_MS: u64 = 1_700_000_000_000;
const NODE: NodeId = NodeId([7; 32]);
const OBJECT: ObjectId = ObjectId(1);
const HOLDER: Holder = Holder { tenant: TenantId(1), cap: CapId(2), key: HolderKey([3; 32]) };

/// A broker with one secret.
struct Broker {
    state: State,
    log: Log,
}

impl Broker {
    fn open(dir: &Path) -> Result<Broker, Failure> {
        let most = u64::MAX;
        let limits = Limits { leases: most, leases_of_holder: most, ..Limits::default() };
        let (state, log) = Log::open(dir, limits, [1; 16], NOW_MS)?;
        let mut broker = Broker { state, log };
        let facts = Facts {
            name: "password".into(),
            tenant: HOLDER.tenant,
            kind: SecretKind::Fixed,
            attested: false,
            lease_ms: 3_600_000,
            key: [0; WRAPPED_KEY_BYTES],
        };
        let put = Record::Put { object: OBJECT, facts };
        let (number, previous_until_ms, leased_until_ms) = (1, 0, 0);
        let sealed = vec![0; 64];
        let version =
            Record::Version { object: OBJECT, number, previous_until_ms, leased_until_ms, sealed };
        broker.record([put, version])?;
        Ok(broker)
    }

    fn record(&mut self, records: impl IntoIterator<Item = Record>) -> Result<(), Failure> {
        let mut payloads = Payloads::default();
        for record in records {
            payloads.push(&record);
            self.state.apply(record)?;
        }
        Ok(self.log.append(payloads)?)
    }

    /// So many leases of holders on the node, each durable.
    fn lease(&mut self, count: u64) -> Result<Vec<LeaseId>, Failure> {
        let (mut ids, mut payloads) = (Vec::new(), Payloads::default());
        for _ in 0..count {
            let who = (HOLDER, Some(NODE));
            let lease = self.state.lease(OBJECT, 0, who, (0, u64::MAX), NOW_MS)?;
            payloads.push(&Record::Leased(lease));
            self.state.apply(Record::Leased(lease))?;
            ids.push(lease.id);
        }
        self.log.append(payloads)?;
        Ok(ids)
    }

    /// From the command until its record is durable and a lease is refused, in nanoseconds. The broker has one thread:
    /// when the command has been carried out, no use is under way.
    fn end(&mut self, ids: &[LeaseId]) -> Result<u64, Failure> {
        let some = ids[ids.len() / 2];
        self.state.check_lease(OBJECT, some, &HOLDER, NOW_MS)?;
        let begun = Instant::now();
        self.record([Record::EndedNode(NODE)])?;
        let refused = self.state.check_lease(OBJECT, some, &HOLDER, NOW_MS).is_err();
        let took = begun.elapsed();
        if !refused {
            return Err("a lease goes on after it was ended".into());
        }
        // For the next ones there.
        self.record([Record::AdmittedNode(NODE)])?;
        Ok(u64::try_from(took.as_nanos())?)
    }

    /// Clears away what has ended, as the broker does beside its work. Returns how long one step of it takes, in nanoseconds.
    fn clear(&mut self, step: usize) -> u64 {
        let (mut longest, mut empty) = (0, 0);
        // The first may begin anywhere.
        while empty < 2 {
            let begun = Instant::now();
            let cleared = self.state.sweep(step, NOW_MS);
            longest = longest.max(begun.elapsed().as_nanos() as u64);
            empty = if cleared == 0 { empty + 1 } else { 0 };
        }
        longest
    }
}

pub(super) fn all(_: &Path) -> Outcome {
    // On the disk of the build, not in memory.
    let own = std::env::current_exe()?;
    let beside = own.parent().ok_or("a program stands in a folder")?;
    let dirs = [tempfile::tempdir_in(beside)?, tempfile::tempdir_in(beside)?];
    let (mut few, mut many) = (Broker::open(dirs[0].path())?, Broker::open(dirs[1].path())?);
    let (mut ones, mut all, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        for _ in 0..SINGLES {
            let ids = few.lease(1)?;
            ones.push(few.end(&ids)?);
            few.clear(8192);
        }
        let begun = Instant::now();
        let ids = many.lease(MANY - 1)?;
        // The last is a record of its own, as the only one is among the few: what is measured begins behind one small
        // write in both, and not behind the hundred megabytes of all.
        many.lease(1)?;
        println!("round {round} of {ROUNDS}: {MANY} leased in {:?}", begun.elapsed());
        all.push(many.end(&ids)?);
        steps.push(many.clear(8192));
    }
    let median = |samples: &[u64]| quantile(&mut samples.to_vec(), 0.5);
    let note = format!(
        "{} ÷ {} samples; clearing 8,192 of them away takes {} at most",
        all.len(),
        ones.len(),
        time(quantile(&mut steps, 0.5)),
    );
    let name = "1,000,000 leases of a node: command to durable, quiescent and first refusal";
    Ok(vec![
        Figure::of("secrets", name, median(&all), median(&ones))
            .beside("the same with 1 lease")
            .at_most(1.5)
            .noting(note),
    ])
}
