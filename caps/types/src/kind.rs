//! The kinds of object that DistOS serves. The kernel treats a kind as an opaque number; this is
//! the list that services, images and clients share.

use distos_abi::Kind;

/// A tenant's place to make regions (root object of the memory service).
pub const REGIONS: Kind = Kind(1);
/// One region.
pub const REGION: Kind = Kind(2);
/// A tenant's place to run programs (root object of the scheduler).
pub const QUEUE: Kind = Kind(3);
/// One job.
pub const JOB: Kind = Kind(4);
/// A tenant's executor (root object of an executor).
pub const EXECUTOR: Kind = Kind(5);
/// Evidence about the node (root object of the attestation service).
pub const ATTESTATION: Kind = Kind(6);
/// The audit log (root object of the audit service).
pub const LOG: Kind = Kind(7);
/// The node's GPUs (root object of the GPU service).
pub const GPUS: Kind = Kind(8);
/// A lease on one GPU.
pub const LEASE: Kind = Kind(9);
/// The node itself (root object of the node service).
pub const NODE: Kind = Kind(10);
/// Whom the node lets in over the network (root object of the network service, for the operator).
pub const NETWORK: Kind = Kind(11);
/// What a service needs to be reached over the network (root object of the network service, for services).
pub const CREDENTIALS: Kind = Kind(12);
/// The power to be one of a tenant's agents.
pub const AGENTS: Kind = Kind(13);
/// A tenant's place to keep secrets (root object of the secret broker).
pub const SECRETS: Kind = Kind(14);
/// One secret.
pub const SECRET: Kind = Kind(15);

const NAMES: [(Kind, &str); 15] = [
    (REGIONS, "regions"),
    (REGION, "region"),
    (QUEUE, "queue"),
    (JOB, "job"),
    (EXECUTOR, "executor"),
    (ATTESTATION, "attestation"),
    (LOG, "log"),
    (GPUS, "gpus"),
    (LEASE, "lease"),
    (NODE, "node"),
    (NETWORK, "network"),
    (CREDENTIALS, "credentials"),
    (AGENTS, "agents"),
    (SECRETS, "secrets"),
    (SECRET, "secret"),
];

/// The kind's name in images, capability files and `describe`; `unknown` if it has none.
pub fn name(kind: Kind) -> &'static str {
    NAMES.iter().find(|(k, _)| *k == kind).map_or("unknown", |(_, name)| name)
}

/// The kind that has this name.
pub fn parse(name: &str) -> Option<Kind> {
    NAMES.iter().find(|(_, n)| *n == name).map(|(kind, _)| *kind)
}
