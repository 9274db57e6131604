//! The other face of the binary: re-executed as `distos vat`, it is one service of a node.

use std::process::ExitCode;

use distos_rpc::boot::Boot;

/// The hidden subcommand under which the kernel starts a service.
pub const COMMAND: &str = "vat";

/// The programs that an image can name.
pub const PROGRAMS: [&str; 7] =
    ["memory", "scheduler", "executor", "attestation", "audit", "gpu", "node"];

/// Locks this process down and runs the program that its manifest names, for the process's whole
/// life. To be called first thing, by the only thread.
pub fn main() -> ExitCode {
    match distos_host::sandbox::enter() {
        Ok(boot) => {
            let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false);
            log.with_max_level(tracing::Level::WARN).init();
            run(boot)
        }
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
        "node" => crate::server::run(boot),
        other => {
            tracing::error!("there is no program '{other}'");
            ExitCode::from(distos_abi::Fault::not_found("program").code())
        }
    }
}
