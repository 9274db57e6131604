//! A gRPC server whose one method does nothing but verify the macaroon that comes with each call:
//! what a service of today does that checks authority by itself.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use macaroon::{ByteString, Format, Macaroon, MacaroonKey, Verifier};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use self::generated::null_client::NullClient;
use self::generated::null_server::{Null, NullServer};
use super::{Process, until_listening};

#[allow(missing_docs, unreachable_pub, clippy::all, rust_2018_idioms)]
pub(super) mod generated {
    include!(concat!(env!("OUT_DIR"), "/distos.bench.Null.rs"));
}

/// The message of both ways.
pub type Empty = ();

/// The argument under which this binary is the server.
pub const COMMAND: &str = "grpc-peer";
const HEADER: &str = "authorization";
const SECRET: &[u8] = b"the key of the benchmark's macaroons";
/// What the token says, beside the time until which it holds.
const FACTS: [&str; 4] = ["tenant = red", "region = 7", "right = read", "bytes = 0..65536"];
const BEFORE: &str = "before = ";

fn token() -> Result<String, macaroon::MacaroonError> {
    let key = MacaroonKey::generate(SECRET);
    let mut macaroon = Macaroon::create(Some("distos-bench".to_owned()), &key, "null".into())?;
    FACTS.iter().for_each(|fact| macaroon.add_first_party_caveat((*fact).into()));
    macaroon.add_first_party_caveat(format!("{BEFORE}{}", u64::MAX).into());
    macaroon.serialize(Format::V2)
}

fn is_in_time(caveat: &ByteString) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |d| d.as_secs());
    let text = std::str::from_utf8(&caveat.0).unwrap_or_default();
    let until = text.strip_prefix(BEFORE).and_then(|until| until.parse::<u64>().ok());
    until.is_some_and(|until| now < until)
}

struct Guarded {
    key: MacaroonKey,
    verifier: Verifier,
}

impl Guarded {
    fn new() -> Guarded {
        let mut verifier = Verifier::default();
        FACTS.iter().for_each(|fact| verifier.satisfy_exact((*fact).into()));
        verifier.satisfy_general(is_in_time);
        Guarded { key: MacaroonKey::generate(SECRET), verifier }
    }

    fn admits(&self, token: &MetadataValue<Ascii>) -> bool {
        Macaroon::deserialize(token.as_bytes())
            .is_ok_and(|token| self.verifier.verify(&token, &self.key, Vec::new()).is_ok())
    }
}

#[tonic::async_trait]
impl Null for Guarded {
    async fn null(&self, request: Request<Empty>) -> Result<Response<Empty>, Status> {
        match request.metadata().get(HEADER) {
            Some(token) if self.admits(token) => Ok(Response::new(())),
            _ => Err(Status::unauthenticated("no valid macaroon")),
        }
    }
}

/// The server's process: one thread, like a vat.
pub fn main(socket: &Path) -> ExitCode {
    let serve = async {
        let incoming = UnixListenerStream::new(UnixListener::bind(socket)?);
        let served =
            Server::builder().serve_with_incoming(NullServer::new(Guarded::new()), incoming);
        served.await.map_err(std::io::Error::other)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(serve)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the gRPC peer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A client of a server in a process of its own.
pub struct Peer {
    client: NullClient<Channel>,
    token: MetadataValue<Ascii>,
    server: Process,
}

impl Peer {
    /// Starts the server at `socket` and connects to it.
    pub async fn start(socket: &Path) -> Result<Peer, Box<dyn std::error::Error>> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(COMMAND).arg(socket).stdin(Stdio::null());
        let mut server = Process(command.spawn()?);
        until_listening(socket, &mut server)?;
        let channel = Endpoint::try_from(format!("unix://{}", socket.display()))?.connect().await?;
        let token = token()?.parse()?;
        let mut peer = Peer { client: NullClient::new(channel), token, server };
        // A server that lets anybody in would be no peer.
        let unauthorised = peer.client.null(Request::new(())).await;
        match unauthorised {
            Err(status) if status.code() == tonic::Code::Unauthenticated => {}
            other => return Err(format!("a call without a macaroon got {other:?}").into()),
        }
        peer.call().await?;
        Ok(peer)
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.server.0.id()
    }

    /// One call.
    pub async fn call(&mut self) -> Result<(), Status> {
        let mut request = Request::new(());
        request.metadata_mut().insert(HEADER, self.token.clone());
        self.client.null(request).await.map(drop)
    }
}
