//! Jobs as tenants submit them, and orders to run them.

use capnp::message::ReaderOptions;
use distos_abi::{Authority, CapId, Fault, Kind, NodeId, ObjectId, TenantId, VatName};
use distos_rpc::Gift;
use distos_scheduler::orders::{Orders, Seen};
use distos_scheduler::{deploy, spec};
use distos_schemas::scheduler_capnp::job_spec;
use distos_types::{Chain, HolderSecret, Order, Root};

use super::seed;

pub(super) fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut message = capnp::message::Builder::new_default();
    let mut job = message.init_root::<job_spec::Builder<'_>>();
    job.set_name("count words");
    job.set_module(b"\0asm\x01\0\0\0");
    let vat = VatName::new("memory").expect("a vat's name");
    let here = Gift { ticket: vec![1; 32], node: None, vat };
    here.write(job.reborrow().init_input());
    Gift { node: Some(NodeId([2; 32])), ..here }.write(job.reborrow().init_output());
    job.set_input_bytes(1 << 24);
    job.set_pages_per_task(16);
    job.set_reduce(true);
    let mut args = job.reborrow().init_map_args(2);
    args.set(0, "map");
    args.set(1, "-v");
    let mut limits = job.init_limits();
    limits.set_fuel(1 << 30);
    limits.set_memory_bytes(1 << 24);
    let bytes = capnp::serialize::write_message_to_words(&message);
    vec![seed("job", bytes)]
}

/// A job is read within its bounds, or refused.
pub(super) fn spec(bytes: &[u8]) {
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(1 << 20)).nesting_limit(32);
    let Ok(message) = capnp::serialize::read_message(bytes, options) else { return };
    let Ok(job) = message.get_root::<job_spec::Reader<'_>>() else { return };
    match spec::read(job, TenantId(1), 2) {
        Ok(Ok(read)) => {
            assert!((1..=64).contains(&read.job.name.len()));
            assert!((1..=4096).contains(&read.job.cut.maps()));
            assert!(read.payload.module.len() <= spec::MAX_MODULE_BYTES);
            assert!(read.args.map.len() <= 64 && read.args.reduce.len() <= 64);
        }
        Ok(Err(fault)) => assert!(matches!(fault, Fault::Malformed(_)), "{fault}"),
        Err(_) => {}
    }
    // As an order brings it: all of the bytes are the job, which its signer has signed.
    if let Err(fault) = deploy::read_spec(bytes, TenantId(1), 2) {
        assert!(matches!(fault, Fault::Malformed(_)), "{fault}");
    }
}

const NOW_US: u64 = 1_800_000_000_000_000;
const JOB: &[u8] = b"a job";

fn ordered(links: u8) -> (Order, [u8; 64]) {
    let secret = |number: u8| HolderSecret::from_seed([number; 32]);
    let root = Root {
        node: NodeId(secret(9).key().0),
        key_epoch: 1,
        vat: VatName::new("scheduler").expect("a name"),
        kind: Kind(1),
        object: ObjectId::ROOT,
        cap: CapId(1),
        holder: secret(1).key(),
        authority: Authority::FULL,
        nonce: [0; 16],
    };
    let mut chain = Chain::issue(root, &secret(9));
    for by in 1..links {
        let link = chain.delegate(&secret(by), secret(by + 1).key(), Authority::FULL, [by; 16]);
        chain = link.expect("it holds it");
    }
    Order::sign(&chain, JOB, NOW_US, &secret(links)).expect("it holds it")
}

pub(super) fn order_seeds() -> Vec<(String, Vec<u8>)> {
    let seeds = [("own", 1), ("lent", 3), ("longest", 8)];
    let brought = |links| {
        let (order, signature) = ordered(links);
        [order.bytes(), &signature].concat()
    };
    seeds.map(|(name, links)| seed(name, brought(links))).into()
}

/// An order has one form, and none is taken but those that somebody has signed, each once.
pub(super) fn order(bytes: &[u8]) {
    let Some((order, signature)) = bytes.split_last_chunk::<64>() else { return };
    let Ok(read) = Order::decode(order) else { return };
    assert_eq!(read.bytes(), order);
    let root = read.chain().root();
    let to = (root.node, &root.vat);
    // Whoever made these bytes has signed none but the seeds.
    if read.verify(signature, to, JOB).is_ok() {
        assert!([1, 3, 8].iter().any(|links| ordered(*links).0.id() == read.id()));
    }
    assert!(read.verify(signature, to, b"another job").is_err());
    let (mut orders, red) = (Orders::default(), TenantId(1));
    if orders.check(red, read.id(), read.at_us(), NOW_US).is_ok() {
        orders.note(read.id(), Seen { tenant: red, at_us: read.at_us() }, NOW_US);
        assert!(orders.check(red, read.id(), read.at_us(), NOW_US).is_err());
    }
}
