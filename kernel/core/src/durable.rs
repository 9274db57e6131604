//! What outlives the kernel: rebuilding the forest from the journal, and the fewest records that
//! rebuild it.

use distos_abi::Fault;

use crate::{Facts, Forest, Life, NodeRecord, Record, TableOp};

impl Forest {
    /// Takes in one journaled record, in the journal's order; `time_ms` is when it was written.
    /// What hung below something that ended is passed over. Faults: the table or the epoch's
    /// generations are too small for what the journal holds, or a record contradicts an earlier
    /// one; then the node must not boot.
    pub fn replay(&mut self, time_ms: u64, record: &Record) -> Result<(), Fault> {
        self.floor_ms = self.floor_ms.max(time_ms);
        match record {
            Record::Boot { epoch, .. } => self.check_epoch(*epoch),
            Record::Floor { epoch, time_ms } => {
                self.floor_ms = self.floor_ms.max(*time_ms);
                self.check_epoch(*epoch)
            }
            Record::Tenant(tenant) => {
                self.tenants.insert(tenant.id, tenant.clone());
                Ok(())
            }
            Record::Node(node) => self.replay_node(node),
            Record::Revoke(revoke) => {
                if let Some(at) = self.caps.get(&revoke.cap).copied() {
                    self.kill(at);
                    // Nothing was published yet, so no reader has to be waited for.
                    while let Some((slot, _)) = self.bury() {
                        self.set_free(&[slot.index]);
                    }
                }
                Ok(())
            }
            Record::Tombstone { under, link, expires_ms } => {
                if let Some(at) =
                    self.caps.get(under).copied().filter(|_| self.floor_ms < *expires_ms)
                {
                    self.entomb(at, *link, *expires_ms);
                }
                Ok(())
            }
            Record::SessionEnded { .. } | Record::VatDied { .. } | Record::Event { .. } => Ok(()),
        }
    }

    fn check_epoch(&self, epoch: u32) -> Result<(), Fault> {
        if epoch < self.epoch {
            return Ok(());
        }
        Err(Fault::internal(format!(
            "boot {} is not later than boot {epoch} of the journal",
            self.epoch
        )))
    }

    fn replay_node(&mut self, node: &NodeRecord) -> Result<(), Fault> {
        let parent = node.parent.map(|parent| self.caps.get(&parent).copied());
        let (Life::Durable, None | Some(Some(_))) = (node.life, parent) else {
            return Ok(());
        };
        if self.caps.contains_key(&node.cap) {
            return Err(Fault::Corrupt(format!("the journal holds capability {} twice", node.cap)));
        }
        let facts = Facts {
            vat: node.vat.clone(),
            kind: node.kind,
            object: node.object,
            authority: node.authority,
            tenant: node.tenant,
            holder: node.holder.clone(),
            link: node.link,
            issuer: node.issuer,
            life: node.life,
        };
        self.insert(parent.flatten(), Some(node.cap), facts).map(drop)
    }

    /// What a new table must hold after a replay, parents first.
    pub fn table_after_replay(&self) -> Vec<TableOp> {
        self.caps.values().map(|at| self.publish(*at)).collect()
    }

    /// The records that rebuild the durable state, in the order in which [`Forest::replay`] takes
    /// them: the journal may put these in place of all that it holds.
    pub fn snapshot(&self) -> Vec<Record> {
        let mut records = vec![Record::Floor { epoch: self.epoch, time_ms: self.floor_ms }];
        records.extend(self.tenants.values().cloned().map(Record::Tenant));
        // A parent's CapId is always less than its children's.
        let durable = |at: &&u32| self.node(**at).facts.life == Life::Durable && self.is_live(**at);
        records.extend(self.caps.values().filter(durable).map(|at| self.node_record(*at)));
        records.extend(self.tombstones.iter().filter_map(|((under, link), expires_ms)| {
            let live = self.caps.get(under).is_some_and(|at| self.is_live(*at));
            let kept = live && self.floor_ms < *expires_ms;
            kept.then_some(Record::Tombstone {
                under: *under,
                link: *link,
                expires_ms: *expires_ms,
            })
        }));
        records
    }
}
