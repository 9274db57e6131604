//! The other face of the binary: re-executed as `distos vat`, it is one service of a node.

use std::process::ExitCode;

use distos_abi::Fault;
use distos_erasing::Erasing;
use distos_rpc::boot::{Boot, Manifest};
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The hidden subcommand under which the kernel starts a service.
pub const COMMAND: &str = "vat";

/// The programs that an image can name.
pub const PROGRAMS: [&str; 9] = [
    "memory",
    "scheduler",
    "executor",
    "attestation",
    "audit",
    "gpu",
    "network",
    "secrets",
    "node",
];

/// The setting of an image that says what its vat logs besides warnings and errors.
pub const LOG: &str = "log";

/// Those through which secrets pass in the clear: what they free is erased. Messages and libraries free copies that nobody
/// else erases. An executor is one from its start, whether its jobs have secrets or not: it costs one pass over what is freed.
const HOLD_SECRETS: [&str; 3] = ["secrets", "attestation", "executor"];

/// Locks this process down and runs the program that its manifest names, for the process's whole
/// life. To be called first thing, by the only thread. `memory` is the process's allocator.
pub fn main(memory: &Erasing) -> ExitCode {
    let entered = distos_host::sandbox::enter();
    if let Ok(boot) = &entered
        && HOLD_SECRETS.contains(&boot.manifest.program.as_str())
    {
        memory.begin();
    }
    match entered.and_then(|boot| log(&boot.manifest).map(|()| boot)) {
        Ok(boot) => run(boot),
        Err(fault) => {
            #[allow(clippy::print_stderr)]
            {
                eprintln!(
                    "distos vat: {fault} (the kernel starts services; people start nodes with `distos up`)"
                );
            }
            ExitCode::from(fault.code())
        }
    }
}

/// What is logged with this setting: warnings and errors of everything, unless it gives another
/// level for all, and for the targets that it names what it says. `distos::trace=debug,distos_memory=info` are two.
///
/// # Errors
/// A part of it is no target, no level and no `TARGET=LEVEL`.
pub fn logged(setting: &str) -> Result<Targets, ParseError> {
    format!("warn,{setting}").trim_end_matches(',').parse()
}

/// Each event is one line and one write to standard error, which whoever started the node keeps:
/// what this process has said outlives it, however it ends.
fn log(manifest: &Manifest) -> Result<(), Fault> {
    let setting = manifest.params.get(LOG).map_or("", String::as_str);
    let logged = logged(setting).map_err(|e| Fault::malformed(format!("setting '{LOG}': {e}")))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines).with(logged).init();
    Ok(())
}

/// Runs the program that the manifest names until its kernel is gone, with whatever confinement
/// the calling process has.
pub fn run(boot: Boot) -> ExitCode {
    match boot.manifest.program.as_str() {
        "memory" => distos_memory::run(boot),
        "scheduler" => distos_scheduler::run(boot),
        "executor" => distos_executor::run(boot),
        "attestation" => distos_attestation::run(boot),
        "audit" => distos_audit::run(boot),
        "gpu" => distos_gpu::run(boot),
        "network" => distos_network::run(boot),
        "secrets" => distos_secrets::run(boot),
        "node" => crate::server::run(boot),
        other => {
            tracing::error!("there is no program '{other}'");
            ExitCode::from(distos_abi::Fault::not_found("program").code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn a_service_logs_warnings_and_what_its_image_asks_for() {
        let plain = logged("").unwrap();
        assert!(plain.would_enable("anything", &Level::WARN));
        assert!(!plain.would_enable("distos::trace::audit", &Level::INFO));
        let more = logged("distos::trace=debug,distos_audit=info").unwrap();
        assert!(more.would_enable("distos::trace::audit", &Level::DEBUG));
        assert!(!more.would_enable("distos_audit::store", &Level::DEBUG));
        assert!(more.would_enable("distos_rpc::vat", &Level::WARN), "warnings stay");
        assert!(logged("distos::trace=loud").is_err());
    }
}
