//! The `distos` binary: the command line, and, re-executed, the kernel or one service of a node.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use distos_erasing::Erasing;

#[global_allocator]
static MEMORY: Erasing = Erasing::new();

fn main() -> ExitCode {
    // The two other faces come first: they must find the process as it was started, with one
    // thread and nothing opened.
    match std::env::args_os().nth(1).as_deref().and_then(|a| a.to_str()) {
        Some(distos_node::vat::COMMAND) => distos_node::vat::main(&MEMORY),
        Some(distos_node::cli::up::KERNEL_COMMAND) => distos_node::cli::up::kernel(),
        _ => distos_node::cli::main(std::env::var_os("DISTOS_NODE").map(Into::into)),
    }
}
