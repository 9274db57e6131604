//! One node whose evidence this node's verifier asks for: this node itself, or a peer.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;

use distos_abi::{Fault, NodeId};
use distos_appraisal::{Appraised as Opinion, Device};
use distos_evidence::devices::Numbers;
use distos_rpc::record::Record;

use crate::state::{Bounds, Standing, State};
use crate::verifier::{Evidence, Kept};

/// The directory of what is kept of nodes.
const NODES: &str = "nodes";

/// What was found in the last answer that was examined.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) devices: BTreeMap<String, Device>,
    pub(crate) opinion: Opinion,
    /// By which policy, and against what: the SHA-256 of each maker's collateral.
    pub(crate) edition: Option<String>,
    pub(crate) digests: Vec<[u8; 32]>,
}

/// One node.
pub(crate) struct Watched {
    pub(crate) node: NodeId,
    pub(crate) state: RefCell<State<Evidence>>,
    pub(crate) kept: RefCell<Kept>,
    pub(crate) found: RefCell<Option<Found>>,
    record: Record,
    /// Whether something that matters is not on disk yet.
    unsaved: Cell<bool>,
    /// Held while it is asked.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// How many times it was begun to be asked.
    pub(crate) begun: Cell<u64>,
    /// What the last time came to.
    pub(crate) last: RefCell<Result<(), Fault>>,
    /// What was said last of its standing, and of its epoch.
    pub(crate) shown: Cell<(Standing, u64)>,
    /// Whether the node is watched no more: what it still answers is nobody's.
    pub(crate) ended: Cell<bool>,
}

impl Watched {
    /// Reads what is kept of the node in the service's directory.
    pub(crate) fn open(node: NodeId, bounds: Bounds, directory: &Path) -> Result<Watched, Fault> {
        const REMEDY: &str =
            "restore it from a backup, or remove it to have the node enrolled anew";
        let directory = directory.join(NODES);
        std::fs::create_dir_all(&directory).map_err(Fault::internal)?;
        let record = Record::new(directory.join(node.to_string()), "distos-attestation", REMEDY);
        let kept: Kept = record.load()?.unwrap_or_default();
        let state = State::new(node, bounds, kept.epoch)
            .ok_or_else(|| Fault::malformed("attestation: bounds that make no sense"))?;
        Ok(Watched {
            node,
            shown: Cell::new((Standing::Expired, kept.epoch)),
            state: RefCell::new(state),
            kept: RefCell::new(kept),
            found: RefCell::default(),
            record,
            unsaved: Cell::new(false),
            turn: tokio::sync::Mutex::new(()),
            begun: Cell::new(0),
            last: RefCell::new(Ok(())),
            ended: Cell::new(false),
        })
    }

    /// Keeps this from now on, durably where it matters: what the disk had no room for is tried again with the next. An epoch
    /// never goes back, whatever is to be kept.
    pub(crate) fn keep(&self, mut kept: Kept) -> Result<(), Fault> {
        kept.epoch = self.state.borrow().epoch().max(kept.epoch);
        let before = self.kept.replace(kept.clone());
        if kept.matters_after(&before) {
            self.unsaved.set(true);
        }
        if self.unsaved.get() {
            self.record.save(&kept)?;
            self.unsaved.set(false);
        }
        Ok(())
    }

    /// Of the node's devices it keeps these alone. Or what ended comes back from disk.
    pub(crate) fn keep_devices(&self, devices: Numbers) -> Result<(), Fault> {
        let mut kept = self.kept.borrow().clone();
        kept.set_devices(devices);
        self.keep(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or an epoch that began while the disk was full is gone with the next restart.
    #[test]
    fn what_could_not_be_kept_is_kept_with_the_next_answer() {
        let directory = tempfile::tempdir().unwrap();
        let bounds = Bounds { fresh_ms: 60_000, grace_ms: 0 };
        let node = NodeId([1; 32]);
        let watched = Watched::open(node, bounds, directory.path()).unwrap();
        watched.state.borrow_mut().raise(3);
        // A folder stands where the new file is written.
        let beside = directory.path().join(NODES).join(node.to_string()).with_extension("new");
        std::fs::create_dir(&beside).unwrap();
        assert!(watched.keep(Kept::default()).is_err());
        let known = || Watched::open(node, bounds, directory.path()).unwrap().kept.borrow().epoch;
        assert_eq!((watched.kept.borrow().epoch, known()), (3, 0), "it counts, and is not kept");
        std::fs::remove_dir(&beside).unwrap();
        watched.keep(Kept::default()).unwrap();
        assert_eq!(known(), 3);
    }

    /// Or a node that was put out, and is invited again, has a device that another one has shown since.
    #[test]
    fn a_device_that_a_node_has_no_more_does_not_come_back_from_disk() {
        let directory = tempfile::tempdir().unwrap();
        let bounds = Bounds { fresh_ms: 60_000, grace_ms: 0 };
        let node = NodeId([1; 32]);
        let open = || Watched::open(node, bounds, directory.path()).unwrap();
        let devices = || open().kept.borrow().devices().clone();
        let watched = open();
        watched.keep_devices(Numbers::from([[1; 8], [2; 8]])).unwrap();
        assert_eq!(devices(), Numbers::from([[1; 8], [2; 8]]));
        watched.keep_devices(Numbers::from([[2; 8]])).unwrap();
        assert_eq!(devices(), Numbers::from([[2; 8]]));
        watched.keep_devices(Numbers::new()).unwrap();
        assert_eq!(devices(), Numbers::new());
    }
}
