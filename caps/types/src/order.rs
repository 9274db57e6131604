//! Orders: what somebody signs who wants a job to go on without the connection over which it was asked for.
//!
//! An order names its recipient by the chain of the signer's capability to a queue, whose root names node and vat; when
//! it was made; and the job, by the hash of its bytes. So who carries it can change nothing of it and bring it nowhere
//! else, and the recipient does what it says for as long as the capability lives. It has its effect once (N3): whoever
//! takes orders refuses one that is not from now, and remembers the others by their ids.

use distos_abi::{Fault, NodeId, VatName};

use crate::HolderSecret;
use crate::chain::Chain;
use crate::key::verify_signature;

/// The longest order, in bytes, without its signature.
pub const MAX_ORDER_BYTES: usize = 4096 + HEAD_BYTES;
/// How far the clocks of whoever makes an order and whoever takes it may differ, in microseconds: five minutes.
pub const ORDER_DRIFT_US: u64 = 300_000_000;
/// What is signed begins with this, and so means nothing else.
const DOMAIN: &[u8] = b"distos order 1\0";
const ID_CONTEXT: &str = "distos order v1";
/// The time and the hash of the job.
const HEAD_BYTES: usize = 8 + 32;

/// By what an order is known: a hash of what was signed. The signature is no part of it, for of one order there may be
/// several signatures that are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(pub [u8; 32]);

impl std::fmt::Display for OrderId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// That the holder of a capability to a queue wants this job to run, whether or not its connection lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Up to the signer's own capability.
    chain: Chain,
    /// When it was made, in microseconds since the Unix epoch.
    at_us: u64,
    /// BLAKE3 of the job's bytes.
    job: [u8; 32],
    /// As it travels, without the signature.
    bytes: Vec<u8>,
    id: OrderId,
}

impl Order {
    /// An order for the job of these bytes, and the signature that goes with it. Two that are made at one time for the
    /// same bytes are one and the same.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] if `secret` is not the key of the chain's holder.
    pub fn sign(
        chain: &Chain,
        job: &[u8],
        at_us: u64,
        secret: &HolderSecret,
    ) -> Result<(Order, [u8; 64]), Fault> {
        if secret.key() != chain.holder() {
            return Err(Fault::Unauthenticated(format!(
                "the capability belongs to key {}, the secret given is of key {}",
                chain.holder(),
                secret.key()
            )));
        }
        let mut bytes = at_us.to_le_bytes().to_vec();
        bytes.extend(blake3::hash(job).as_bytes());
        bytes.extend(chain.encode());
        let signature = secret.sign(&[DOMAIN, &bytes].concat());
        Ok((Order::decode(&bytes)?, signature))
    }

    /// Reads what [`Order::bytes`] writes: when it was made (8 bytes, little-endian), the BLAKE3 hash of the job's bytes
    /// (32) and the chain. [`Fault::Malformed`] for anything else. Whether it is signed is for [`Order::verify`] to say.
    pub fn decode(bytes: &[u8]) -> Result<Order, Fault> {
        let broken = || Fault::malformed("this is no order");
        if bytes.len() > MAX_ORDER_BYTES {
            return Err(broken());
        }
        let (at, rest) = bytes.split_first_chunk::<8>().ok_or_else(broken)?;
        let (job, chain) = rest.split_first_chunk::<32>().ok_or_else(broken)?;
        Ok(Order {
            chain: Chain::decode(chain)?,
            at_us: u64::from_le_bytes(*at),
            job: *job,
            bytes: bytes.to_vec(),
            id: OrderId(blake3::derive_key(ID_CONTEXT, bytes)),
        })
    }

    /// Whether its holder has signed it, for this vat of this node and for a job of these bytes. Whether it is from now
    /// and was not seen before is for whoever remembers orders to say, and whether the chain holds for the kernel that
    /// redeems it.
    ///
    /// # Errors
    /// [`Fault::NotFound`] if another vat or node is to have it; [`Fault::Unauthenticated`] if the signature is not the
    /// holder's, or the job another.
    pub fn verify(
        &self,
        signature: &[u8],
        (node, vat): (NodeId, &VatName),
        job: &[u8],
    ) -> Result<(), Fault> {
        let root = self.chain.root();
        if root.node != node || root.vat != *vat {
            let to = format!("this order is for vat '{}' of node {}", root.vat, root.node);
            return Err(Fault::not_found(to));
        }
        verify_signature(self.chain.holder(), &[DOMAIN, &self.bytes].concat(), signature)?;
        if *blake3::hash(job).as_bytes() != self.job {
            return Err(Fault::Unauthenticated("this order is for a job of other bytes".into()));
        }
        Ok(())
    }

    /// By what right the job is to run: what whoever signed it holds.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// When it was made, in microseconds since the Unix epoch.
    pub fn at_us(&self) -> u64 {
        self.at_us
    }

    /// As it travels, beside its signature.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// By what it is remembered.
    pub fn id(&self) -> OrderId {
        self.id
    }
}

#[cfg(test)]
mod tests {
    use distos_abi::{Authority, CapId, Kind, ObjectId, Rights};
    use proptest::prelude::*;

    use super::*;
    use crate::Root;

    const NOW_US: u64 = 1_800_000_000_000_000;
    const JOB: &[u8] = b"count words";

    fn secret(seed: u8) -> HolderSecret {
        HolderSecret::from_seed([seed; 32])
    }

    fn node() -> NodeId {
        NodeId(secret(9).key().0)
    }

    fn vat(name: &str) -> VatName {
        VatName::new(name).unwrap()
    }

    /// From holder 1 to holder 2; the node is number 9.
    fn chain() -> Chain {
        let root = Root {
            node: node(),
            key_epoch: 1,
            vat: vat("scheduler"),
            kind: Kind(1),
            object: ObjectId(0),
            cap: CapId(1),
            holder: secret(1).key(),
            authority: Authority::FULL,
            nonce: [0; 16],
        };
        let weak = Authority { rights: Rights::RUN, ..Authority::FULL };
        let chain = Chain::issue(root, &secret(9));
        chain.delegate(&secret(1), secret(2).key(), weak, [1; 16]).unwrap()
    }

    fn order() -> (Order, [u8; 64]) {
        Order::sign(&chain(), JOB, NOW_US, &secret(2)).unwrap()
    }

    fn taken(order: &Order, signature: &[u8], job: &[u8]) -> bool {
        order.verify(signature, (node(), &vat("scheduler")), job).is_ok()
    }

    #[test]
    fn an_order_is_for_the_vat_that_its_chain_names_and_for_no_other() {
        let (order, signature) = order();
        assert!(taken(&order, &signature, JOB));
        assert_eq!((order.at_us(), order.chain()), (NOW_US, &chain()));
        let elsewhere = [(NodeId([7; 32]), "scheduler"), (node(), "memory")];
        for (node, name) in elsewhere {
            let refused = order.verify(&signature, (node, &vat(name)), JOB);
            assert!(matches!(refused, Err(Fault::NotFound(_))), "{name}");
        }
    }

    /// Or who carries it could have another job run, or the same once more.
    #[test]
    fn no_byte_of_an_order_its_signature_or_its_job_can_be_another() {
        let (order, signature) = order();
        for at in 0..order.bytes().len() {
            let mut changed = order.bytes().to_vec();
            changed[at] ^= 1;
            let read = Order::decode(&changed);
            assert!(!read.is_ok_and(|read| taken(&read, &signature, JOB)), "byte {at}");
        }
        for at in 0..signature.len() {
            let mut changed = signature;
            changed[at] ^= 1;
            assert!(!taken(&order, &changed, JOB), "byte {at} of the signature");
        }
        for at in 0..JOB.len() {
            let mut changed = JOB.to_vec();
            changed[at] ^= 1;
            assert!(!taken(&order, &signature, &changed), "byte {at} of the job");
        }
        assert!(!taken(&order, &signature[..63], JOB) && !taken(&order, &[], JOB));
        assert!(!taken(&order, &signature, b""));
    }

    #[test]
    fn nobody_but_the_last_holder_signs_one_and_not_for_another_purpose() {
        for seed in [1, 3] {
            let refused = Order::sign(&chain(), JOB, NOW_US, &secret(seed));
            assert!(matches!(refused, Err(Fault::Unauthenticated(_))), "{seed}");
        }
        let (order, _) = order();
        for wrong in
            [secret(1).sign(&[DOMAIN, order.bytes()].concat()), secret(2).sign(order.bytes())]
        {
            assert!(!taken(&order, &wrong, JOB));
        }
    }

    #[test]
    fn an_order_is_known_by_what_was_signed() {
        let (one, _) = order();
        assert_eq!(Order::decode(one.bytes()).unwrap().id(), one.id());
        let (later, _) = Order::sign(&chain(), JOB, NOW_US + 1, &secret(2)).unwrap();
        let (other, _) = Order::sign(&chain(), b"other", NOW_US, &secret(2)).unwrap();
        assert!(one.id() != later.id() && one.id() != other.id());
    }

    proptest! {
        #[test]
        fn whatever_bytes_arrive_are_read_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            signature in proptest::collection::vec(any::<u8>(), 0..70),
        ) {
            if let Ok(read) = Order::decode(&bytes) {
                prop_assert_eq!(read.bytes(), &bytes[..]);
                prop_assert!(!taken(&read, &signature, JOB));
            }
        }

        #[test]
        fn what_was_signed_is_read_as_it_was_and_taken(
            at_us in any::<u64>(),
            job in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let (order, signature) = Order::sign(&chain(), &job, at_us, &secret(2)).unwrap();
            prop_assert_eq!(&Order::decode(order.bytes()).unwrap(), &order);
            prop_assert!(taken(&order, &signature, &job));
        }
    }
}
