//! Certificate chains: what the kernel granted, and how holders passed it on.
//!
//! Encoding, little-endian throughout. A chain is its version (1 byte, 1), the number of links
//! (1 byte, 1 to [`MAX_CHAIN_LINKS`]) and the links.
//!
//! | root link | bytes | delegation link | bytes |
//! |---|---|---|---|
//! | version (1) | 1 | version (1) | 1 |
//! | node | 32 | hash of the parent link | 32 |
//! | key epoch | 4 | delegatee's key | 32 |
//! | length of vat's name, name | 1 + n | authority | 48 |
//! | kind, object, cap id | 2 + 8 + 8 | nonce | 16 |
//! | holder's key | 32 | signature by the parent's holder | 64 |
//! | authority | 48 | | |
//! | nonce | 16 | | |
//! | signature by the kernel | 64 | | |
//!
//! An authority is rights (8), expiry (8), range start and end (8 + 8), byte quota (8), task
//! quota (4) and rate (4); the rights' last bit, which is no right's, says that it is end to end. Signatures cover a domain prefix and all of the link's earlier bytes.
//! A link's hash is BLAKE3 in key derivation mode, with the context [`LINK_HASH_CONTEXT`], of all
//! of its bytes including the signature.

use distos_abi::{
    Authority, CapId, Fault, HolderKey, Kind, LinkHash, MAX_CHAIN_LINKS, NodeId, ObjectId, VatName,
};

use crate::HolderSecret;
use crate::encoding::{Reader, authority_bytes};
use crate::key::verify_signature;

/// The longest encoding that is looked at.
const MAX_ENCODED_BYTES: usize = 4096;
const VERSION: u8 = 1;
const ROOT_DOMAIN: &[u8] = b"distos-root-v1";
const LINK_DOMAIN: &[u8] = b"distos-link-v1";
const LINK_HASH_CONTEXT: &str = "distos certificate link v1";

/// What a kernel certifies: this holder has this authority over this object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The node where the object lives.
    pub node: NodeId,
    /// Which of the kernel's keys signs, so that chains outlive a rotation.
    pub key_epoch: u32,
    /// The vat that serves the object.
    pub vat: VatName,
    /// The object's kind.
    pub kind: Kind,
    /// The object within its vat.
    pub object: ObjectId,
    /// The capability's lasting identity in the kernel's forest.
    pub cap: CapId,
    /// To whom it is granted.
    pub holder: HolderKey,
    /// What is granted.
    pub authority: Authority,
    /// Random bytes that make the certificate unique.
    pub nonce: [u8; 16],
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Delegation {
    parent: LinkHash,
    holder: HolderKey,
    authority: Authority,
    nonce: [u8; 16],
    signature: [u8; 64],
}

/// A sturdy capability: a root certificate and up to seven delegations.
///
/// A chain that was decoded proves nothing until [`Chain::verify`] accepts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    root: Root,
    signature: [u8; 64],
    delegations: Vec<Delegation>,
}

/// One link, as the kernel's forest and the audit log know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    /// Its name.
    pub hash: LinkHash,
    /// Who signed it: the node for the first link, otherwise the holder of the link before (C4).
    pub issuer: HolderKey,
    /// To whom it was given.
    pub holder: HolderKey,
    /// What it allows together with all the links before it (C1).
    pub authority: Authority,
}

impl Chain {
    /// A chain of one link, signed by the kernel's key.
    pub fn issue(mut root: Root, kernel: &HolderSecret) -> Chain {
        root.authority = normal(root.authority);
        let signature = kernel.sign(&[ROOT_DOMAIN, &root_body(&root)].concat());
        Chain { root, signature, delegations: Vec::new() }
    }

    /// The chain with one more link, by which `by`, its holder, passes `wanted` on to `to`. Needs
    /// no network; `nonce` is to be random.
    ///
    /// Fails with [`Fault::Unauthenticated`] if `by` is not the chain's holder, with
    /// [`Fault::Denied`] naming rights that the chain does not have (C1), and with
    /// [`Fault::TooDeep`] if the chain has [`MAX_CHAIN_LINKS`] links.
    pub fn delegate(
        &self,
        by: &HolderSecret,
        to: HolderKey,
        wanted: Authority,
        nonce: [u8; 16],
    ) -> Result<Chain, Fault> {
        if by.key() != self.holder() {
            return Err(Fault::Unauthenticated(format!(
                "the capability belongs to key {}, the secret given is of key {}",
                self.holder(),
                by.key()
            )));
        }
        if self.len() >= MAX_CHAIN_LINKS {
            return Err(Fault::TooDeep);
        }
        let mut link = Delegation {
            parent: self.last_hash(),
            holder: to,
            authority: self.authority().narrow(wanted)?,
            nonce,
            signature: [0; 64],
        };
        link.signature = by.sign(&[LINK_DOMAIN, &link.body()].concat());
        let mut chain = self.clone();
        chain.delegations.push(link);
        Ok(chain)
    }

    /// The chain's first `links` links: what a delegator on the way held. The whole chain if it
    /// has no more, and never less than its root.
    pub fn prefix(&self, links: usize) -> Chain {
        let mut chain = self.clone();
        chain.delegations.truncate(links.saturating_sub(1));
        chain
    }

    /// The chain's bytes, as [`Chain::decode`] reads them.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, self.len() as u8];
        out.extend(self.root_bytes());
        self.delegations.iter().for_each(|link| out.extend(link.bytes()));
        out
    }

    /// Reads a chain: at most 4 KiB, at most [`MAX_CHAIN_LINKS`] links, nothing left over; there
    /// is one encoding of each chain. [`Fault::Malformed`] says what is wrong. Checks no signature.
    pub fn decode(bytes: &[u8]) -> Result<Chain, Fault> {
        if bytes.len() > MAX_ENCODED_BYTES {
            return Err(Fault::malformed(format!(
                "a chain of {} bytes is longer than {MAX_ENCODED_BYTES}",
                bytes.len()
            )));
        }
        let mut reader = Reader::new(bytes);
        read_version(&mut reader)?;
        let links = usize::from(reader.u8("the number of links")?);
        if links == 0 || links > MAX_CHAIN_LINKS {
            return Err(Fault::malformed(format!(
                "a chain of {links} links; it has 1 to {MAX_CHAIN_LINKS}"
            )));
        }
        let root = read_root(&mut reader)?;
        let signature = reader.array("the root's signature")?;
        let delegations =
            (1..links).map(|_| read_delegation(&mut reader)).collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Chain { root, signature, delegations })
    }

    /// Checks every signature, that the links hang together, that rights never grow (C1), and
    /// that no link has expired at `now_ms` (Unix milliseconds). `kernel_key` gives the node's key
    /// of an epoch, or `None` if there was no such epoch.
    ///
    /// Fails with [`Fault::Unauthenticated`], [`Fault::Denied`] or [`Fault::Expired`]. It does not
    /// check that the root names this node and vat, nor that anybody holds the last key, nor
    /// revocation: that is for the home of the object.
    pub fn verify(
        &self,
        kernel_key: impl Fn(u32) -> Option<NodeId>,
        now_ms: u64,
    ) -> Result<(), Fault> {
        let epoch = self.root.key_epoch;
        let kernel = kernel_key(epoch).ok_or_else(|| {
            Fault::Unauthenticated(format!("this node never had a key of epoch {epoch}"))
        })?;
        let body = root_body(&self.root);
        signed_by(HolderKey(kernel.0), ROOT_DOMAIN, &body, &self.signature, 1)?;

        let mut parent = self.root_hash();
        let mut holder = self.root.holder;
        let mut authority = self.root.authority;
        for (link, number) in self.delegations.iter().zip(2..) {
            if link.parent != parent {
                return Err(Fault::Unauthenticated(format!(
                    "link {number} does not continue the link before it"
                )));
            }
            signed_by(holder, LINK_DOMAIN, &link.body(), &link.signature, number)?;
            authority = authority.narrow(link.authority)?;
            parent = link.hash();
            holder = link.holder;
        }
        let at_ms = authority.caveats.expires_ms;
        if now_ms >= at_ms {
            return Err(Fault::Expired { at_ms });
        }
        Ok(())
    }

    /// What the kernel certified.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Whose key must prove possession: the last link's holder.
    pub fn holder(&self) -> HolderKey {
        self.delegations.last().map_or(self.root.holder, |link| link.holder)
    }

    /// What the chain allows: the meet of all links (C1).
    pub fn authority(&self) -> Authority {
        self.delegations.iter().fold(self.root.authority, |all, link| meet(all, link.authority))
    }

    /// Each link, the root first.
    pub fn links(&self) -> Vec<LinkFacts> {
        let mut last = LinkFacts {
            hash: self.root_hash(),
            issuer: HolderKey(self.root.node.0),
            holder: self.root.holder,
            authority: self.root.authority,
        };
        let mut links = vec![last];
        for link in &self.delegations {
            last = LinkFacts {
                hash: link.hash(),
                issuer: last.holder,
                holder: link.holder,
                authority: meet(last.authority, link.authority),
            };
            links.push(last);
        }
        links
    }

    fn len(&self) -> usize {
        1 + self.delegations.len()
    }

    fn root_bytes(&self) -> Vec<u8> {
        [root_body(&self.root).as_slice(), &self.signature].concat()
    }

    fn root_hash(&self) -> LinkHash {
        hash(&self.root_bytes())
    }

    fn last_hash(&self) -> LinkHash {
        self.delegations.last().map_or_else(|| self.root_hash(), Delegation::hash)
    }
}

impl Delegation {
    /// All bytes before the signature.
    fn body(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.parent.0);
        out.extend(self.holder.0);
        out.extend(authority_bytes(self.authority));
        out.extend(self.nonce);
        out
    }

    fn bytes(&self) -> Vec<u8> {
        [self.body().as_slice(), &self.signature].concat()
    }

    fn hash(&self) -> LinkHash {
        hash(&self.bytes())
    }
}

/// All bytes of a root link before the signature.
fn root_body(root: &Root) -> Vec<u8> {
    let vat = root.vat.as_str().as_bytes();
    let mut out = vec![VERSION];
    out.extend(root.node.0);
    out.extend(root.key_epoch.to_le_bytes());
    out.push(vat.len() as u8);
    out.extend(vat);
    out.extend(root.kind.0.to_le_bytes());
    out.extend(root.object.0.to_le_bytes());
    out.extend(root.cap.0.to_le_bytes());
    out.extend(root.holder.0);
    out.extend(authority_bytes(root.authority));
    out.extend(root.nonce);
    out
}

fn read_root(reader: &mut Reader<'_>) -> Result<Root, Fault> {
    read_version(reader)?;
    Ok(Root {
        node: NodeId(reader.array("the node")?),
        key_epoch: reader.u32("the key epoch")?,
        vat: read_vat(reader)?,
        kind: Kind(reader.u16("the kind")?),
        object: ObjectId(reader.u64("the object")?),
        cap: CapId(reader.u64("the capability's id")?),
        holder: HolderKey(reader.array("the holder")?),
        authority: reader.authority()?,
        nonce: reader.array("the nonce")?,
    })
}

fn read_vat(reader: &mut Reader<'_>) -> Result<VatName, Fault> {
    let len = reader.u8("the vat's name")?;
    let name = reader.take(usize::from(len), "the vat's name")?;
    let name = std::str::from_utf8(name).map_err(|_| Fault::malformed("the vat's name"))?;
    VatName::new(name)
}

fn read_delegation(reader: &mut Reader<'_>) -> Result<Delegation, Fault> {
    read_version(reader)?;
    Ok(Delegation {
        parent: LinkHash(reader.array("a link's parent")?),
        holder: HolderKey(reader.array("a link's holder")?),
        authority: reader.authority()?,
        nonce: reader.array("a link's nonce")?,
        signature: reader.array("a link's signature")?,
    })
}

fn read_version(reader: &mut Reader<'_>) -> Result<(), Fault> {
    match reader.u8("the version")? {
        VERSION => Ok(()),
        other => Err(Fault::malformed(format!(
            "a capability chain of version {other}; this DistOS reads version {VERSION}"
        ))),
    }
}

fn signed_by(
    key: HolderKey,
    domain: &[u8],
    body: &[u8],
    signature: &[u8; 64],
    number: usize,
) -> Result<(), Fault> {
    verify_signature(key, &[domain, body].concat(), signature).map_err(|_| {
        Fault::Unauthenticated(format!("link {number} of the chain is not signed by key {key}"))
    })
}

fn hash(link: &[u8]) -> LinkHash {
    LinkHash(blake3::derive_key(LINK_HASH_CONTEXT, link))
}

/// What both allow.
fn meet(a: Authority, b: Authority) -> Authority {
    Authority { rights: a.rights.meet(b.rights), caveats: a.caveats.meet(b.caveats) }
}

/// The same authority, with an empty byte range in its one encodable form.
fn normal(authority: Authority) -> Authority {
    meet(authority, authority)
}
