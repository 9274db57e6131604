//! Every path by which something can pass between two processes of a node, or between the node and the
//! outside, that an image allows (N1); with what says who is at the other end, and what keeps others from
//! reading along.
//!
//! The list follows from the plan field by field, as what the kernel hands to a process follows from it: a
//! field that is added to the plan does not compile here before somebody has said which path it makes. It
//! speaks of what the kernel hands out, and of what the programs of this binary do with it. Not on it: what a
//! processor's caches and a disk's timing tell; what offsets and flags of a descriptor tell that several vats
//! were given (the capability table, the kernel's standard error); what the vendor's library of a GPU does
//! inside its driver, and what a vat of that profile sees of others under `/proc`; the files of a vat's own
//! directory, which no other vat is given.

use distos_host::plan::{
    Device, EdgePlan, ForeignPlan, OperatorGrant, Plan, Power, Profile, Program, VatPlan,
};
use distos_types::kind;

/// The device and the edge by which a service of this binary is reached over the network.
const QUIC: &str = "quic";
const NETWORK: &str = "network";
/// Device nodes of TPMs.
const TPM: &str = "/dev/tpm";
/// The builtin programs that speak QUIC on it, and nothing else.
const SPEAK_QUIC: [&str; 9] = [
    "memory",
    "scheduler",
    "executor",
    "attestation",
    "audit",
    "gpu",
    "network",
    "secrets",
    "node",
];

/// One path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Whoever can begin to speak: a vat, a template's instances, `kernel`, or somebody outside.
    pub from: String,
    /// Whom it reaches.
    pub to: String,
    /// What it goes over.
    pub over: String,
    /// What says who is at the other end; `None` if nothing does.
    pub authenticated: Option<&'static str>,
    /// What keeps others from reading or changing what passes; `None` if nothing does.
    pub encrypted: Option<&'static str>,
}

impl Path {
    /// Why no image may have it.
    pub fn lacks(&self) -> Option<&'static str> {
        match (self.authenticated, self.encrypted) {
            (Some(_), Some(_)) => None,
            (None, Some(_)) => Some("nothing says who is at the other end"),
            (Some(_), None) => Some("others can read it"),
            (None, None) => Some("nothing says who is at the other end, and others can read it"),
        }
    }
}

/// The service that reads logs of the machine, and what it calls them.
const ATTESTATION: &str = "attestation";
const LOGS: [&str; 2] = ["boot-log", "measured-files"];

/// Whoever can send a datagram to the address, on this machine too.
const OUTSIDE: &str = "the network";
const HANDED: &str = "the kernel made both ends, and handed each to one process";
const INSIDE: &str = "it stays in this machine's memory";

/// A path between two processes that the kernel has connected.
fn handed(from: &str, to: &str, over: impl Into<String>) -> Path {
    Path {
        from: from.to_owned(),
        to: to.to_owned(),
        over: over.into(),
        authenticated: Some(HANDED),
        encrypted: Some(INSIDE),
    }
}

/// Every path that `plan` allows.
pub fn of(plan: &Plan) -> Vec<Path> {
    let Plan {
        vats,
        templates,
        foreign,
        edges,
        operator,
        // Names, sizes and keys: nothing passes over them.
        image: _,
        image_hash: _,
        image_signer: _,
        data_dir: _,
        slots: _,
        operator_key: _,
    } = plan;
    let mut paths =
        vec![handed("distos up", "kernel", "the plan in a sealed file, events by a pipe")];
    for vat in vats.iter().chain(templates) {
        of_vat(vat, &mut paths);
    }
    for vat in vats.iter().chain(templates) {
        of_devices(vat, plan, &mut paths);
    }
    for ForeignPlan { name, path: _, args: _, limits: _ } in foreign {
        // What it says goes into its own directory; its one other descriptor is a device of a vat.
        paths.push(handed("kernel", name, "its start: arguments and one socket"));
    }
    for EdgePlan { name, holder, home, kind: _, rights: _ } in edges {
        paths.push(handed(holder, home, format!("socket pair, edge '{name}'")));
    }
    for OperatorGrant { name: _, vat, kind: _, rights: _ } in operator {
        paths.push(Path { from: "operator".to_owned(), to: vat.clone(), ..door(vat) });
    }
    paths.sort_by(|a, b| (&a.to, &a.from, &a.over).cmp(&(&b.to, &b.from, &b.over)));
    paths.dedup();
    paths
}

fn door(vat: &str) -> Path {
    Path {
        from: "programs of this machine".to_owned(),
        to: vat.to_owned(),
        over: format!("Unix socket run/{vat}.sock"),
        authenticated: Some(
            "a signature with the holder's key, over a number that is used once (C4)",
        ),
        encrypted: Some(INSIDE),
    }
}

fn of_vat(vat: &VatPlan, paths: &mut Vec<Path>) {
    let VatPlan {
        name,
        listen,
        profile,
        powers,
        params: _,
        // Of these follows what it may do with what it has, and not what it has; or its own files; or a
        // path below.
        program: _,
        serves: _,
        data: _,
        limits: _,
        devices: _,
    } = vat;
    paths.push(handed("kernel", name, "socket pair, calls both ways"));
    paths.push(handed("kernel", name, "socket pair: new ends of edges"));
    paths.push(handed("kernel", name, "shared memory: the capability table, read-only"));
    paths.push(handed(name, "kernel", "shared memory: its guard page"));
    paths.push(handed(name, "kernel", "standard output and error"));
    if *listen {
        paths.push(door(name));
    }
    for power in powers {
        let over = match power {
            Power::Outbox => "socket pair: the power to read the journal".to_owned(),
            Power::Control => "socket pair: the operator's levers".to_owned(),
            Power::Spawn(template) => format!("socket pair: the power to start {template}"),
        };
        paths.push(handed(name, "kernel", over));
    }
    match profile {
        Profile::Service | Profile::Jit => {}
        Profile::Gpu => paths.push(Path {
            from: name.clone(),
            to: "the GPUs' driver".to_owned(),
            over: "device nodes of the vendor, by its library".to_owned(),
            authenticated: Some("Linux opens them for this vat alone among the node's"),
            encrypted: Some(INSIDE),
        }),
    }
}

/// Whether what a vat does with a UDP socket is QUIC with both sides authenticated, and nothing else.
fn speaks_quic(vat: &VatPlan, device: &str, plan: &Plan) -> bool {
    let Program::Builtin(program) = &vat.program else { return false };
    // Whom to let in is the network service's to say, and nobody else's.
    let builtin = Program::Builtin(NETWORK.to_owned());
    let is_network = |name: &str| plan.vats.iter().any(|v| v.name == name && v.program == builtin);
    let told = program == NETWORK
        || plan.edges.iter().any(|edge| {
            edge.holder == vat.name
                && edge.name == NETWORK
                && edge.kind == kind::CREDENTIALS.0
                && is_network(&edge.home)
        });
    device == QUIC && SPEAK_QUIC.contains(&program.as_str()) && told
}

/// Whether it is a log that the attestation service reads and holds against what the TPM has signed.
fn is_log(vat: &VatPlan, device: &str) -> bool {
    vat.program == Program::Builtin(ATTESTATION.to_owned()) && LOGS.contains(&device)
}

fn of_devices(vat: &VatPlan, plan: &Plan, paths: &mut Vec<Path>) {
    for (device, source) in &vat.devices {
        match source {
            Device::Path(at) if is_log(vat, device) => paths.push(Path {
                from: at.display().to_string(),
                to: vat.name.clone(),
                over: format!("file, as '{device}'"),
                authenticated: Some(
                    "it counts as far as the TPM's quote proves it, and no further",
                ),
                encrypted: Some("nothing in it is secret, and it stays in this machine"),
            }),
            Device::Path(at) => paths.push(Path {
                from: vat.name.clone(),
                to: at.display().to_string(),
                over: format!("device node, as '{device}'"),
                authenticated: Some("the kernel opened it by the name in the image"),
                // Of others it is not known where they lead.
                encrypted: at
                    .to_str()
                    .is_some_and(|at| at.starts_with(TPM))
                    .then_some("a TPM: it is part of this machine"),
            }),
            Device::Foreign(program) => {
                paths.push(handed(&vat.name, program, format!("socket pair, as '{device}'")));
            }
            Device::Udp(address) => {
                let known = speaks_quic(vat, device, plan);
                let path = |from: &str, to: &str| {
                    Path {
                    from: from.to_owned(),
                    to: to.to_owned(),
                    over: format!("UDP {address}"),
                    authenticated: known.then_some(
                        "certificates of the cluster and the list of peers, inside the handshake (N2)",
                    ),
                    encrypted: known.then_some("QUIC: TLS 1.3, X25519MLKEM768 first"),
                }
                };
                paths.push(path(OUTSIDE, &vat.name));
                paths.push(path(&vat.name, OUTSIDE));
            }
        }
    }
}

/// The paths of `plan`, if each has both.
///
/// # Errors
/// The lines of those that lack something, with what.
pub fn checked(plan: &Plan) -> Result<Vec<Path>, String> {
    let paths = of(plan);
    let lacking: Vec<String> = paths
        .iter()
        .filter_map(|path| {
            let why = path.lacks()?;
            Some(format!("{} → {} over {}: {why}", path.from, path.to, path.over))
        })
        .collect();
    if lacking.is_empty() {
        return Ok(paths);
    }
    let hint = "a device is a TPM; a UDP socket is for a service of DistOS, as its device 'quic', with an edge 'network' to the \
                network service";
    Err(format!("{}\n({hint})", lacking.join("\n")))
}

#[cfg(test)]
mod tests {
    use std::path::Path as File;

    use super::*;
    use crate::image::{Machine, parse};

    fn plan(text: &str) -> Plan {
        let machine = Machine {
            builtins: &crate::vat::PROGRAMS,
            executable: &|_| true,
            exists: &|path| path == File::new("/dev/null"),
        };
        parse(text, File::new("x.toml"), File::new("/d"), &machine).unwrap()
    }

    const CLUSTER: &str = include_str!("../../../images/cluster.toml");
    const SINGLE: &str = include_str!("../../../images/single.toml");

    #[test]
    fn whoever_takes_over_a_socket_of_the_images_gets_nothing_unprotected() {
        for text in [SINGLE, CLUSTER] {
            let plan = plan(text);
            let paths = checked(&plan).unwrap();
            for edge in &plan.edges {
                let found = |path: &&Path| path.from == edge.holder && path.to == edge.home;
                assert!(paths.iter().any(|path| found(&path)), "{edge:?}");
            }
        }
        let outside = |text| {
            let paths = checked(&plan(text)).unwrap();
            paths.iter().filter(|path| path.from == OUTSIDE).count()
        };
        assert_eq!((outside(SINGLE), outside(CLUSTER)), (0, 9));
    }

    #[test]
    fn a_socket_of_which_nobody_knows_what_is_spoken_there_is_refused() {
        let refused = |what: &str, with: &str| {
            assert_eq!(CLUSTER.matches(what).count(), 1, "{what}");
            let why = checked(&plan(&CLUSTER.replacen(what, with, 1))).unwrap_err();
            assert!(why.contains("nothing says who") && why.contains("memory"), "{why}");
        };
        // Nobody knows where that leads.
        let line = CLUSTER.replacen("/dev/tpmrm0", "/dev/null", 1);
        assert!(checked(&plan(&line)).unwrap_err().contains("others can read it"));
        // Another program; one that does not know the device; one that nobody tells whom to let in.
        refused("program = \"memory\"", "program = \"./memory\"");
        refused("devices = { quic = \"memory\" }", "devices = { udp = \"memory\" }");
        let other = "name = \"network\", of = \"attestation/attestation\"";
        refused(
            "name = \"network\", of = \"network/credentials\", rights = [\"read\"] },\n  { to = \"scheduler\"",
            &format!("{other}, rights = [\"read\"] }},\n  {{ to = \"scheduler\""),
        );
        refused(
            "{ to = \"memory\",      name = \"network\", of = \"network/credentials\", rights = [\"read\"] },",
            "",
        );
    }
}
