//! What a new vat finds when it starts: the manifest that its spawner wrote, and the descriptors
//! that the manifest names. This is everything the vat has (C3).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use distos_types::SecretPages;
use serde::{Deserialize, Serialize};

/// The descriptor at which a new process finds its manifest (a sealed memfd holding JSON).
pub const MANIFEST_FD: i32 = 3;

/// Everything that the kernel hands a new vat.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// The vat's name on this node.
    pub vat: String,
    /// The builtin program that it runs.
    pub program: String,
    /// The node's public key, 64 hexadecimal digits.
    pub node: String,
    /// The tenant that a template instance serves; 0 otherwise.
    pub tenant: u32,
    /// Plain settings from the image.
    pub params: BTreeMap<String, String>,
    /// The kinds of root object that this vat serves.
    pub serves: Vec<u16>,
    /// Where its own files are; the only path that it can open.
    pub data_dir: Option<PathBuf>,
    /// Stream socket to the kernel.
    pub kernel_fd: i32,
    /// Sequenced-packet socket over which the kernel passes new edges ([`EdgeEnd`] as JSON, the
    /// descriptor as `SCM_RIGHTS`).
    pub control_fd: i32,
    /// The capability table, read-only.
    pub table_fd: i32,
    /// This vat's guard page, writable.
    pub guard_fd: i32,
    /// A listening socket, if the image lets holders connect.
    pub listen_fd: Option<i32>,
    /// Edges that exist at start.
    pub edges: Vec<EdgeEnd>,
    /// Devices and other descriptors, by name (such as `tpm`).
    pub devices: BTreeMap<String, i32>,
}

/// One end of an edge of the image: a connected stream socket to another vat of this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EdgeEnd {
    /// The edge's name at its holder, such as `attestation`.
    pub name: String,
    /// The vat at the other end.
    pub peer: String,
    /// The descriptor. In a control message it is -1: the real one is attached.
    pub fd: i32,
    /// At the home end: what the holder may reach.
    pub grant: Option<EdgeGrant>,
}

/// What an edge grants, as the home vat learns it. `None` in [`EdgeEnd::grant`] marks the
/// holder's end.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct EdgeGrant {
    /// Slot index of the edge's capability.
    pub slot_index: u32,
    /// Its generation.
    pub slot_generation: u64,
    /// Lasting identity.
    pub cap_id: u64,
    /// Kind of the root object.
    pub kind: u16,
    /// Rights bits.
    pub rights: u64,
    /// The tenant that the holder works for; 0 for the node itself.
    pub tenant: u32,
}

/// Whether one protection is in force in this process, and how that was found out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Protection {
    /// `own uid`, `no_new_privs`, `seccomp`, `landlock`, `namespaces`, `rlimits`, `capabilities`, `no core dumps`,
    /// `keys locked`.
    pub name: String,
    /// Whether it was seen to hold.
    pub enforced: bool,
    /// What was seen, or why not.
    pub detail: String,
}

impl Protection {
    /// Name of [`Protection::keys_locked`].
    pub const KEYS_LOCKED: &str = "keys locked";
    /// Its detail where there is no key to protect.
    pub const NO_KEYS: &str = "holds no key; a page was locked in trial";

    /// Whether the secret keys of this process, as they stand, are locked in memory, kept out of
    /// core files and from children. A process without a key tries whether one would be.
    pub fn keys_locked() -> Protection {
        let SecretPages { held, exposed, why } = SecretPages::now();
        let found = match (held, exposed, why) {
            (0, ..) => SecretPages::trial().map(|()| Protection::NO_KEYS.to_owned()),
            (_, 0, _) => Ok(format!("{held} in pages of their own")),
            (.., why) => Err(format!("{exposed} of {held}: {}", why.unwrap_or_default())),
        };
        let enforced = found.is_ok();
        let detail = found.unwrap_or_else(|why| why);
        Protection { name: Protection::KEYS_LOCKED.to_owned(), enforced, detail }
    }
}

/// A vat that is about to start: its manifest, and what its sandbox turned out to enforce.
#[derive(Debug)]
pub struct Boot {
    /// What the kernel handed over.
    pub manifest: Manifest,
    /// What this process verified of its own sandbox.
    pub protections: Vec<Protection>,
    /// Every descriptor that the manifest names, by its number there.
    pub fds: BTreeMap<i32, OwnedFd>,
}
