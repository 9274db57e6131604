//! A gRPC server over TCP and TLS 1.3, in which both sides show a certificate: how services on two
//! machines speak today. Keys are agreed on by X25519 alone, which is what this library does unasked.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{
    Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig,
};
use tonic::{Request, Response, Status};

use super::Process;
use super::grpc::Empty;
use super::grpc::generated::null_client::NullClient;
use super::grpc::generated::null_server::{Null, NullServer};
use crate::figures::Failure;

/// The argument under which this binary is the server.
pub const COMMAND: &str = "tls-peer";
const NAME: &str = "localhost";

struct Open;

#[tonic::async_trait]
impl Null for Open {
    async fn null(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        Ok(Response::new(()))
    }
}

fn read(dir: &Path, who: &str) -> std::io::Result<(Certificate, Identity)> {
    let certificate = std::fs::read(dir.join(format!("{who}.pem")))?;
    let key = std::fs::read(dir.join(format!("{who}.key")))?;
    Ok((Certificate::from_pem(&certificate), Identity::from_pem(&certificate, key)))
}

/// The server's process: one thread, like a vat. Says its port.
pub fn main(dir: &Path) -> ExitCode {
    let serve = async {
        let ((_, own), (client, _)) = (read(dir, "server")?, read(dir, "client")?);
        let tls = ServerTlsConfig::new().identity(own).client_ca_root(client);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        println!("{}", listener.local_addr()?.port());
        let server = Server::builder().tls_config(tls).map_err(std::io::Error::other)?;
        // Otherwise each side waits 40 ms for the other's acknowledgement.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let served = server.serve_with_incoming(NullServer::new(Open), incoming);
        served.await.map_err(std::io::Error::other)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(serve)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the TLS peer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Certificates of both sides, each its own root: Ed25519, as ours are.
fn certify(dir: &Path) -> Result<(), Failure> {
    for who in ["server", "client"] {
        let (key, certificate) = (format!("{who}.key"), format!("{who}.pem"));
        let name = format!("subjectAltName=DNS:{NAME}");
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2"])
            .args(["-subj", &format!("/CN={who}"), "-addext", &name])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", &key, "-out", &certificate])
            .current_dir(dir)
            .stderr(Stdio::piped())
            .output()?;
        if !made.status.success() {
            return Err(format!("openssl: {}", String::from_utf8_lossy(&made.stderr)).into());
        }
    }
    Ok(())
}

/// A server in a process of its own, and what its clients show.
pub struct Peer {
    endpoint: Endpoint,
    server: Process,
}

impl Peer {
    /// Makes certificates in `dir`, and starts the server.
    pub fn start(dir: &Path) -> Result<Peer, Failure> {
        certify(dir)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(COMMAND).arg(dir).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut server = Process(command.spawn()?);
        let port = first_line(&mut server)?;
        let ((_, own), (theirs, _)) = (read(dir, "client")?, read(dir, "server")?);
        let tls = ClientTlsConfig::new().ca_certificate(theirs).identity(own).domain_name(NAME);
        let endpoint = Endpoint::try_from(format!("https://127.0.0.1:{port}"))?
            .tcp_nodelay(true)
            .tls_config(tls)?;
        Ok(Peer { endpoint, server })
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.server.0.id()
    }

    /// A new connection.
    pub async fn connect(&self) -> Result<NullClient<Channel>, Failure> {
        Ok(NullClient::new(self.endpoint.connect().await?))
    }
}

/// What a server says once it listens.
pub fn first_line(server: &mut Process) -> Result<String, Failure> {
    let said = server.0.stdout.take().ok_or("a server without standard output")?;
    let mut line = String::new();
    BufReader::new(said).read_line(&mut line)?;
    match line.trim() {
        "" => Err("a server ended at its start".into()),
        line => Ok(line.to_owned()),
    }
}
