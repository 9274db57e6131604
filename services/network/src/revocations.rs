//! Revocations on their way: taken from whoever has signed them or heard of them, kept, told to other nodes, and
//! brought to the vats of this node whose capabilities they end.

use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use distos_abi::{Fault, NodeId, ObjectId, VatName};
use distos_membership::{Mark, Revocations};
use distos_rpc::record::Record;
use distos_rpc::{Obeyed, fault_of};
use distos_schemas::network_capnp::member;
use distos_types::Revocation;
use serde::{Deserialize, Serialize};

use crate::server::NetworkService;
use crate::state::{SERVICE, State};

/// What the names of the files begin with.
const PREFIX: &str = "revocations-";
/// How many a tenant's agents may leave here, since this service was started.
const MAX_LEFT: usize = 32;
/// How long somebody who brings a revocation waits for its effect.
const ENDED_WAIT: Duration = Duration::from_secs(2);

/// What is on disk for one home.
#[derive(Serialize, Deserialize)]
struct RevocationsDisk {
    /// In base64, each with its signature.
    revocations: Vec<String>,
}

fn record(directory: &Path, home: NodeId) -> Record {
    const REMEDY: &str =
        "restore it from a backup, or remove it: what only this node was told is not revoked then";
    Record::new(directory.join(format!("{PREFIX}{home}")), "distos-revocations", REMEDY)
}

/// What is on disk. It was verified before.
pub(crate) fn load_revocations(directory: &Path) -> Result<Vec<Revocation>, Fault> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(Fault::internal)? {
        let name = entry.map_err(Fault::internal)?.file_name();
        let home = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let mut id = [0; 32];
        // Whatever else is there, such as what was being written when the machine stopped.
        let Some(()) = home.and_then(|home| hex::decode_to_slice(home, &mut id).ok()) else {
            continue;
        };
        let Some(disk) = record(directory, NodeId(id)).load::<RevocationsDisk>()? else { continue };
        let broken = |_| Fault::Corrupt("a revocation on disk is not in base64".into());
        for text in &disk.revocations {
            let read = Revocation::decode(&STANDARD.decode(text).map_err(broken)?);
            let wrong = |fault| Fault::Corrupt(format!("{PREFIX}{}: {fault}", NodeId(id)));
            found.push(read.map_err(wrong)?);
        }
    }
    Ok(found)
}

impl NetworkService {
    /// Puts on disk what is not, and removes what is no longer kept.
    pub(crate) fn save_revocations(&self) -> Result<(), Fault> {
        let directory = self.vat.data_dir().ok_or_else(|| Fault::internal("it has a directory"))?;
        let state = self.state.borrow();
        let revocations = state.members().revocations();
        let mut kept = self.kept_revocations.borrow_mut();
        for (home, digest) in revocations.kept() {
            if kept.get(&home) != Some(&digest) {
                let all = revocations.of(home).map(|one| STANDARD.encode(one.bytes())).collect();
                record(directory, home).save(&RevocationsDisk { revocations: all })?;
                kept.insert(home, digest);
            }
        }
        let homes = revocations.homes();
        let gone: BTreeSet<NodeId> =
            kept.keys().filter(|home| !homes.contains(home)).copied().collect();
        for home in gone {
            // One that stays is read and forgotten again.
            if let Err(error) = std::fs::remove_file(record(directory, home).path()) {
                tracing::warn!(%error, "revocations whose time is over stay on disk");
            }
            kept.remove(&home);
        }
        Ok(())
    }

    /// Forgets those whose time is over, and tells others of those for homes that are let in.
    pub(crate) fn expire_revocations(&self) -> Result<(), Fault> {
        self.show_revocations();
        if self.state.borrow_mut().expire_revocations(self.vat.now_ms()) {
            self.more.send_replace(());
            self.save_revocations()?;
        }
        Ok(())
    }

    /// Tells others of revocations for homes that are let in, and this one.
    pub(crate) fn show_revocations(&self) {
        let now_s = self.now_s();
        if self.state.borrow_mut().show_revocations(now_s) {
            self.more.send_replace(());
        }
    }

    /// Puts into effect what another node has told; what is wrong with one of them.
    pub(crate) fn follow_revocations(&self, revocations: Vec<Revocation>) -> Option<Fault> {
        let (new, wrong) = self.state.borrow_mut().take_revocations(revocations, self.vat.now_ms());
        if new > 0 {
            self.more.send_replace(());
        }
        wrong
    }

    /// What is to end at a vat of this node, and its digest.
    pub(crate) fn ended_at(&self, vat: &VatName) -> (Vec<Revocation>, [u8; 32]) {
        let state = self.state.borrow();
        let all = state.members().revocations().of(self.vat.node());
        let all: Vec<_> = all.filter(|one| one.vat() == vat).cloned().collect();
        let digest = Revocations::digest(&all);
        (all, digest)
    }

    /// Takes a revocation that somebody brings, and sees to it that its home hears of it; whether nothing that it ends
    /// has an effect there any more. `install` is called with what is known then, and returns what was before, unless
    /// whoever brings it may do so no more.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`], [`Fault::Denied`] or [`Fault::Expired`] if it proves nothing, or nothing any more;
    /// [`Fault::NotFound`] if its home is no node that is let in; [`Fault::Unavailable`] if there is no room.
    pub(crate) async fn carry(
        self: &Rc<Self>,
        revocation: Revocation,
        install: impl FnOnce(State) -> Result<State, Fault>,
    ) -> Result<bool, Fault> {
        let (home, link) = (revocation.home(), revocation.link());
        let mut is_new = false;
        let next = self.changed(|state| {
            is_new = state.bring(revocation.clone(), self.vat.now_ms())?;
            Ok(())
        })?;
        install(next)?;
        // It holds whether or not there is room on the disk; but nobody is told that it will.
        let saved = self.save_revocations();
        if is_new {
            self.more.send_replace(());
            let by = revocation.by().holder();
            self.report(format!("carries a revocation of key {by} to node/{home}: link {link}"));
        }
        let ended = match home == self.vat.node() {
            true => self.until_ended(&revocation).await,
            false => {
                let said = self.bring_home(home, &revocation).await;
                said.unwrap_or_else(|fault| {
                    tracing::info!(%home, %fault, "a revocation has not come home yet");
                    false
                })
            }
        };
        if is_new && !ended {
            let service = self.clone();
            tokio::task::spawn_local(async move { service.spread(Some(service.beat(None))).await });
        }
        match ended {
            true => Ok(true),
            false => saved.map(|()| false),
        }
    }

    /// Whether a tenant's agents may leave one more here. Counted by whom it is brought, and not by what it says: keys
    /// and chains are whoever makes them's to choose.
    pub(crate) fn may_leave(&self, tenant: ObjectId, mark: Mark) -> Result<(), Fault> {
        let mut left = self.left.borrow_mut();
        let state = self.state.borrow();
        left.retain(|mark, _| state.members().revocations().get(mark).is_some());
        // It is whoever's who has left it first.
        if left.contains_key(&mark) {
            return Ok(());
        }
        let own = left.values().filter(|by| **by == tenant).count();
        if own >= MAX_LEFT {
            let why = "this tenant has left enough here: revoke it at its home";
            return Err(Fault::unavailable(60_000, why));
        }
        left.insert(mark, tenant);
        Ok(())
    }

    async fn bring_home(&self, home: NodeId, revocation: &Revocation) -> Result<bool, Fault> {
        self.with_member(home, async |member: member::Client| {
            let mut request = member.carry_request();
            request.get().set_revocation(revocation.bytes());
            let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
            Ok(answer.get().map_err(|e| fault_of(&e))?.get_ended())
        })
        .await
    }

    /// Waits for a while until what ends at a vat of this node has.
    async fn until_ended(&self, revocation: &Revocation) -> bool {
        let (vat, mark) = (revocation.vat(), Mark::of(revocation));
        let mut more = self.more.subscribe();
        let has_ended = |_: &()| {
            let (attending, state) = (self.attending.borrow(), self.state.borrow());
            // The same may have been said before, in other words.
            let kept = state.members().revocations().get(&mark);
            let ended = attending.get(vat.as_str()).map(|one| &one.ended);
            kept.zip(ended).is_some_and(|(kept, ended)| ended.contains(kept.hash()))
        };
        tokio::time::timeout(ENDED_WAIT, more.wait_for(has_ended)).await.is_ok()
    }

    /// A vat says of what nothing has an effect there any more.
    pub(crate) fn has_ended(&self, vat: &VatName, ended: BTreeSet<[u8; 32]>) {
        self.note(vat.as_str(), |one| one.ended = ended);
        self.more.send_replace(());
    }

    /// Ends what is to end of this service's own, until the vat ends.
    pub(crate) async fn obey(self: Rc<Self>) {
        let Ok(own) = VatName::new(SERVICE) else { return };
        let mut more = self.more.subscribe();
        let mut obeyed = Obeyed::default();
        loop {
            let (revocations, digest) = self.ended_at(&own);
            let again = obeyed.obey(&self.vat, &revocations).await;
            self.has_ended(&own, obeyed.ended().into_iter().collect());
            let others = more.wait_for(|()| self.ended_at(&own).1 != digest);
            // The sender lives as long as this service.
            match again {
                None => drop(others.await),
                Some(again) => drop(tokio::time::timeout(again, others).await),
            }
        }
    }
}
