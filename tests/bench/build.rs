//! Generates what the benchmark's vats and its gRPC peer speak.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=null.capnp");
    capnpc::CompilerCommand::new()
        .file("null.capnp")
        .import_path("../../schemas")
        .crate_provides("distos_schemas", [0xd5c1_a7e0_b3f2_4601])
        .run()
        .map_err(|e| format!("cannot compile null.capnp: {e}"))?;

    // Written out instead of read from a .proto, so that no protocol compiler is needed.
    let null = tonic_build::manual::Method::builder()
        .name("null")
        .route_name("Null")
        .input_type("crate::peers::grpc::Empty")
        .output_type("crate::peers::grpc::Empty")
        .codec_path("tonic_prost::ProstCodec")
        .build();
    let service = tonic_build::manual::Service::builder()
        .name("Null")
        .package("distos.bench")
        .method(null)
        .build();
    tonic_build::manual::Builder::new().compile(&[service]);
    Ok(())
}
