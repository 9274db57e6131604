//! The Cap'n Proto interfaces of DistOS as generated code. The `.capnp` files beside this crate
//! are the documentation: authority, revocation and failure of every method stand there.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rust_2018_idioms)]

macro_rules! generated {
    ($($name:ident),*) => { $(
        pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
        }
    )* };
}

generated!(
    capability_capnp,
    kernel_capnp,
    memory_capnp,
    scheduler_capnp,
    executor_capnp,
    attestation_capnp,
    audit_capnp,
    gpu_capnp,
    node_capnp,
    network_capnp,
    secrets_capnp
);
