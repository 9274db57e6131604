//! Names: of clusters (SPIFFE trust domains), and of those who are known in them (SPIFFE ids).
//! Source: the SPIFFE-ID standard, section 2.

use std::fmt;
use std::str::FromStr;

use distos_abi::{Fault, HolderKey, NodeId, VatName};

use crate::did;

const SCHEME: &str = "spiffe://";

/// A cluster's name, which is its SPIFFE trust domain: 1 to 255 bytes of lower-case letters, digits,
/// `.`, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

impl ClusterName {
    /// Longest name, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Parses a name; [`Fault::Malformed`] if it breaks the rule above.
    pub fn new(name: &str) -> Result<ClusterName, Fault> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        if (1..=Self::MAX_BYTES).contains(&name.len()) && name.bytes().all(fits) {
            return Ok(ClusterName(name.to_owned()));
        }
        Err(Fault::malformed(format!(
            "'{}' is no cluster's name: 1 to 255 of a-z, 0-9, '.', '-' and '_'",
            clip(name)
        )))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the cluster itself, which its root and its issuers carry: it has no path.
    pub fn authority(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tenant's name: 1 to 20 bytes of lower-case letters, digits and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantName(String);

impl TenantName {
    /// Longest name, in bytes.
    pub const MAX_BYTES: usize = 20;

    /// Parses a name; [`Fault::Malformed`] if it breaks the rule above.
    pub fn new(name: &str) -> Result<TenantName, Fault> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if (1..=Self::MAX_BYTES).contains(&name.len()) && name.bytes().all(fits) {
            return Ok(TenantName(name.to_owned()));
        }
        let shown = clip(name);
        Err(Fault::malformed(format!("'{shown}' is no tenant's name: 1 to 20 of a-z, 0-9 and '-'")))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whom an id speaks of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A node: `node/<64 hexadecimal digits>`.
    Node(NodeId),
    /// A service of a node: `node/<n>/service/<name of its vat>`.
    Service {
        /// The node.
        node: NodeId,
        /// Its vat.
        service: VatName,
    },
    /// A tenant's program, or its user: `tenant/<name>/agent/<the key, as did:key has it>`.
    Agent {
        /// The tenant.
        tenant: TenantName,
        /// The key with which the agent holds capabilities.
        agent: HolderKey,
    },
}

impl Subject {
    /// The node that it is, or is part of.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Subject::Node(node) | Subject::Service { node, .. } => Some(*node),
            Subject::Agent { .. } => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Node(node) => write!(f, "node/{node}"),
            Subject::Service { node, service } => write!(f, "node/{node}/service/{service}"),
            Subject::Agent { tenant, agent } => {
                write!(f, "tenant/{tenant}/agent/{}", did::multibase(*agent))
            }
        }
    }
}

impl FromStr for Subject {
    type Err = Fault;

    /// Reads what `Display` writes, and nothing else.
    fn from_str(text: &str) -> Result<Subject, Fault> {
        let unknown = || {
            Fault::malformed(format!(
                "'{}' names nobody: node/N, node/N/service/S or tenant/T/agent/A",
                clip(text)
            ))
        };
        let (kind, rest) = text.split_once('/').ok_or_else(unknown)?;
        match (kind, rest.split_once('/')) {
            ("node", None) => Ok(Subject::Node(node(rest)?)),
            ("node", Some((of, service))) => {
                let service = service.strip_prefix("service/").ok_or_else(unknown)?;
                Ok(Subject::Service { node: node(of)?, service: VatName::new(service)? })
            }
            ("tenant", Some((tenant, agent))) => {
                let agent = agent.strip_prefix("agent/").ok_or_else(unknown)?;
                let tenant = TenantName::new(tenant)?;
                Ok(Subject::Agent { tenant, agent: did::parse_multibase(agent)? })
            }
            _ => Err(unknown()),
        }
    }
}

fn node(text: &str) -> Result<NodeId, Fault> {
    let wrong = || Fault::malformed(format!("'{}' is no node's number", clip(text)));
    let digits = text.as_bytes();
    let hex = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
    if digits.len() != 64 || !digits.iter().all(hex) {
        return Err(wrong());
    }
    let mut id = [0; 32];
    for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
    }
    Ok(NodeId(id))
}

/// Somebody in a cluster: `spiffe://<cluster>/<subject>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    /// The cluster.
    pub cluster: ClusterName,
    /// Whom it speaks of.
    pub subject: Subject,
}

impl SpiffeId {
    /// Longest id, in bytes (SPIFFE-ID, section 2.3).
    pub const MAX_BYTES: usize = 2048;
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.cluster, self.subject)
    }
}

impl FromStr for SpiffeId {
    type Err = Fault;

    /// Reads what `Display` writes, and nothing else: no other case, no percent-encoding, no port,
    /// query or fragment. [`Fault::Malformed`] says what is wrong.
    fn from_str(text: &str) -> Result<SpiffeId, Fault> {
        let rest = text.strip_prefix(SCHEME).filter(|_| text.len() <= Self::MAX_BYTES);
        let (cluster, subject) = rest.and_then(|rest| rest.split_once('/')).ok_or_else(|| {
            Fault::malformed(format!("'{}' is no id: spiffe://CLUSTER/…", clip(text)))
        })?;
        Ok(SpiffeId { cluster: ClusterName::new(cluster)?, subject: subject.parse()? })
    }
}

/// As much of a peer's text as a message repeats.
fn clip(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subject() -> impl Strategy<Value = Subject> {
        let node = any::<[u8; 32]>().prop_map(NodeId);
        let vat = "[a-z0-9-]{1,15}(/[a-z0-9-]{1,15})?".prop_map(|name| VatName::new(&name));
        let tenant = "[a-z0-9-]{1,20}".prop_map(|name| TenantName::new(&name));
        prop_oneof![
            node.prop_map(Subject::Node),
            (any::<[u8; 32]>(), vat).prop_map(|(node, service)| Subject::Service {
                node: NodeId(node),
                service: service.expect("a good name"),
            }),
            (tenant, any::<[u8; 32]>()).prop_map(|(tenant, key)| Subject::Agent {
                tenant: tenant.expect("a good name"),
                agent: HolderKey(key),
            }),
        ]
    }

    proptest! {
        #[test]
        fn an_id_reads_as_it_was_written(subject in subject()) {
            let id = SpiffeId { cluster: ClusterName::new("demo.example").unwrap(), subject };
            prop_assert_eq!(id.to_string().parse::<SpiffeId>().unwrap(), id);
        }
    }

    /// Files and executors are named after tenants.
    #[test]
    fn a_tenants_name_can_be_a_file_and_part_of_a_vats() {
        assert!(TenantName::new("red-2").is_ok());
        let longest = TenantName::new(&"x".repeat(TenantName::MAX_BYTES)).unwrap();
        assert!(VatName::new(&format!("executor/{longest}")).is_ok());
        for bad in ["", "Red", "../x", "a b", "é", &"x".repeat(21)] {
            assert_eq!(TenantName::new(bad).unwrap_err().code(), 16, "{bad}");
        }
    }

    /// Two ids that look different must not name the same: lists of who is trusted compare them.
    #[test]
    fn nobody_has_two_ids() {
        let node = "ab".repeat(32);
        let good = format!("spiffe://demo/node/{node}");
        assert!(good.parse::<SpiffeId>().is_ok());
        for bad in [
            format!("spiffe://demo/node/{}", node.to_uppercase()),
            format!("SPIFFE://demo/node/{node}"),
            format!("spiffe://Demo/node/{node}"),
            format!("spiffe://demo:1/node/{node}"),
            format!("spiffe://demo//node/{node}"),
            format!("spiffe://demo/node/{node}/"),
            format!("spiffe://demo/node/{node}?x"),
            format!("spiffe://demo/node/{node}#x"),
            format!("spiffe://demo/node/%61{}", &node[1..]),
            format!("spiffe://demo/node/{node}/service/../x"),
            format!("spiffe://demo/node/{node}/service/a/b/c"),
            format!("spiffe://demo/node/{node}/service"),
            "spiffe://demo".into(),
            "spiffe://demo/".into(),
            "spiffe:///node".into(),
            "spiffe://demo/tenant/red/agent/z".into(),
            "spiffe://demo/tenant/red".into(),
            format!("spiffe://{}/node/{node}", "x".repeat(256)),
        ] {
            let fault = bad.parse::<SpiffeId>().unwrap_err();
            assert_eq!(fault.code(), 16, "{bad}: {fault}");
        }
    }
}
