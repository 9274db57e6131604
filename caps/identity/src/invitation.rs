//! What a node that is to join a cluster is given: an SVID for its key, and where to go with it.

use std::net::SocketAddr;

use distos_abi::Fault;
use serde::{Deserialize, Serialize};

use crate::bundle::{Bundle, MAX_BUNDLE_BYTES};
use crate::pem::{MAX_PEM_BYTES, from_pem, to_pem};
use crate::trust::Peer;

/// The longest text of an invitation, in bytes: a bundle and an SVID, and JSON's marks in them.
pub const MAX_INVITATION_BYTES: usize = 2 * (MAX_BUNDLE_BYTES + MAX_PEM_BYTES);
const KIND: &str = "invitation";
const VERSION: u32 = 1;

/// An invitation. Nothing in it is secret: it is for whoever has the key that its SVID names. What says that
/// it was not changed on its way is the cluster's root, which the reader has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// Who invites.
    pub from: Peer,
    /// Where its network service is reached.
    pub address: SocketAddr,
    /// The cluster's bundle.
    pub bundle: Bundle,
    /// The SVID of whom it is for, DER: its own certificate, then its issuer's.
    pub chain: Vec<Vec<u8>>,
}

/// As JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    distos: String,
    version: u32,
    from: String,
    address: SocketAddr,
    /// As SPIFFE has it.
    bundle: String,
    /// PEM.
    svid: String,
}

impl Invitation {
    /// Reads an invitation. [`Fault::Malformed`] says what is wrong; whether anything in it is true is for
    /// [`Identity::verify`](crate::Identity::verify) to say.
    pub fn parse(text: &str) -> Result<Invitation, Fault> {
        if text.len() > MAX_INVITATION_BYTES {
            return Err(Fault::malformed("an invitation is not so long"));
        }
        let read: Text = serde_json::from_str(text)
            .map_err(|e| Fault::malformed(format!("this is no invitation: {e}")))?;
        if read.distos != KIND {
            return Err(Fault::malformed("this is no invitation"));
        }
        if read.version != VERSION {
            let why = format!("an invitation of version {}: use the newer program", read.version);
            return Err(Fault::malformed(why));
        }
        Ok(Invitation {
            from: read.from.parse()?,
            address: read.address,
            bundle: Bundle::parse(&read.bundle)?,
            chain: from_pem(&read.svid)?,
        })
    }

    /// The invitation as JSON. [`Fault::Malformed`] if its SVID is longer than one is.
    pub fn to_json(&self) -> Result<String, Fault> {
        let text = Text {
            distos: KIND.to_owned(),
            version: VERSION,
            from: self.from.to_string(),
            address: self.address,
            bundle: self.bundle.to_json(),
            svid: to_pem(&self.chain)?,
        };
        serde_json::to_string_pretty(&text).map_err(Fault::internal)
    }
}
