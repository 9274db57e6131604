//! Secrets from their making to their end: put, rotated, leased, given out and dropped.

use std::rc::Rc;
use std::str::FromStr as _;

use distos_abi::{Authority, Caveats, Fault, HolderKey, NodeId, ObjectId, Rights};
use distos_delivery::{Content, RecipientKey, seal};
use distos_identity::Subject;
use distos_rpc::{Facet, Whence};
use distos_schemas::secrets_capnp::accounts;
use distos_types::kind::SECRET;
use zeroize::Zeroizing;

use super::parcels::holder_of;
use super::{Broker, random};
use crate::barrier::{SEALED_OVERHEAD, WRAPPED_KEY_BYTES};
use crate::material;
use crate::record::{Facts, Holder, NewLease, Record, SecretKind};
use crate::state::checked_value;

/// What the maker of a secret may do with it.
pub(super) const MAKER: Rights = Rights::READ.join(Rights::WRITE).join(Rights::DROP);
/// And with every new lease, so that whoever makes many clears away as many.
const SWEEP_BY_LEASE: usize = 16;

/// What somebody wants to keep.
pub(super) struct NewSecret {
    pub(super) name: String,
    pub(super) kind: SecretKind,
    pub(super) attested: bool,
    pub(super) lease_ms: u64,
    pub(super) accounts: Option<accounts::Client>,
}

impl Broker {
    /// Who reads by `facet`, and on which node that is, as far as is known.
    pub(super) fn reader(&self, facet: &Facet) -> Result<(Holder, Option<NodeId>), Fault> {
        let key = holder_of(facet)?;
        let node = match facet.whence() {
            Whence::Here => Some(self.vat.node()),
            Whence::Shown(path) => Subject::from_str(&path).ok().and_then(|s| s.node()),
            Whence::Anywhere => None,
        };
        Ok((Holder { tenant: facet.tenant(), cap: facet.lasting_cap(), key }, node))
    }

    /// The first version of a new secret, or the next of one: what is to be encrypted.
    pub(super) fn value(
        &self,
        facet: &Facet,
        (kind, name): (SecretKind, &str),
        content: Content<'_>,
        parcel: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        if kind != SecretKind::Fixed && !parcel.is_empty() {
            return Err(Fault::malformed("only a fixed secret has a value that is put"));
        }
        match kind {
            SecretKind::Fixed => {
                let value = self.unwrap(facet, content, parcel)?;
                checked_value(&value)?;
                Ok(value)
            }
            SecretKind::Ed25519 | SecretKind::Account => Ok(Zeroizing::default()),
            SecretKind::X509 => material::authority(name, self.now_ms(), &mut random),
        }
    }

    /// Makes a secret: durable, then a capability to it.
    pub(super) async fn put(
        &self,
        facet: &Facet,
        new: NewSecret,
        value: &[u8],
    ) -> Result<(Facet, Vec<u8>), Fault> {
        let NewSecret { name, kind, attested, lease_ms, accounts } = new;
        let ((object, name), _) = self
            .change(facet, Rights::CREATE, |state| {
                let (tenant, object) = (facet.tenant(), state.next_object());
                let (own_name, key) = (name.clone(), [0; WRAPPED_KEY_BYTES]);
                let mut facts = Facts { name: own_name, tenant, kind, attested, lease_ms, key };
                let owner = facts.owner(object);
                state.check_new(tenant, &name, (value.len() + SEALED_OVERHEAD) as u64)?;
                let (key, sealed) = self.opened(|barrier| {
                    let key = barrier.new_key(owner, &mut random)?;
                    let sealed = barrier.seal(owner, &key, 1, value, &mut random)?;
                    Ok((key, sealed))
                })?;
                facts.key = key;
                let (number, previous_until_ms, leased_until_ms) = (1, 0, 0);
                let version =
                    Record::Version { object, number, previous_until_ms, leased_until_ms, sealed };
                Ok((vec![Record::Put { object, facts }, version], (object, name)))
            })
            .await?;
        if let Some(accounts) = accounts {
            self.accounts.borrow_mut().insert(object, accounts);
        }
        let made = self.hand_out(facet, object).await;
        match &made {
            Ok((minted, _)) => {
                self.report(facet.tenant(), minted.cap_id(), format!("'{name}' put"));
            }
            Err(fault) => self.take_back(object, fault).await,
        }
        made
    }

    pub(super) async fn hand_out(
        &self,
        facet: &Facet,
        object: ObjectId,
    ) -> Result<(Facet, Vec<u8>), Fault> {
        let minted = facet.mint(SECRET, object, below(facet, MAKER)).await?;
        let chain = minted.persist(minted.authority()).await?;
        Ok((minted, chain))
    }

    /// Undoes a making that failed. Nobody was told of it.
    pub(super) async fn take_back(&self, object: ObjectId, why: &Fault) {
        tracing::warn!(%object, %why, "a secret could not be made");
        let ended = self.vat.revoke_object(SECRET, object).await;
        // Not there any more only if it was dropped by name meanwhile.
        let dropped = self.note(Record::Dropped(object)).await;
        self.shred.set(true);
        self.accounts.borrow_mut().remove(&object);
        if let Err(fault) = ended.map(drop).and(dropped) {
            tracing::warn!(%object, %fault, "a capability to it may be left until the next start");
        }
    }

    /// Makes version `next`.
    pub(super) async fn rotate(
        &self,
        facet: &Facet,
        next: u32,
        value: &[u8],
        overlap_ms: u64,
    ) -> Result<u32, Fault> {
        let object = facet.object();
        let now_ms = self.now_ms();
        let ((number, name), _) = self
            .change(facet, Rights::WRITE, |state| {
                let bytes = (value.len() + SEALED_OVERHEAD) as u64;
                let number = state.check_version(object, bytes, now_ms)?;
                if number != next {
                    return Err(Fault::unavailable(0, "this secret was rotated meanwhile"));
                }
                let facts = state.facts(object)?;
                let owner = facts.owner(object);
                let sealed = self.opened(|barrier| {
                    barrier.seal(owner, &facts.key, number, value, &mut random)
                })?;
                let previous_until_ms = now_ms.saturating_add(overlap_ms);
                let record = Record::Version {
                    object,
                    number,
                    previous_until_ms,
                    leased_until_ms: 0,
                    sealed,
                };
                Ok((vec![record], (number, facts.name.clone())))
            })
            .await?;
        self.state.borrow_mut().retire(object, now_ms);
        self.report(
            facet.tenant(),
            facet.cap_id(),
            format!("'{name}' rotated to version {number}"),
        );
        Ok(number)
    }

    /// Leases a version and gives it out: the lease is durable first.
    pub(super) async fn get(
        self: &Rc<Self>,
        facet: &Facet,
        (holder, to): (HolderKey, RecipientKey),
        version: u32,
        ttl_ms: u64,
    ) -> Result<(NewLease, Vec<u8>), Fault> {
        let object = facet.object();
        let most_ms = self.most_ms(facet).await?;
        if self.state.borrow().facts(object)?.kind == SecretKind::Account {
            self.attached(object)?;
        }
        let who = self.reader(facet)?;
        let now_ms = self.now_ms();
        self.state.borrow_mut().sweep(SWEEP_BY_LEASE, now_ms);
        let (lease, _) = self
            .change(facet, Rights::READ, |state| {
                self.opened(|_| Ok(()))?;
                let lease = state.lease(object, version, who, (ttl_ms, most_ms), now_ms)?;
                Ok((vec![Record::Leased(lease)], lease))
            })
            .await?;
        let given = self.give_out(facet, (holder, to), &lease).await;
        if given.is_err() {
            // Nobody has heard of it, and what it was made for is to go.
            self.note(Record::Ended(lease.id)).await?;
        }
        Ok((lease, given?))
    }

    /// What is read under a lease that is durable.
    pub(super) async fn give_out(
        self: &Rc<Self>,
        facet: &Facet,
        (holder, to): (HolderKey, RecipientKey),
        lease: &NewLease,
    ) -> Result<Vec<u8>, Fault> {
        let object = lease.object;
        let (kind, attested) = {
            let state = self.state.borrow();
            let facts = state.facts(object)?;
            (facts.kind, facts.attested)
        };
        let account = match kind {
            SecretKind::Account => Some(self.account(object, lease.id).await?),
            SecretKind::Fixed | SecretKind::Ed25519 | SecretKind::X509 => None,
        };
        // All of this may have ended meanwhile, and then nothing leaves.
        if attested {
            self.evidence(facet).await?;
        }
        self.check_standing(facet)?;
        self.check_new(lease)?;
        let now_ms = self.now_ms();
        let state = self.state.borrow();
        let reading = state.reading(object, lease.version, now_ms)?;
        let value = self.opened(|barrier| {
            barrier.open(reading.owner, &reading.facts.key, reading.version, reading.sealed)
        })?;
        let name = &reading.facts.name;
        let given = match (reading.facts.kind, account) {
            (_, Some(account)) => account,
            (SecretKind::Fixed | SecretKind::Account, None) => value,
            (SecretKind::Ed25519, None) => bytes_of(&material::key_pair(&mut random)?),
            (SecretKind::X509, None) => {
                let until_ms = lease.until_ms;
                bytes_of(&material::credential(name, &value, now_ms, until_ms, &mut random)?)
            }
        };
        let content = Content::Reading { name, version: lease.version, lease: lease.id.0 };
        let parcel = seal(to, &self.purpose(holder, content), &given)?;
        let detail = format!("'{name}' version {} read, lease {}", lease.version, lease.id.0);
        self.report(facet.tenant(), facet.cap_id(), detail);
        Ok(parcel)
    }

    /// Whether a lease that was just made still holds. [`Fault::Expired`] if its time was that short.
    pub(super) fn check_new(&self, lease: &NewLease) -> Result<(), Fault> {
        let now_ms = self.now_ms();
        if now_ms >= lease.until_ms {
            return Err(Fault::Expired { at_ms: lease.until_ms });
        }
        self.state.borrow().check_lease(lease.object, lease.id, &lease.holder, now_ms)
    }

    pub(super) async fn drop_secret(&self, facet: &Facet) -> Result<(), Fault> {
        let object = facet.object();
        let name = self.state.borrow().facts(object)?.name.clone();
        let dropped = self.change(facet, Rights::DROP, |state| {
            state.check_drop(object)?;
            Ok((vec![Record::Dropped(object)], ()))
        });
        let ((), ended) = dropped.await?;
        self.shred.set(true);
        self.accounts.borrow_mut().remove(&object);
        let detail = format!("'{name}' dropped, with {ended} leases");
        self.report(facet.tenant(), facet.cap_id(), detail);
        self.vat.revoke_object(SECRET, object).await.map(drop)
    }
}

fn bytes_of(text: &Zeroizing<String>) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(text.as_bytes().to_vec())
}

/// `rights` over a whole secret, for no longer than `facet` lasts.
pub(super) fn below(facet: &Facet, rights: Rights) -> Authority {
    let Caveats { expires_ms, end_to_end, .. } = facet.authority().caveats;
    Authority { rights, caveats: Caveats { expires_ms, end_to_end, ..Caveats::NONE } }
}
