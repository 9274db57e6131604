//! Inviting a node by the TPM that it has (A1): challenges, and what comes back.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use distos_abi::{Fault, NodeId};
use distos_evidence::credential::{EPHEMERAL_BYTES, is_name_long};
use distos_evidence::enrolment::{Kind, MAX_PINNED, Makers};
use distos_evidence::evidence::Pcrs;
use distos_evidence::joining::{Admitted, Expected, MAX_REQUEST_BYTES, Randomness, Request, admit};
use distos_evidence::pki::{Certificate, Refusal};
use distos_evidence::published::Published;
use distos_rpc::fault_of;
use distos_schemas::network_capnp::{network, register};
use zeroize::Zeroizing;

use crate::server::NetworkService;

/// Challenges that are open at one time.
const MAX_OPEN: usize = 64;
/// How long one is open at most: a day, for people carry it.
const MAX_OPEN_S: u64 = 24 * 3600;
/// Registers that a TPM has.
const MAX_REGISTERS: u32 = 24;

/// Whether the image has nodes invited by their TPMs alone.
pub(crate) fn is_by_tpm(setting: Option<&str>) -> Result<bool, Fault> {
    match setting {
        None | Some("key") => Ok(false),
        Some("tpm") => Ok(true),
        Some(other) => Err(Fault::malformed(format!("joining is 'key' or 'tpm', not '{other}'"))),
    }
}

/// What nodes are to answer, each once. No I/O.
#[derive(Debug, Default)]
pub(crate) struct Challenges(BTreeMap<[u8; 32], (NodeId, u64)>);

impl Challenges {
    /// Opens one for a node.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if too many are open.
    pub(crate) fn open(
        &mut self,
        nonce: [u8; 32],
        node: NodeId,
        lifetime_s: u64,
        now_s: u64,
    ) -> Result<(), Fault> {
        self.0.retain(|_, (_, until_s)| now_s < *until_s);
        if self.0.len() >= MAX_OPEN {
            let soonest_s = self.0.values().map(|(_, until_s)| *until_s).min().unwrap_or(now_s);
            let wait_ms = soonest_s.saturating_sub(now_s).saturating_mul(1000);
            return Err(Fault::unavailable(wait_ms, format!("{MAX_OPEN} challenges are open")));
        }
        self.0.insert(nonce, (node, now_s.saturating_add(lifetime_s.min(MAX_OPEN_S))));
        Ok(())
    }

    /// For which node it was opened, if it is open.
    pub(crate) fn of(&self, nonce: &[u8; 32], now_s: u64) -> Option<NodeId> {
        self.0.get(nonce).filter(|(_, until_s)| now_s < *until_s).map(|(node, _)| *node)
    }

    /// It was answered: it is not open any more.
    pub(crate) fn close(&mut self, nonce: &[u8; 32]) {
        self.0.remove(nonce);
    }
}

/// What an operator asks for who invites a node by its TPM.
pub(crate) struct AskedAttested {
    pub(crate) request: Request,
    ek: Option<Vec<u8>>,
    makers: Makers,
    references: Pcrs,
    pub(crate) address: SocketAddr,
    pub(crate) lifetime_s: u64,
}

impl AskedAttested {
    pub(crate) fn read(
        params: network::invite_attested_params::Reader<'_>,
    ) -> Result<AskedAttested, Fault> {
        let faulty = |e: capnp::Error| fault_of(&e);
        let text = params.get_request().map_err(faulty)?;
        if text.len() > MAX_REQUEST_BYTES {
            return Err(Fault::malformed("a request to join is not so long"));
        }
        let request = Request::parse(text.to_str().map_err(|e| fault_of(&e.into()))?)?;
        let ek = match params.get_ek().map_err(faulty)? {
            [] => None,
            name if is_name_long(name.len()) => Some(name.to_vec()),
            _ => return Err(Fault::malformed("a TPM's name has 34 or 50 bytes")),
        };
        let mut makers = Makers::default();
        for (kind, list) in [
            (Kind::Hardware, params.get_hardware_makers().map_err(faulty)?),
            (Kind::Software, params.get_software_makers().map_err(faulty)?),
        ] {
            makers.pin(kind, each(list, "the makers' certificates", Certificate::from_der)?)?;
        }
        let has_others = makers.certificates(Kind::Hardware).next().is_some();
        if has_others && makers.is_empty() {
            return Err(Fault::malformed("the makers' certificates have no root among them"));
        }
        let revoked = params.get_revoked().map_err(faulty)?;
        for one in each(revoked, "what was revoked", Published::taken_back)? {
            makers.add_lists(one.crls)?;
            makers.add_responses(one.responses)?;
        }
        let address = params.get_address().map_err(faulty)?.to_str();
        let address = address.map_err(|e| fault_of(&e.into()))?.parse();
        let address =
            address.map_err(|_| Fault::malformed("an address is HOST:PORT, in numbers"))?;
        let list = params.get_references().map_err(faulty)?;
        if list.len() > MAX_REGISTERS {
            return Err(Fault::malformed("a TPM has not so many registers"));
        }
        let mut references = Pcrs::new();
        for one in list {
            let value = one.get_value().map_err(faulty)?.try_into();
            let value = value.map_err(|_| Fault::malformed("a register has 32 bytes"))?;
            references.insert(one.get_pcr(), value);
        }
        let lifetime_s = u64::from(params.get_lifetime_s());
        Ok(AskedAttested { request, ek, makers, references, address, lifetime_s })
    }
}

/// Reads each of a list that is no longer than what is pinned at most.
fn each<T>(
    list: capnp::data_list::Reader<'_>,
    what: &str,
    read: impl Fn(&[u8]) -> Result<T, Refusal>,
) -> Result<Vec<T>, Fault> {
    if list.len() as usize > MAX_PINNED {
        return Err(Fault::malformed(format!("{what} are more than {MAX_PINNED}")));
    }
    let read = |one: capnp::Result<&[u8]>| {
        read(one.map_err(|e| fault_of(&e))?)
            .map_err(|why| Fault::malformed(format!("{what}: {why}")))
    };
    list.iter().map(read).collect()
}

pub(crate) fn write_registers(
    registers: &Pcrs,
    mut list: capnp::struct_list::Builder<'_, register::Owned>,
) {
    for (index, (pcr, value)) in (0..).zip(registers) {
        let mut one = list.reborrow().get(index);
        one.set_pcr(*pcr);
        one.set_value(value);
    }
}

/// For one sealed invitation.
pub(crate) fn randomness() -> Result<Randomness, Fault> {
    let mut ephemeral = Zeroizing::new([0; EPHEMERAL_BYTES]);
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(&mut ephemeral[..]).map_err(Fault::internal)?;
    getrandom::fill(&mut secret[..]).map_err(Fault::internal)?;
    Randomness::new(ephemeral, secret)
        .ok_or_else(|| Fault::unavailable(0, "a random number was no key: try again"))
}

impl NetworkService {
    /// Whether a node has shown what is expected of it, with a challenge that is open. That closes it; what falls short
    /// does not, or anybody who sees a challenge could close it.
    pub(crate) fn admit(&self, asked: &AskedAttested) -> Result<Admitted, Fault> {
        let nonce = asked.request.nonce;
        let node = self.challenges.borrow().of(&nonce, self.now_s()).ok_or_else(|| {
            let why = "this answers no challenge that is open here: make another";
            Fault::Unauthenticated(why.into())
        })?;
        let expected = Expected {
            inviter: self.vat.node(),
            node,
            nonce,
            ek: asked.ek.clone(),
            makers: asked.makers.clone(),
            references: asked.references.clone(),
            at_s: self.now_s(),
        };
        let admitted = admit(&asked.request, &expected).inspect_err(|fault| {
            self.report(format!("node/{node} has not shown what was expected of it: {fault}"));
        })?;
        self.challenges.borrow_mut().close(&nonce);
        Ok(admitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId([1; 32]);

    #[test]
    fn a_challenge_is_good_for_its_node_and_time_until_it_is_answered() {
        let mut challenges = Challenges::default();
        challenges.open([1; 32], NODE, 10, 100).unwrap();
        assert_eq!(challenges.of(&[2; 32], 100), None);
        assert_eq!([109, 110].map(|now_s| challenges.of(&[1; 32], now_s)), [Some(NODE), None]);
        challenges.close(&[1; 32]);
        assert_eq!(challenges.of(&[1; 32], 109), None, "again");
        challenges.open([1; 32], NODE, u64::MAX, 100).unwrap();
        let end_s = 100 + MAX_OPEN_S;
        assert_eq!(
            [end_s - 1, end_s].map(|now_s| challenges.of(&[1; 32], now_s)),
            [Some(NODE), None]
        );
    }

    #[test]
    fn so_many_are_open_and_no_more_until_their_time_is_over() {
        let mut challenges = Challenges::default();
        for nonce in 0..MAX_OPEN as u8 {
            challenges.open([nonce; 32], NODE, 10, 100).unwrap();
        }
        let full = challenges.open([99; 32], NODE, 10, 105).unwrap_err();
        assert!(matches!(full, Fault::Unavailable { retry_after_ms: 5000, .. }), "{full}");
        challenges.open([99; 32], NODE, 10, 110).unwrap();
        assert_eq!(challenges.of(&[99; 32], 111), Some(NODE));
    }

    #[test]
    fn only_what_is_known_says_how_nodes_are_invited() {
        assert_eq!(
            [None, Some("key"), Some("tpm")].map(is_by_tpm),
            [Ok(false), Ok(false), Ok(true)]
        );
        assert!(is_by_tpm(Some("TPM")).is_err());
    }
}
