//! Generates the server's side of the Workload API.

use tonic_build::manual::{Builder, Method, Service};

/// A method, what its messages are called in the specification, and whether its answers go on.
fn method(name: &str, route: &str, message: &str, streams: bool) -> Method {
    let method = Method::builder()
        .name(name)
        .route_name(route)
        .input_type(format!("crate::messages::{message}Request"))
        .output_type(format!("crate::messages::{message}Response"))
        .codec_path("tonic_prost::ProstCodec");
    if streams { method.server_streaming().build() } else { method.build() }
}

fn main() {
    // Written out instead of read from workload.proto, so that no protocol compiler is needed.
    let service = Service::builder()
        .name("SpiffeWorkloadAPI")
        .package("")
        .method(method("fetch_x509_svid", "FetchX509SVID", "X509Svid", true))
        .method(method("fetch_x509_bundles", "FetchX509Bundles", "X509Bundles", true))
        .method(method("fetch_jwt_svid", "FetchJWTSVID", "JwtSvid", false))
        .method(method("fetch_jwt_bundles", "FetchJWTBundles", "JwtBundles", true))
        .method(method("validate_jwt_svid", "ValidateJWTSVID", "ValidateJwtSvid", false))
        .build();
    Builder::new().build_client(false).compile(&[service]);
    println!("cargo:rerun-if-changed=build.rs");
}
