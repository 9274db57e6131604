//! The targets. Each says what must hold for any bytes.

mod appraisal;
mod audit;
mod caps;
mod devices;
mod evidence;
mod identity;
mod image;
mod job;
mod journal;
mod logs;
mod membership;
mod noise;
mod ocsp;
mod plain;
mod region;
mod wasm;

use crate::Target;

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "chain", run: caps::chain, seeds: caps::chain_seeds, max_bytes: 5_000 },
    Target { name: "capfile", run: caps::file, seeds: caps::file_seeds, max_bytes: 70_000 },
    Target { name: "keyfile", run: caps::key, seeds: caps::key_seeds, max_bytes: 2_000 },
    Target { name: "fault", run: plain::fault, seeds: plain::fault_seeds, max_bytes: 4_000 },
    Target {
        name: "manifest",
        run: plain::manifest,
        seeds: plain::manifest_seeds,
        max_bytes: 8_000,
    },
    Target { name: "image", run: image::image, seeds: image::seeds, max_bytes: 16_000 },
    Target { name: "record", run: journal::record, seeds: journal::record_seeds, max_bytes: 4_000 },
    Target {
        name: "journal",
        run: journal::segment,
        seeds: journal::segment_seeds,
        max_bytes: 16_000,
    },
    Target { name: "auditlog", run: audit::log_target, seeds: audit::seeds, max_bytes: 16_000 },
    Target { name: "regionlog", run: region::log, seeds: region::seeds, max_bytes: 16_000 },
    Target { name: "evidence", run: evidence::quote, seeds: evidence::seeds, max_bytes: 2_000 },
    Target {
        name: "joining",
        run: evidence::joining,
        seeds: evidence::joining_seeds,
        max_bytes: 8_000,
    },
    Target { name: "live", run: evidence::live, seeds: evidence::live_seeds, max_bytes: 12_000 },
    Target {
        name: "eventlog",
        run: logs::eventlog,
        seeds: logs::eventlog_seeds,
        max_bytes: 16_000,
    },
    Target { name: "ima", run: logs::ima, seeds: logs::ima_seeds, max_bytes: 8_000 },
    Target {
        name: "device",
        run: devices::report_target,
        seeds: devices::report_seeds,
        max_bytes: 4_000,
    },
    Target { name: "snp", run: devices::snp_target, seeds: devices::snp_seeds, max_bytes: 1_200 },
    Target {
        name: "certificate",
        run: devices::certificate_target,
        seeds: devices::certificate_seeds,
        max_bytes: 3_000,
    },
    Target { name: "ocsp", run: ocsp::target, seeds: ocsp::seeds, max_bytes: 3_000 },
    Target {
        name: "reference",
        run: devices::manifest_target,
        seeds: devices::manifest_seeds,
        max_bytes: 3_000,
    },
    Target {
        name: "policy",
        run: appraisal::policy,
        seeds: appraisal::policy_seeds,
        max_bytes: 8_000,
    },
    Target { name: "ear", run: appraisal::ear, seeds: appraisal::ear_seeds, max_bytes: 8_000 },
    Target { name: "svid", run: identity::svid, seeds: identity::svid_seeds, max_bytes: 3_000 },
    Target {
        name: "renewal",
        run: identity::renewal,
        seeds: identity::renewal_seeds,
        max_bytes: 5_000,
    },
    Target {
        name: "statement",
        run: identity::statement,
        seeds: identity::statement_seeds,
        max_bytes: 1024,
    },
    Target {
        name: "bundle",
        run: identity::bundle,
        seeds: identity::bundle_seeds,
        max_bytes: 8_000,
    },
    Target { name: "token", run: identity::token, seeds: identity::token_seeds, max_bytes: 2_000 },
    Target { name: "noise", run: noise::noise, seeds: noise::seeds, max_bytes: 3_000 },
    Target {
        name: "configuration",
        run: membership::configuration,
        seeds: membership::configuration_seeds,
        max_bytes: 4_000,
    },
    Target { name: "vote", run: membership::vote, seeds: membership::vote_seeds, max_bytes: 600 },
    Target {
        name: "revocation",
        run: membership::revocation,
        seeds: membership::revocation_seeds,
        max_bytes: 2_600,
    },
    Target { name: "name", run: identity::name, seeds: identity::name_seeds, max_bytes: 400 },
    Target { name: "job", run: job::spec, seeds: job::seeds, max_bytes: 16_000 },
    Target { name: "order", run: job::order, seeds: job::order_seeds, max_bytes: 5_000 },
    Target { name: "wasm", run: wasm::module, seeds: wasm::seeds, max_bytes: 16_000 },
    Target { name: "rpc", run: crate::rpc::session, seeds: crate::rpc::seeds, max_bytes: 4_000 },
];

/// A seed under a name.
fn seed(name: &str, bytes: impl Into<Vec<u8>>) -> (String, Vec<u8>) {
    (name.to_owned(), bytes.into())
}
