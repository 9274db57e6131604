//! Jobs as tenants submit them.

use capnp::message::ReaderOptions;
use distos_abi::{Fault, NodeId, TenantId, VatName};
use distos_rpc::Gift;
use distos_scheduler::spec;
use distos_schemas::scheduler_capnp::job_spec;

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
}
