//! The plan: an image after every name in it has been resolved. The kernel starts exactly what it
//! says and grants exactly what it says; it never reads the image's text.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The name in which the kernel itself reports to the auditor: no vat may be called so.
pub const KERNEL_NAME: &str = "kernel";

/// What one boot starts, and who is given what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The image's name.
    pub image: String,
    /// BLAKE3 of the image file.
    pub image_hash: [u8; 32],
    /// The Ed25519 public key whose signature over the image was checked; `None` if the image was
    /// booted unsigned, at the operator's word.
    pub image_signer: Option<[u8; 32]>,
    /// The node's directory: `kernel/` (journal, key), `vats/NAME/` (each vat's own), `run/`
    /// (sockets). The rest of it is not the kernel's.
    pub data_dir: PathBuf,
    /// Capacity of the capability table, in slots.
    pub slots: u32,
    /// Vats in the order in which they start: a vat comes after every vat that it holds an edge to.
    pub vats: Vec<VatPlan>,
    /// Vats that are started on demand by a holder of [`Power::Spawn`].
    pub templates: Vec<VatPlan>,
    /// Foreign programs that stand behind a device (a software TPM).
    pub foreign: Vec<ForeignPlan>,
    /// Edges between vats. `holder` or `home` may name a template.
    pub edges: Vec<EdgePlan>,
    /// What the operator's capability file holds.
    pub operator: Vec<OperatorGrant>,
    /// The operator's public key, to which those grants are bound; `None` until whoever boots the
    /// image has named it.
    pub operator_key: Option<[u8; 32]>,
}

/// One vat.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VatPlan {
    /// Its name; an instance of a template is called `TEMPLATE/TENANT`.
    pub name: String,
    /// What to run.
    pub program: Program,
    /// The kinds of root object that it serves.
    pub serves: Vec<u16>,
    /// Whether holders may connect to it at `run/NAME.sock`.
    pub listen: bool,
    /// Whether it has a directory of its own.
    pub data: bool,
    /// Which system calls it may make.
    pub profile: Profile,
    /// Its resource limits.
    pub limits: VatLimits,
    /// Devices, by the name that the vat knows them by.
    pub devices: BTreeMap<String, Device>,
    /// Extra powers of the kernel.
    pub powers: Vec<Power>,
    /// Plain settings.
    pub params: BTreeMap<String, String>,
}

/// The code of a vat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// A service that is part of the `distos` binary.
    Builtin(String),
    /// Another executable that speaks the same start-up protocol.
    Path(PathBuf),
}

/// A family of system calls that a vat may make; everything else ends the call with `EPERM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profile {
    /// Files of its own, its sockets, memory, time. No program memory is ever made executable.
    Service,
    /// The same, and executable memory for compiled WASM.
    Jit,
    /// The same as `Service`, and loading a vendor's shared library and its device nodes (NVML).
    Gpu,
}

/// Resource limits of one vat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VatLimits {
    /// Address space or data segment, in bytes.
    pub memory_bytes: u64,
    /// Open descriptors.
    pub open_files: u64,
    /// Threads.
    pub threads: u64,
}

/// Where a device's descriptor comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Device {
    /// A device node that the kernel opens read-write.
    Path(PathBuf),
    /// One end of a socket pair whose other end a foreign program holds.
    Foreign(String),
    /// A UDP socket of the machine's own network, bound to this address. With it a vat can send to
    /// anybody.
    Udp(SocketAddr),
}

/// A program that knows nothing of DistOS and stands behind a device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForeignPlan {
    /// Its name in `status`.
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// Arguments; `{data}` and `{fd}` stand for its directory and its end of the socket pair.
    pub args: Vec<String>,
    /// Its resource limits.
    pub limits: VatLimits,
}

/// An edge: `holder` may call `home`'s root object of `kind`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgePlan {
    /// The name under which the holder finds it.
    pub name: String,
    /// Who holds it: a vat or a template.
    pub holder: String,
    /// Who serves it: a vat or a template.
    pub home: String,
    /// Kind of the root object.
    pub kind: u16,
    /// Rights bits.
    pub rights: u64,
}

/// A power of the kernel beyond what every vat has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    /// Pull the audit outbox.
    Outbox,
    /// Start instances of this template.
    Spawn(String),
    /// The operator's levers.
    Control,
}

/// One root capability in the operator's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorGrant {
    /// The entry's name in the capability file, such as `regions`.
    pub name: String,
    /// The home vat.
    pub vat: String,
    /// Kind of the root object.
    pub kind: u16,
    /// Rights bits.
    pub rights: u64,
}
