//! Compiles every interface in this folder; needs the `capnp` program (Debian: capnproto).

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut command = capnpc::CompilerCommand::new();
    for name in [
        "capability",
        "kernel",
        "memory",
        "scheduler",
        "executor",
        "attestation",
        "audit",
        "gpu",
        "node",
        "network",
        "secrets",
    ] {
        let file = format!("{name}.capnp");
        println!("cargo:rerun-if-changed={file}");
        command.file(file);
    }
    command.run().map_err(|e| {
        format!("cannot compile the schemas: {e}. Is `capnp` installed? (apt install capnproto)")
    })?;
    Ok(())
}
