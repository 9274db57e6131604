//! What this node signs for others, as an issuer: SVIDs for services of other nodes, invitations, SVIDs and tokens for
//! tenants' agents. No I/O; time is an argument.

use distos_abi::{Fault, HolderKey, NodeId, ObjectId, VatName};
use distos_identity::{
    Bundle, Home, Issuer, MAX_SVID_LIFETIME_S, Peer, Serial, SpiffeId, Subject, TenantName, Token,
    TokenKey, TokenSecret, Validity, verify_proof,
};
use distos_types::HolderSecret;

use crate::life::Bound;

use super::{SERVICE, SKEW_S, State, check};

/// Tenants whose agents get SVIDs here.
const MAX_TENANTS: usize = 4096;
/// What separates their numbers from everything else that is made of a name.
const NUMBER: &str = "DistOS 2026-11-27 the object of a tenant's agents";

/// What a network service asks another node's for.
pub(crate) struct Request<'a> {
    pub(crate) node: NodeId,
    /// Who asks: the key of the SVID that the connection has shown, and which life of that node's network service.
    pub(crate) by: Bound,
    pub(crate) service: &'a str,
    pub(crate) key: HolderKey,
    pub(crate) proof: &'a [u8],
}

impl State {
    /// Makes this node an issuer for others, by the root's certificate for the issuer's key.
    pub(crate) fn certify(
        &mut self,
        certificate: Vec<u8>,
        secret: &HolderSecret,
        now_s: u64,
        serial: Serial,
    ) -> Result<(), Fault> {
        let issuer = Issuer::new(certificate.clone(), secret)?;
        if issuer.home() != Home::Node(self.node) {
            let home = issuer.home();
            return Err(Fault::malformed(format!(
                "this issuer's home is {home}, and this node is node/{}",
                self.node
            )));
        }
        // Whether the cluster's root stands behind it shows in what it signs.
        let node = NodeId(self.node.0.map(|byte| !byte));
        let id =
            SpiffeId { cluster: self.bundle()?.cluster().clone(), subject: Subject::Node(node) };
        let validity = Validity { from_s: now_s, until_s: now_s.saturating_add(1) };
        let chain = issuer.issue(&id, self.keys.0, validity, serial)?;
        check(self.bundle()?, &chain, &id, self.keys.0, now_s)?;
        self.issuer = Some(certificate);
        Ok(())
    }

    /// An SVID for a service of the node that asks, which the connection has authenticated, and the second in which it ends.
    /// Where evidence is demanded it holds no longer than that node's is fresh; [`Fault::StaleAttestation`] if it is not.
    pub(crate) fn sign(
        &self,
        secret: &HolderSecret,
        asks: &Request<'_>,
        lifetime_s: u64,
        now_s: u64,
        serial: Serial,
    ) -> Result<(Vec<Vec<u8>>, u64), Fault> {
        let certificate = self
            .issuer
            .clone()
            .ok_or_else(|| Fault::unavailable(60_000, "this node is no issuer: ask another one"))?;
        if self.place(asks.node, now_s).is_none() {
            return Err(Fault::Unauthenticated("this node is no peer any more".into()));
        }
        self.standings.may_vouch(self.node, now_s)?;
        let last_s = self.standings.last_s(asks.node, asks.service, asks.by, now_s)?;
        let service = VatName::new(asks.service)?;
        let subject = Subject::Service { node: asks.node, service };
        verify_proof(&subject, asks.key, asks.proof)?;
        let issuer = Issuer::new(certificate, secret)?;
        let id = SpiffeId { cluster: issuer.cluster().clone(), subject };
        let validity = validity(now_s, lifetime_s);
        let validity = Validity { until_s: validity.until_s.min(last_s), ..validity };
        let validity = self.since(asks.node, validity);
        Ok((issuer.issue(&id, asks.key, validity, serial)?, validity.until_s.saturating_add(1)))
    }

    /// The number of the object that stands for a tenant's agents, if they get SVIDs here.
    pub(crate) fn agents_of(&self, tenant: &TenantName) -> Option<ObjectId> {
        let number = number_of(tenant);
        (self.tenants.get(&number) == Some(tenant)).then_some(number)
    }

    /// Gives a tenant's agents SVIDs from now on.
    pub(crate) fn serve_agents_of(&mut self, tenant: &TenantName) -> Result<(), Fault> {
        let number = number_of(tenant);
        match self.tenants.get(&number) {
            Some(known) if known == tenant => {}
            Some(other) => {
                return Err(Fault::Exists(format!(
                    "{other} has the number that {tenant} would have"
                )));
            }
            None if self.tenants.len() >= MAX_TENANTS => {
                return Err(Fault::malformed(format!("{MAX_TENANTS} tenants are enough")));
            }
            None => drop(self.tenants.insert(number, tenant.clone())),
        }
        Ok(())
    }

    /// Whose agents an object stands for.
    pub(crate) fn tenant_of(&self, object: ObjectId) -> Result<&TenantName, Fault> {
        let tenant = self.tenants.get(&object);
        tenant.ok_or_else(|| Fault::not_found("nobody's agents have this number"))
    }

    fn agent(&self, object: ObjectId, agent: HolderKey) -> Result<SpiffeId, Fault> {
        let tenant = self.tenant_of(object)?.clone();
        let cluster = self.bundle()?.cluster().clone();
        Ok(SpiffeId { cluster, subject: Subject::Agent { tenant, agent } })
    }

    /// An SVID for one of a tenant's agents, which has shown that it has `key`.
    pub(crate) fn sign_agent(
        &self,
        secret: &HolderSecret,
        object: ObjectId,
        key: HolderKey,
        validity: Validity,
        serial: Serial,
    ) -> Result<(SpiffeId, Vec<Vec<u8>>), Fault> {
        let id = self.agent(object, key)?;
        let issuer = self.issuer_at(secret, validity.from_s)?;
        // An SVID never holds longer than who has signed it.
        let validity = Validity { until_s: validity.until_s.min(issuer.until_s()), ..validity };
        let chain = issuer.issue(&id, key, validity, serial)?;
        Ok((id, chain))
    }

    /// This node's issuer, if it may sign at that time.
    fn issuer_at<'a>(&self, secret: &'a HolderSecret, at_s: u64) -> Result<Issuer<'a>, Fault> {
        let certificate = self.issuer.clone().ok_or_else(|| {
            Fault::unavailable(60_000, "this node is no issuer: `distos network certify`")
        })?;
        self.standings.may_vouch(self.node, at_s)?;
        let issuer = Issuer::new(certificate, secret)?;
        if issuer.until_s() <= at_s.saturating_add(SKEW_S) {
            let why =
                "this node's certificate as an issuer has run out: have the root sign it again";
            return Err(Fault::unavailable(60_000, why));
        }
        Ok(issuer)
    }

    /// Whether others take tokens that are signed with this key.
    pub(crate) fn takes_tokens_of(&self, key: TokenKey) -> bool {
        let authorities = self.bundle.as_ref().map(Bundle::authorities).unwrap_or_default();
        authorities.iter().any(|one| one.key == key && one.home == Home::Node(self.node))
    }

    /// A token for one of a tenant's agents, which has shown that it has `key`.
    pub(crate) fn sign_token(
        &self,
        secret: &HolderSecret,
        object: ObjectId,
        key: HolderKey,
        audiences: Vec<String>,
        validity: Validity,
    ) -> Result<(Token, String), Fault> {
        let id = self.agent(object, key)?;
        // Whoever lets an issuer's certificate run out ends its tokens, too.
        let until_s = validity.until_s.min(self.issuer_at(secret, validity.from_s)?.until_s());
        let validity = Validity { until_s, ..validity };
        let secret = &TokenSecret::of_issuer(secret)?;
        if !self.takes_tokens_of(secret.key()) {
            let why = "the cluster's bundle does not name this node's key for tokens: \
                       `distos cluster tokens`, and `distos network join` with that bundle";
            return Err(Fault::unavailable(60_000, why));
        }
        let token = Token { id, audiences, validity };
        let signed = token.sign(secret, Home::Node(self.node))?;
        Ok((token, signed))
    }

    /// What another node needs to join: an SVID for its network service with `key`, and a place in the
    /// list that ends with it, unless the node has come by then. What was signed for it before counts no more.
    pub(crate) fn invite(
        &mut self,
        secret: &HolderSecret,
        node: NodeId,
        key: HolderKey,
        validity: Validity,
        serial: Serial,
    ) -> Result<Vec<Vec<u8>>, Fault> {
        let certificate = self.issuer.clone().ok_or_else(|| {
            Fault::unavailable(60_000, "this node is no issuer: `distos network certify`")
        })?;
        self.standings.may_vouch(self.node, validity.from_s)?;
        let peer = Peer::Node(node);
        let is_in = self.peers.contains_key(&peer) || self.members.standing(node).is_member;
        if is_in && !self.invited.contains_key(&peer) {
            return Err(Fault::Exists(format!("{peer} is a peer")));
        }
        let issuer = Issuer::new(certificate, secret)?;
        let subject = Subject::Service { node, service: VatName::new(SERVICE)? };
        let id = SpiffeId { cluster: issuer.cluster().clone(), subject };
        let validity = self.since(node, validity);
        let chain = issuer.issue(&id, key, validity, serial)?;
        self.add(peer.clone(), None)?;
        self.since.insert(peer.clone(), validity.from_s);
        self.invited.insert(peer, validity.until_s);
        Ok(chain)
    }

    /// What is signed for a node is no older than its being put out, and than its invitation.
    fn since(&self, node: NodeId, validity: Validity) -> Validity {
        let at_s = self.put_out.get(&node).copied().unwrap_or(0).max(self.since_s(node));
        // Voters choose it: one that lies beyond the end is good for nothing, and not for more.
        Validity { from_s: validity.from_s.max(at_s).min(validity.until_s), ..validity }
    }
}

/// From a little before now, for so long, and no longer than an SVID holds.
pub(crate) fn validity(now_s: u64, lifetime_s: u64) -> Validity {
    let from_s = now_s.saturating_sub(SKEW_S);
    let until_s = now_s.saturating_add(lifetime_s).min(from_s.saturating_add(MAX_SVID_LIFETIME_S));
    Validity { from_s, until_s }
}

/// The number of the object that stands for a tenant's agents. It follows from the name, so that a capability to it
/// never comes to stand for another tenant's, whatever becomes of this service's records.
fn number_of(tenant: &TenantName) -> ObjectId {
    let hash = blake3::derive_key(NUMBER, tenant.as_str().as_bytes());
    let mut number = [0; 8];
    number.copy_from_slice(&hash[..8]);
    // Below the numbers that a signed integer can hold, and never that of the root object.
    ObjectId((u64::from_le_bytes(number) >> 1).max(1))
}
