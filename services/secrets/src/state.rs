//! What the broker keeps, and what it decides: secrets, their versions, and leases on them. No I/O, no clock, no keys.
//!
//! Deciding and changing are apart. A decision, such as [`State::lease`], changes nothing and returns the [`Record`] of
//! the change; [`State::apply`] carries a record out. A restart applies the same records again and comes to the same state.
//!
//! **A lease holds by epochs.** Each secret, holder and node has a number that goes up when all its leases are ended; a
//! lease has the numbers that were those when it was made, and holds while they still are and its time is not over. So
//! ending a million leases is one addition, and [`State::sweep`] clears them away afterwards, a bounded number at a time.
//! A lease takes 48 bytes in its map, number and all, besides what the map itself needs (about as much again).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use distos_abi::{CapId, Fault, HolderKey, Meter, NodeId, ObjectId, TenantId};

use crate::barrier::{Binding, Owner, RootFacts};
use crate::record::{
    Facts, Heard, Holder, LeaseId, MAX_NAME_BYTES, MAX_VALUE_BYTES, NewLease, Record, SecretKind,
};

/// The longest a lease runs, and an old version can be read, in milliseconds: 30 days.
pub const LONGEST_MS: u64 = 30 * 24 * 3600 * 1000;
/// The shortest a lease runs, in milliseconds.
pub const SHORTEST_MS: u64 = 1_000;
/// For how long a lease runs at most if nobody says, in milliseconds: an hour.
const USUAL_MS: u64 = 3600 * 1000;
/// Until when the newest version can be read.
const NEWEST: u64 = u64::MAX;
/// How soon whoever has too many leases may ask again, in milliseconds.
const CROWDED_RETRY_MS: u64 = 1_000;

/// How much of everything there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Secrets of a tenant.
    pub secrets: usize,
    /// Bytes of all versions of a tenant's secrets, as they are kept.
    pub bytes: u64,
    /// Leases of a tenant, with those that have ended and are not cleared away.
    pub leases: u64,
    /// Of these, leases that one holder may have by one capability, so that whoever was lent a secret leaves some to its
    /// owner.
    pub leases_of_holder: u64,
    /// Versions of a secret that can be read.
    pub versions: usize,
}

impl Limits {
    /// So many leases of a tenant, an eighth of them a holder's at most.
    pub fn with_leases(self, leases: u64) -> Limits {
        Limits { leases, leases_of_holder: (leases / 8).max(1), ..self }
    }
}

/// A clock that never goes back and never stands still, whatever the one that it follows does: leases that have ended
/// by their time stay so when somebody sets that one back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// What it was at least when `run_ms` was 0.
    base_ms: u64,
}

impl Clock {
    /// One that is never before `floor_ms`.
    pub fn new(floor_ms: u64) -> Clock {
        Clock { base_ms: floor_ms }
    }

    /// The time, in milliseconds since the Unix epoch as far as `wall_ms` can be believed. `run_ms` is for how long this
    /// clock has run.
    pub fn now_ms(&mut self, wall_ms: u64, run_ms: u64) -> u64 {
        self.base_ms = self.base_ms.max(wall_ms.saturating_sub(run_ms));
        self.base_ms.saturating_add(run_ms)
    }
}

impl Default for Limits {
    fn default() -> Limits {
        let (leases, leases_of_holder) = (0, 0);
        Limits { secrets: 1024, bytes: 16 << 20, leases, leases_of_holder, versions: 8 }
            .with_leases(65_536)
    }
}

/// Checks a secret's name.
pub fn checked_name(name: &str) -> Result<&str, Fault> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(name);
    }
    Err(Fault::malformed(format!(
        "a secret's name is 1 to {MAX_NAME_BYTES} of a-z A-Z 0-9 . _ - /"
    )))
}

/// Checks a value that somebody puts.
pub fn checked_value(value: &[u8]) -> Result<&[u8], Fault> {
    if (1..=MAX_VALUE_BYTES).contains(&value.len()) {
        return Ok(value);
    }
    Err(Fault::malformed(format!("a secret is 1 to {MAX_VALUE_BYTES} bytes long")))
}

/// Checks for how long leases on a new secret are to run; 0 stands for the usual.
pub fn checked_lease_ms(lease_ms: u64) -> Result<u64, Fault> {
    match lease_ms {
        0 => Ok(USUAL_MS),
        SHORTEST_MS..=LONGEST_MS => Ok(lease_ms),
        _ => Err(Fault::malformed("a lease runs for 1 s to 30 days")),
    }
}

/// A version of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    number: u32,
    /// Encrypted under the secret's key.
    sealed: Vec<u8>,
    /// Until when it can be read at most.
    until_ms: u64,
    /// When the last of its leases ends by itself.
    last_lease_ms: u64,
}

impl Version {
    /// One that is not the newest can be read while somebody may still have a lease on it.
    fn readable(&self, now_ms: u64) -> bool {
        self.until_ms == NEWEST || now_ms < self.until_ms.min(self.last_lease_ms)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Secret {
    facts: Facts,
    /// Oldest first.
    versions: Vec<Version>,
    epoch: u32,
    leases: u64,
}

/// What is known of a lease. Small: there may be millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lease {
    object: ObjectId,
    until_ms: u64,
    version: u32,
    holder: u32,
    node: u32,
    of_secret: u32,
    of_holder: u32,
    of_node: u32,
}

/// Whoever leases belong to, in a table in which each has a small number and an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Roll<K> {
    numbers: BTreeMap<K, u32>,
    entries: Vec<Entry<K>>,
    free: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry<K> {
    key: K,
    epoch: u32,
    /// Those that were made and not cleared away.
    leases: u64,
}

impl<K> Default for Roll<K> {
    fn default() -> Self {
        Roll { numbers: BTreeMap::new(), entries: Vec::new(), free: Vec::new() }
    }
}

impl<K: Ord + Copy> Roll<K> {
    /// Counts one more lease of this one's. Its number and its epoch.
    fn enter(&mut self, key: K) -> (u32, u32) {
        let number = match self.numbers.get(&key) {
            Some(number) => *number,
            None => self.place(key),
        };
        let entry = &mut self.entries[number as usize];
        entry.leases += 1;
        (number, entry.epoch)
    }

    fn place(&mut self, key: K) -> u32 {
        let number = match self.free.pop() {
            // Its epoch stays: no lease refers to it any more.
            Some(number) => {
                self.entries[number as usize].key = key;
                number
            }
            None => {
                self.entries.push(Entry { key, epoch: 0, leases: 0 });
                u32::try_from(self.entries.len() - 1).expect("leases are bounded far below")
            }
        };
        self.numbers.insert(key, number);
        number
    }

    /// Counts one less. Whoever has none left is forgotten.
    fn leave(&mut self, number: u32) {
        let entry = &mut self.entries[number as usize];
        entry.leases -= 1;
        if entry.leases == 0 {
            self.numbers.remove(&entry.key);
            self.free.push(number);
        }
    }

    /// Ends all leases of this one's, and says how many there were.
    fn end(&mut self, key: &K) -> u64 {
        let Some(number) = self.numbers.get(key) else { return 0 };
        let entry = &mut self.entries[*number as usize];
        // One that was made four billion ends ago was cleared away long since.
        entry.epoch = entry.epoch.wrapping_add(1);
        entry.leases
    }

    /// How many this one has that were not cleared away.
    fn leases(&self, key: &K) -> u64 {
        self.numbers.get(key).map_or(0, |number| self.of(*number).leases)
    }

    fn of(&self, number: u32) -> &Entry<K> {
        &self.entries[number as usize]
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    secrets: usize,
    bytes: u64,
    leases: u64,
}

/// What is to be said of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its number.
    pub object: ObjectId,
    /// Its name.
    pub name: String,
    /// What a reading gives.
    pub kind: SecretKind,
    /// Whether it is given out on evidence only.
    pub attested: bool,
    /// The newest version.
    pub version: u32,
    /// How many older ones can be read.
    pub overlapping: u32,
    /// Leases that were made and not cleared away.
    pub leases: u64,
    /// For how long a lease runs at most, in milliseconds.
    pub lease_ms: u64,
}

/// A version that may be read, as it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// Whose it is.
    pub owner: Owner,
    /// What is fixed about its secret.
    pub facts: &'a Facts,
    /// Which it is.
    pub version: u32,
    /// Encrypted under the secret's key.
    pub sealed: &'a [u8],
}

/// Everything that the broker keeps.
#[derive(Debug)]
pub struct State {
    limits: Limits,
    root: Option<RootFacts>,
    bound: Option<Binding>,
    closed: bool,
    heard: Option<Heard>,
    secrets: BTreeMap<ObjectId, Secret>,
    names: BTreeMap<(TenantId, String), ObjectId>,
    leases: BTreeMap<LeaseId, Lease>,
    holders: Roll<Holder>,
    nodes: Roll<Option<NodeId>>,
    /// Holders on these get no leases.
    refused: BTreeSet<NodeId>,
    usage: BTreeMap<TenantId, Usage>,
    /// Accounts of leases that have ended and were cleared away, which are still to be removed.
    owed: BTreeSet<(ObjectId, LeaseId)>,
    next_object: u64,
    next_lease: u64,
    /// How late it was at least.
    floor_ms: u64,
    /// Where clearing goes on.
    cursor: LeaseId,
}

impl State {
    /// With nothing in it.
    pub fn new(limits: Limits) -> State {
        State {
            limits,
            root: None,
            bound: None,
            closed: false,
            heard: None,
            secrets: BTreeMap::new(),
            names: BTreeMap::new(),
            leases: BTreeMap::new(),
            holders: Roll::default(),
            nodes: Roll::default(),
            refused: BTreeSet::new(),
            usage: BTreeMap::new(),
            owed: BTreeSet::new(),
            // The root object has number 0.
            next_object: 1,
            next_lease: 1,
            floor_ms: 0,
            cursor: LeaseId(0),
        }
    }

    /// What is known of the root key, if there is one.
    pub fn root(&self) -> Option<&RootFacts> {
        self.root.as_ref()
    }

    /// How a TPM opens the root key, if one does.
    pub fn bound(&self) -> Option<&Binding> {
        self.bound.as_ref()
    }

    /// Whether an operator has sealed the broker, so that it is not to be opened but by one.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// What was heard last of the evidence about the broker's node, if anything was.
    pub fn heard(&self) -> Option<Heard> {
        self.heard
    }

    /// Whether something was ever encrypted under the root key. Until then there may be another: whoever has lost the
    /// shares of one has lost nothing.
    pub fn is_used(&self) -> bool {
        self.next_object > 1
    }

    /// How many secrets there are, and how many leases were made and not cleared away.
    pub fn counts(&self) -> (usize, usize) {
        (self.secrets.len(), self.leases.len())
    }

    /// How late it was at least when this was written, in milliseconds since the Unix epoch.
    pub fn floor_ms(&self) -> u64 {
        self.floor_ms
    }

    /// Notes that it is so late.
    pub fn reached(&mut self, now_ms: u64) {
        self.floor_ms = self.floor_ms.max(now_ms);
    }

    /// Every secret and its tenant.
    pub fn objects(&self) -> Vec<(ObjectId, TenantId)> {
        self.secrets.iter().map(|(object, secret)| (*object, secret.facts.tenant)).collect()
    }

    // What may be done. Nothing below changes anything until `apply`.

    /// The number of the next secret, for whoever makes its key.
    pub fn next_object(&self) -> ObjectId {
        ObjectId(self.next_object)
    }

    /// A secret that is to be made, with `bytes` of its first version as it is kept. [`Fault::Exists`],
    /// [`Fault::OverQuota`].
    pub fn check_new(&self, tenant: TenantId, name: &str, bytes: u64) -> Result<(), Fault> {
        if self.names.contains_key(&(tenant, name.to_owned())) {
            return Err(Fault::Exists(format!(
                "secret '{name}': rotate it, or choose another name"
            )));
        }
        let most = self.limits.secrets;
        if self.used(tenant).secrets >= most {
            let why = format!("this tenant has {most} secrets, the most that it may: drop one");
            return Err(Fault::unavailable(0, why));
        }
        self.check_bytes(tenant, bytes)
    }

    /// The next version of a secret: its number. Errors are [`Fault::NotFound`], [`Fault::OverQuota`], and
    /// [`Fault::Unavailable`] if too many versions can be read already.
    pub fn check_version(&self, object: ObjectId, bytes: u64, now_ms: u64) -> Result<u32, Fault> {
        let secret = self.secret(object)?;
        let overlapping = secret.versions.iter().filter(|version| version.readable(now_ms));
        if overlapping.count() >= self.limits.versions {
            let why = format!(
                "{} versions of this secret can be read, the most that may: wait until the oldest cannot",
                self.limits.versions
            );
            return Err(Fault::unavailable(CROWDED_RETRY_MS, why));
        }
        self.check_bytes(secret.facts.tenant, bytes)?;
        let newest = secret.versions.last().map_or(0, |version| version.number);
        newest.checked_add(1).ok_or_else(|| Fault::malformed("this secret has no more versions"))
    }

    fn check_bytes(&self, tenant: TenantId, bytes: u64) -> Result<(), Fault> {
        let (limit, wanted) = (self.limits.bytes, self.used(tenant).bytes.saturating_add(bytes));
        if wanted > limit {
            return Err(Fault::OverQuota { meter: Meter::Bytes, limit, wanted });
        }
        Ok(())
    }

    /// The secret of this name. [`Fault::NotFound`] for another tenant's too.
    pub fn by_name(&self, tenant: TenantId, name: &str) -> Result<ObjectId, Fault> {
        let found = self.names.get(&(tenant, name.to_owned()));
        found.copied().ok_or_else(|| Fault::not_found(format!("no secret is called '{name}'")))
    }

    /// What is fixed about a secret.
    pub fn facts(&self, object: ObjectId) -> Result<&Facts, Fault> {
        Ok(&self.secret(object)?.facts)
    }

    /// A version of a secret, the newest for 0. [`Fault::NotFound`] if there is none, or it cannot be read any more.
    pub fn reading(
        &self,
        object: ObjectId,
        version: u32,
        now_ms: u64,
    ) -> Result<Reading<'_>, Fault> {
        let secret = self.secret(object)?;
        let found = find(secret, version).filter(|found| found.readable(now_ms));
        let found = found.ok_or_else(|| {
            Fault::not_found(format!("no version {version} of this secret can be read"))
        })?;
        let owner = secret.facts.owner(object);
        Ok(Reading { owner, facts: &secret.facts, version: found.number, sealed: &found.sealed })
    }

    /// Whether a secret may be dropped. [`Fault::Unavailable`] while accounts are there that nobody could remove then.
    pub fn check_drop(&self, object: ObjectId) -> Result<(), Fault> {
        let secret = self.secret(object)?;
        let owed = self.owed_of(object).count() as u64;
        if secret.facts.kind == SecretKind::Account && secret.leases + owed > 0 {
            let why = format!(
                "{} accounts are not removed yet: end this secret's leases, and wait",
                secret.leases + owed
            );
            return Err(Fault::unavailable(CROWDED_RETRY_MS, why));
        }
        Ok(())
    }

    /// Leases on a secret whose accounts are to be removed, oldest first.
    pub fn owed_of(&self, object: ObjectId) -> impl Iterator<Item = LeaseId> + '_ {
        self.owed.range((object, LeaseId(0))..=(object, LeaseId(u64::MAX))).map(|(_, id)| *id)
    }

    /// A lease on a version, the newest for 0, for `ttl_ms` (0: as long as it may run), and in any case not after
    /// `most_ms`. [`Fault::NotFound`] as [`State::reading`]; [`Fault::Unavailable`] if the tenant, or the holder, has as
    /// many as it may; [`Fault::StaleAttestation`] as [`State::check_node`].
    pub fn lease(
        &self,
        object: ObjectId,
        version: u32,
        (holder, node): (Holder, Option<NodeId>),
        (ttl_ms, most_ms): (u64, u64),
        now_ms: u64,
    ) -> Result<NewLease, Fault> {
        self.check_node(node)?;
        let version = self.reading(object, version, now_ms)?.version;
        let until_ms = self.until(object, version, ttl_ms, now_ms)?.min(most_ms);
        let most = self.limits.leases;
        if self.used(holder.tenant).leases >= most {
            let why = format!("this tenant has {most} leases, the most that it may: release some");
            return Err(Fault::unavailable(CROWDED_RETRY_MS, why));
        }
        let most = self.limits.leases_of_holder;
        if self.holders.leases(&holder) >= most {
            let why = format!("this holder has {most} leases, the most that it may: release some");
            return Err(Fault::unavailable(CROWDED_RETRY_MS, why));
        }
        let id = LeaseId(self.next_lease);
        Ok(NewLease { id, object, version, holder, node, until_ms })
    }

    /// Whether holders on this node get leases. [`Fault::StaleAttestation`] while an operator has it refused.
    pub fn check_node(&self, node: Option<NodeId>) -> Result<(), Fault> {
        if node.is_some_and(|node| self.refused.contains(&node)) {
            return Err(Fault::StaleAttestation(
                "nothing is given out to holders on this node: an operator has ended its leases"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Until when a lease of `holder`'s runs if it is renewed. [`Fault::Revoked`] if it has ended, or is another's.
    pub fn renewal(
        &self,
        object: ObjectId,
        id: LeaseId,
        holder: &Holder,
        (ttl_ms, most_ms): (u64, u64),
        now_ms: u64,
    ) -> Result<u64, Fault> {
        let lease = self.own(object, id, holder, now_ms)?;
        Ok(self.until(object, lease.version, ttl_ms, now_ms)?.min(most_ms))
    }

    /// Whether a lease is `holder`'s and holds. [`Fault::Revoked`] otherwise.
    pub fn check_lease(
        &self,
        object: ObjectId,
        id: LeaseId,
        holder: &Holder,
        now_ms: u64,
    ) -> Result<(), Fault> {
        self.own(object, id, holder, now_ms).map(drop)
    }

    /// Whether a tenant's holders have leases by this capability that were not cleared away.
    pub fn is_lessee(&self, tenant: TenantId, cap: CapId) -> bool {
        self.holders_by(tenant, cap).next().is_some()
    }

    /// What ends all leases by gifts. A gift ends with the connection that it was taken over, and so none outlives the vat that
    /// gave it: what the log still has of them is over when that starts.
    pub fn ends_of_gifts(&self) -> Vec<Record> {
        let holders = self.holders.numbers.keys();
        let taken = holders.filter(|holder| holder.key == Holder::NO_KEY);
        taken.map(|holder| Record::EndedCap(holder.tenant, holder.cap)).collect()
    }

    /// Those who have leases by this capability.
    fn holders_by(&self, tenant: TenantId, cap: CapId) -> impl Iterator<Item = &Holder> {
        let first = Holder { tenant, cap, key: HolderKey([0; 32]) };
        let last = Holder { tenant, cap, key: HolderKey([0xff; 32]) };
        self.holders.numbers.range(first..=last).map(|(holder, _)| holder)
    }

    /// Until when a lease runs by itself, if there is one.
    pub fn until_ms(&self, id: LeaseId) -> Option<u64> {
        self.leases.get(&id).map(|lease| lease.until_ms)
    }

    fn own(
        &self,
        object: ObjectId,
        id: LeaseId,
        holder: &Holder,
        now_ms: u64,
    ) -> Result<&Lease, Fault> {
        let lease = self.leases.get(&id).filter(|lease| lease.object == object);
        let own = lease.filter(|lease| {
            self.holders.of(lease.holder).key == *holder && self.holds(lease, now_ms)
        });
        own.ok_or(Fault::Revoked)
    }

    fn until(
        &self,
        object: ObjectId,
        version: u32,
        ttl_ms: u64,
        now_ms: u64,
    ) -> Result<u64, Fault> {
        let secret = self.secret(object)?;
        let ttl_ms = match ttl_ms {
            0 => secret.facts.lease_ms,
            asked => asked.clamp(SHORTEST_MS, secret.facts.lease_ms.max(SHORTEST_MS)),
        };
        let last_ms = find(secret, version).map_or(0, |version| version.until_ms);
        Ok(now_ms.saturating_add(ttl_ms).min(last_ms))
    }

    fn holds(&self, lease: &Lease, now_ms: u64) -> bool {
        let secret = self.secrets.get(&lease.object);
        now_ms < lease.until_ms
            && secret.is_some_and(|secret| secret.epoch == lease.of_secret)
            && self.holders.of(lease.holder).epoch == lease.of_holder
            && self.nodes.of(lease.node).epoch == lease.of_node
    }

    fn secret(&self, object: ObjectId) -> Result<&Secret, Fault> {
        self.secrets.get(&object).ok_or_else(|| Fault::not_found("this secret was dropped"))
    }

    fn used(&self, tenant: TenantId) -> Usage {
        self.usage.get(&tenant).copied().unwrap_or_default()
    }

    /// A secret, as it is told.
    pub fn summary(&self, object: ObjectId, now_ms: u64) -> Result<Summary, Fault> {
        let secret = self.secret(object)?;
        let newest = secret.versions.last().map_or(0, |version| version.number);
        let older = secret.versions.iter().filter(|version| version.number != newest);
        let overlapping = older.filter(|version| version.readable(now_ms)).count() as u32;
        let Facts { name, kind, attested, lease_ms, .. } = &secret.facts;
        Ok(Summary {
            object,
            name: name.clone(),
            kind: *kind,
            attested: *attested,
            version: newest,
            overlapping,
            leases: secret.leases,
            lease_ms: *lease_ms,
        })
    }

    /// A tenant's secrets, by name.
    pub fn list(&self, tenant: TenantId, now_ms: u64) -> Vec<Summary> {
        let after = Bound::Included((tenant, String::new()));
        let names = self.names.range((after, Bound::Unbounded));
        let own = names.take_while(|((of, _), _)| *of == tenant);
        own.filter_map(|(_, object)| self.summary(*object, now_ms).ok()).collect()
    }

    // Changes.

    /// Carries a record out, and says how many leases have ended with it that were not cleared away before. A record of
    /// this state's own decisions never fails; one from a disk may be about what is not there.
    pub fn apply(&mut self, record: Record) -> Result<u64, String> {
        match record {
            Record::Root(facts) if !self.is_used() => (self.root, self.bound) = (Some(facts), None),
            Record::Root(_) => {
                return Err("another root key than that which secrets are under".into());
            }
            Record::Bound(_) if self.root.is_none() => {
                return Err("a TPM that opens a root key that there is not".into());
            }
            Record::Bound(bound) => self.bound = Some(bound),
            Record::Counters { object, lease } => {
                self.next_object = self.next_object.max(object);
                self.next_lease = self.next_lease.max(lease);
            }
            Record::Put { object, facts } => self.put(object, facts)?,
            Record::Version { object, number, previous_until_ms, leased_until_ms, sealed } => {
                let (until_ms, last_lease_ms) = (NEWEST, leased_until_ms);
                let version = Version { number, sealed, until_ms, last_lease_ms };
                self.version(object, previous_until_ms, version)?;
            }
            Record::Dropped(object) => return self.drop_secret(object),
            Record::Leased(lease) => self.leased(lease)?,
            Record::Renewed { id, until_ms } => self.renewed(id, until_ms)?,
            Record::Ended(id) => return Ok(self.clear(id).into()),
            Record::EndedSecret(object) => {
                let secret = self.secrets.get_mut(&object).ok_or("leases on no secret")?;
                secret.epoch = secret.epoch.wrapping_add(1);
                // Nobody has a lease on an older version, and nobody gets one.
                let newest = secret.versions.len().saturating_sub(1);
                let older = secret.versions.drain(..newest).map(|v| v.sealed.len() as u64);
                self.usage.entry(secret.facts.tenant).or_default().bytes -= older.sum::<u64>();
                return Ok(secret.leases);
            }
            Record::EndedCap(tenant, cap) => return Ok(self.end_cap(tenant, cap)),
            Record::EndedNode(node) => {
                self.refused.insert(node);
                return Ok(self.nodes.end(&Some(node)) + self.nodes.end(&None));
            }
            Record::AdmittedNode(node) => {
                self.refused.remove(&node);
            }
            Record::Time(now_ms) => self.reached(now_ms),
            Record::Closed(closed) => self.closed = closed,
            Record::Evidence(heard) => self.heard = Some(heard),
            Record::Owed { object, id } => {
                self.owed.insert((object, id));
            }
            Record::Settled { object, id } => self.settled(object, id),
        }
        Ok(0)
    }

    fn put(&mut self, object: ObjectId, facts: Facts) -> Result<(), String> {
        if self.secrets.contains_key(&object) {
            return Err(format!("secret {object} is there twice"));
        }
        let name = (facts.tenant, facts.name.clone());
        if self.names.contains_key(&name) {
            return Err(format!("two secrets have the name of {object}"));
        }
        self.names.insert(name, object);
        self.usage.entry(facts.tenant).or_default().secrets += 1;
        self.next_object = self.next_object.max(object.0.saturating_add(1));
        self.secrets.insert(object, Secret { facts, versions: Vec::new(), epoch: 0, leases: 0 });
        Ok(())
    }

    fn version(
        &mut self,
        object: ObjectId,
        previous_until_ms: u64,
        version: Version,
    ) -> Result<(), String> {
        let secret = self.secrets.get_mut(&object).ok_or("a version of no secret")?;
        let usage = self.usage.entry(secret.facts.tenant).or_default();
        if let Some(newest) = secret.versions.last_mut() {
            if newest.number >= version.number {
                return Err(format!("a version of {object} follows a newer one"));
            }
            newest.until_ms = previous_until_ms;
        }
        usage.bytes += version.sealed.len() as u64;
        secret.versions.push(version);
        Ok(())
    }

    fn drop_secret(&mut self, object: ObjectId) -> Result<u64, String> {
        let secret = self.secrets.remove(&object).ok_or("the drop of no secret")?;
        let usage = self.usage.entry(secret.facts.tenant).or_default();
        usage.secrets -= 1;
        usage.bytes -= secret.versions.iter().map(|v| v.sealed.len() as u64).sum::<u64>();
        self.names.remove(&(secret.facts.tenant, secret.facts.name));
        Ok(secret.leases)
    }

    fn leased(&mut self, lease: NewLease) -> Result<(), String> {
        let NewLease { id, object, version, holder, node, until_ms } = lease;
        if self.leases.contains_key(&id) {
            return Err(format!("lease {} is there twice", id.0));
        }
        let secret = self.secrets.get_mut(&object).ok_or("a lease on no secret")?;
        if let Some(version) = secret.versions.iter_mut().find(|v| v.number == version) {
            version.last_lease_ms = version.last_lease_ms.max(until_ms);
        }
        secret.leases += 1;
        let of_secret = secret.epoch;
        let (tenant, (holder, of_holder)) = (holder.tenant, self.holders.enter(holder));
        let (node, of_node) = self.nodes.enter(node);
        self.usage.entry(tenant).or_default().leases += 1;
        self.next_lease = self.next_lease.max(id.0.saturating_add(1));
        let lease =
            Lease { object, until_ms, version, holder, node, of_secret, of_holder, of_node };
        self.leases.insert(id, lease);
        Ok(())
    }

    fn renewed(&mut self, id: LeaseId, until_ms: u64) -> Result<(), String> {
        // It may have been cleared away before a restart, and not since.
        let Some(lease) = self.leases.get_mut(&id) else { return Ok(()) };
        lease.until_ms = until_ms;
        let versions = self.secrets.get_mut(&lease.object).map(|secret| &mut secret.versions);
        let version = versions.and_then(|all| all.iter_mut().find(|v| v.number == lease.version));
        if let Some(version) = version {
            version.last_lease_ms = version.last_lease_ms.max(until_ms);
        }
        Ok(())
    }

    fn settled(&mut self, object: ObjectId, id: LeaseId) {
        // After a restart it was not cleared away before.
        self.clear(id);
        self.owed.remove(&(object, id));
    }

    fn end_cap(&mut self, tenant: TenantId, cap: CapId) -> u64 {
        let keys: Vec<Holder> = self.holders_by(tenant, cap).copied().collect();
        keys.iter().map(|holder| self.holders.end(holder)).sum()
    }

    /// Forgets a lease; whether there was one.
    fn clear(&mut self, id: LeaseId) -> bool {
        let Some(lease) = self.leases.remove(&id) else { return false };
        let tenant = self.holders.of(lease.holder).key.tenant;
        if let Some(usage) = self.usage.get_mut(&tenant) {
            usage.leases -= 1;
        }
        if let Some(secret) = self.secrets.get_mut(&lease.object) {
            secret.leases -= 1;
            if secret.facts.kind == SecretKind::Account {
                self.owed.insert((lease.object, id));
            }
        }
        self.holders.leave(lease.holder);
        self.nodes.leave(lease.node);
        true
    }

    /// Looks at `batch` leases, from where it ended the last time, and forgets those that do not hold; and the versions that
    /// cannot be read of the secrets that those were on. Returns how many leases it has forgotten. Nothing is written of
    /// it: after a restart they do not hold either.
    pub fn sweep(&mut self, batch: usize, now_ms: u64) -> usize {
        let after = (Bound::Excluded(self.cursor), Bound::Unbounded);
        let seen = self.leases.range(after).take(batch);
        let mut dead = Vec::new();
        let (mut last, mut count) = (LeaseId(0), 0);
        for (id, lease) in seen {
            (last, count) = (*id, count + 1);
            if !self.holds(lease, now_ms) {
                dead.push((*id, lease.object));
            }
        }
        self.cursor = if count < batch { LeaseId(0) } else { last };
        for (id, object) in &dead {
            self.clear(*id);
            self.retire(*object, now_ms);
        }
        dead.len()
    }

    /// Forgets the versions of a secret that cannot be read.
    pub fn retire(&mut self, object: ObjectId, now_ms: u64) {
        let Some(secret) = self.secrets.get_mut(&object) else { return };
        let usage = self.usage.entry(secret.facts.tenant).or_default();
        secret.versions.retain(|version| {
            let stays = version.readable(now_ms);
            if !stays {
                usage.bytes -= version.sealed.len() as u64;
            }
            stays
        });
    }

    /// The records of a log that says what this state is, without what has ended.
    pub fn snapshot(&self, now_ms: u64) -> impl Iterator<Item = Record> + '_ {
        let counters = Record::Counters { object: self.next_object, lease: self.next_lease };
        let root = self.root.clone().map(Record::Root);
        let bound = self.bound.clone().map(Record::Bound);
        let time = Record::Time(self.floor_ms.max(now_ms));
        // Before the leases, of which these end none.
        let refused = self.refused.iter().map(|node| Record::EndedNode(*node));
        let secrets = self.secrets.iter().flat_map(move |(object, secret)| {
            let put = Record::Put { object: *object, facts: secret.facts.clone() };
            let kept: Vec<&Version> =
                secret.versions.iter().filter(|version| version.readable(now_ms)).collect();
            let before = std::iter::once(0).chain(kept.clone().into_iter().map(|v| v.until_ms));
            let versions: Vec<Record> = kept
                .into_iter()
                .zip(before)
                .map(|(version, previous_until_ms)| Record::Version {
                    object: *object,
                    number: version.number,
                    previous_until_ms,
                    leased_until_ms: version.last_lease_ms,
                    sealed: version.sealed.clone(),
                })
                .collect();
            std::iter::once(put).chain(versions)
        });
        let owed = self.owed.iter().map(|(object, id)| Record::Owed { object: *object, id: *id });
        let leases = self.leases.iter().filter_map(move |(id, lease)| {
            if !self.holds(lease, now_ms) {
                let secret = self.secrets.get(&lease.object);
                let is_account = secret.is_some_and(|s| s.facts.kind == SecretKind::Account);
                return is_account.then_some(Record::Owed { object: lease.object, id: *id });
            }
            Some(Record::Leased(NewLease {
                id: *id,
                object: lease.object,
                version: lease.version,
                holder: self.holders.of(lease.holder).key,
                node: self.nodes.of(lease.node).key,
                until_ms: lease.until_ms,
            }))
        });
        let closed = self.closed.then_some(Record::Closed(true));
        let heard = self.heard.map(Record::Evidence);
        root.into_iter()
            .chain(bound)
            .chain(closed)
            .chain(heard)
            .chain([counters, time])
            .chain(refused)
            .chain(secrets)
            .chain(leases)
            .chain(owed)
    }
}

fn find(secret: &Secret, version: u32) -> Option<&Version> {
    match version {
        0 => secret.versions.last(),
        number => secret.versions.iter().find(|version| version.number == number),
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
pub(crate) mod tests;
