//! The figures, each in a module of its own. Adding one: write the module, then its line in
//! [`ALL`].

mod attack;
mod bulk;
mod call;
mod chain;
mod check;
mod evidence;
mod join;
mod lease;
mod page;
mod remote;
mod revoke;
mod secrets;
mod task;

use std::path::Path;

use crate::report::Figure;

/// Why a figure could not be measured.
pub type Failure = Box<dyn std::error::Error>;
/// What a measurement yields: one figure or several that one run gives.
pub type Outcome = Result<Vec<Figure>, Failure>;

/// One measurement.
pub struct Measurement {
    /// What `--only` calls it.
    pub name: &'static str,
    /// What it measures, for `--list`.
    pub about: &'static str,
    /// Runs it. The directory is for what it needs and leaves.
    pub run: fn(&Path) -> Outcome,
}

/// Every measurement, in the order in which they run.
pub const ALL: &[Measurement] = &[
    Measurement {
        name: "check-hot",
        about: "a check with its guard, beside sync::Weak::upgrade",
        run: check::hot,
    },
    Measurement {
        name: "check-cold",
        about: "a check out of a million, beside a pointer chase",
        run: check::cold,
    },
    Measurement {
        name: "call",
        about: "an authorised null call, beside bare Cap'n Proto and beside gRPC with a macaroon",
        run: call::null,
    },
    Measurement {
        name: "chain",
        about: "verifying a certificate chain, beside biscuit-auth; redeeming, beside fdatasync",
        run: chain::all,
    },
    Measurement {
        name: "evidence",
        about: "verifying a TPM's quote with its log, and a GPU's report, beside their signatures",
        run: evidence::all,
    },
    Measurement {
        name: "join",
        about: "one node's way from its TPM's start to its SVID, beside the bare quote",
        run: join::all,
    },
    Measurement {
        name: "page",
        about: "reading a page of a region, beside Redis",
        run: page::read,
    },
    Measurement {
        name: "task",
        about: "a WASM task from submission to result, beside runc",
        run: task::run,
    },
    Measurement {
        name: "remote",
        about: "an authorised call over QUIC, beside gRPC over mutual TLS",
        run: remote::all,
    },
    Measurement {
        name: "bulk",
        about: "many bytes of a region over QUIC, each page checked, beside bare quinn",
        run: bulk::all,
    },
    Measurement {
        name: "lease",
        about: "how long a lease at another node is used after its revocation, beside one of ten",
        run: lease::all,
    },
    Measurement {
        name: "attack",
        about: "a tenant at work while another attacks, beside itself while nobody does",
        run: attack::all,
    },
    Measurement {
        name: "revoke",
        about: "revoking a capability with a million descendants, beside one with a single one",
        run: revoke::all,
    },
    Measurement {
        name: "secrets",
        about: "ending a node's million leases at the secret broker, beside one with a single one",
        run: secrets::all,
    },
];
