//! The SPIFFE Workload API, for programs that know nothing of DistOS: they get the identity of one of a tenant's
//! agents, SVID with key, tokens and the cluster's bundle, over gRPC on a Unix socket.
//!
//! Source: the SPIFFE Workload API and Workload Endpoint standards. A Workload API finds out who calls and gives
//! each what is its own. Here nobody is found out about: whoever was given the socket is the agent. It is made by
//! `distos workload`, a program of the tenant's, which holds the power to be that agent as any other capability (C3); one
//! socket is one agent.
//!
//! What this room does not do: get an identity or keep one fresh. Its caller says what there is ([`Standing`]) and
//! answers when a token is [`Asked`] for.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use distos_abi::Fault;
use distos_identity::{Bundle, SpiffeId, Token};
use distos_types::HolderSecret;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use crate::generated::spiffe_workload_a_p_i_server::{SpiffeWorkloadAPI, SpiffeWorkloadAPIServer};

#[allow(missing_docs, unreachable_pub, clippy::all, rust_2018_idioms)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/.SpiffeWorkloadAPI.rs"));
}
mod messages;

/// What every call carries, so that no web page can make one (Workload Endpoint, section 5).
const HEADER: &str = "workload.spiffe.io";
/// The longest request, in bytes: a token and some names.
const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Connections at one time; whoever comes then waits. And calls of one connection at one time.
const MAX_CONNECTIONS: usize = 64;
const MAX_CALLS: u32 = 64;
/// How long to wait after a fault of the system, such as too many open files.
const FAULT_WAIT: Duration = Duration::from_millis(100);
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// An Ed25519 key in PKCS#8, up to its 32 bytes (RFC 8410, section 7).
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// Who the programs at the socket are.
pub struct Shown {
    /// The agent.
    pub id: SpiffeId,
    /// Its SVID: its own certificate, then its issuer's, DER.
    pub chain: Vec<Vec<u8>>,
    /// The key of that.
    pub secret: Arc<HolderSecret>,
    /// The cluster's bundle.
    pub bundle: Bundle,
    /// Until when the SVID holds, in seconds since the Unix epoch: it is shown no longer than that.
    pub until_s: u64,
}

/// What there is to be had.
#[derive(Clone)]
pub enum Standing {
    /// This identity.
    Held(Arc<Shown>),
    /// Nothing now: it has run out, and could not be renewed yet.
    Away,
    /// Nothing any more, and why. Clients are told that it is not theirs, and then cease to use what they have.
    Ended(Fault),
}

/// Tells the time, in seconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A token that somebody at the socket wants.
pub struct Asked {
    /// For whom it is to be.
    pub audiences: Vec<String>,
    /// Takes it.
    pub answer: oneshot::Sender<Result<String, Fault>>,
}

/// Serves whoever connects, until `over` resolves. What there is may change at any time.
pub async fn serve(
    listener: UnixListener,
    standing: watch::Receiver<Standing>,
    asks: mpsc::Sender<Asked>,
    clock: Clock,
    over: impl Future<Output = ()>,
) -> io::Result<()> {
    let api = SpiffeWorkloadAPIServer::new(Api { standing, asks, clock })
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let (arrive, arrivals) = mpsc::channel(1);
    let served = Server::builder()
        .max_concurrent_streams(MAX_CALLS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .serve_with_incoming_shutdown(api, ReceiverStream::new(arrivals), over);
    tokio::select! {
        served = served => served.map_err(io::Error::other),
        () = take(&listener, &arrive) => Ok(()),
    }
}

/// Takes connections while there is room for more.
async fn take(listener: &UnixListener, arrive: &mpsc::Sender<io::Result<Seated>>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Nobody closes it.
    while let Ok(seat) = room.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                if arrive.send(Ok(Seated { stream, _seat: seat })).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(FAULT_WAIT).await;
            }
        }
    }
}

/// A connection, and its place among all.
struct Seated {
    stream: UnixStream,
    _seat: OwnedSemaphorePermit,
}

impl Connected for Seated {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Seated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Seated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

struct Api {
    standing: watch::Receiver<Standing>,
    asks: mpsc::Sender<Asked>,
    clock: Clock,
}

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Api {
    fn now(&self) -> Result<Arc<Shown>, Status> {
        held(&self.standing.borrow(), (self.clock)())
    }

    /// What is shown now, and then whatever is shown instead.
    fn updates<T: 'static>(
        &self,
        of: impl Fn(&Shown) -> T + Send + 'static,
    ) -> Response<Updates<T>> {
        let (standing, clock) = (WatchStream::new(self.standing.clone()), self.clock.clone());
        Response::new(Box::pin(
            standing.map(move |standing| held(&standing, clock()).map(|shown| of(&shown))),
        ))
    }
}

/// What may be shown at this time.
fn held(standing: &Standing, now_s: u64) -> Result<Arc<Shown>, Status> {
    match standing {
        Standing::Held(shown) if now_s <= shown.until_s => Ok(shown.clone()),
        Standing::Held(_) | Standing::Away => {
            Err(Status::unavailable("the identity has run out and could not be renewed yet"))
        }
        Standing::Ended(fault) => Err(Status::permission_denied(fault.to_string())),
    }
}

/// Who calls without that header may be a web page's work.
fn allowed<T>(request: Request<T>) -> Result<T, Status> {
    match request.metadata().get(HEADER) {
        Some(value) if value == "true" => Ok(request.into_inner()),
        _ => Err(Status::invalid_argument(format!("a call needs the header {HEADER}: true"))),
    }
}

fn status(fault: Fault) -> Status {
    let why = fault.to_string();
    match fault {
        Fault::Malformed(_) => Status::invalid_argument(why),
        Fault::Unavailable { .. } => Status::unavailable(why),
        Fault::Internal(_) => Status::internal(why),
        _ => Status::permission_denied(why),
    }
}

fn domain(bundle: &Bundle) -> String {
    bundle.cluster().authority()
}

fn roots(bundle: &Bundle) -> Vec<u8> {
    bundle.roots().flatten().copied().collect()
}

fn svid(shown: &Shown) -> messages::X509SvidResponse {
    // The library that writes it out does not erase it; the program at the other end has it in any case.
    let mut key = Zeroizing::new(Vec::with_capacity(PKCS8_ED25519.len() + 32));
    key.extend(PKCS8_ED25519);
    key.extend(shown.secret.seed());
    let svid = messages::X509Svid {
        spiffe_id: shown.id.to_string(),
        certificates: shown.chain.concat(),
        key: std::mem::take(&mut *key),
        bundle: roots(&shown.bundle),
    };
    messages::X509SvidResponse { svids: vec![svid] }
}

fn claims(token: &Token) -> Struct {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    // Seconds since 1970 are far from what a double cannot hold.
    let number = |number: u64| Value { kind: Some(Kind::NumberValue(number as f64)) };
    let audiences = token.audiences.iter().map(|one| text(one)).collect();
    let audiences = Value { kind: Some(Kind::ListValue(ListValue { values: audiences })) };
    let fields = [
        ("sub", text(&token.id.to_string())),
        ("aud", audiences),
        ("exp", number(token.validity.until_s)),
        ("iat", number(token.validity.from_s)),
    ];
    Struct { fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

#[tonic::async_trait]
impl SpiffeWorkloadAPI for Api {
    type FetchX509SVIDStream = Updates<messages::X509SvidResponse>;
    type FetchX509BundlesStream = Updates<messages::X509BundlesResponse>;
    type FetchJWTBundlesStream = Updates<messages::JwtBundlesResponse>;

    async fn fetch_x509_svid(
        &self,
        request: Request<messages::X509SvidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        allowed(request)?;
        Ok(self.updates(svid))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<messages::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        allowed(request)?;
        Ok(self.updates(|shown| messages::X509BundlesResponse {
            bundles: HashMap::from([(domain(&shown.bundle), roots(&shown.bundle))]),
        }))
    }

    async fn fetch_jwt_svid(
        &self,
        request: Request<messages::JwtSvidRequest>,
    ) -> Result<Response<messages::JwtSvidResponse>, Status> {
        let asked = allowed(request)?;
        let id = self.now()?.id.to_string();
        if !asked.spiffe_id.is_empty() && asked.spiffe_id != id {
            return Err(Status::permission_denied(format!("this socket is {id}'s")));
        }
        let (answer, told) = oneshot::channel();
        let asks = Asked { audiences: asked.audience, answer };
        let ended = || Status::unavailable("nobody answers: `distos workload` is about to end");
        self.asks.send(asks).await.map_err(|_| ended())?;
        let token = told.await.map_err(|_| ended())?.map_err(status)?;
        let svid = messages::JwtSvid { spiffe_id: id, svid: token };
        Ok(Response::new(messages::JwtSvidResponse { svids: vec![svid] }))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<messages::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        allowed(request)?;
        Ok(self.updates(|shown| messages::JwtBundlesResponse {
            bundles: HashMap::from([(domain(&shown.bundle), shown.bundle.to_jwks().into_bytes())]),
        }))
    }

    async fn validate_jwt_svid(
        &self,
        request: Request<messages::ValidateJwtSvidRequest>,
    ) -> Result<Response<messages::ValidateJwtSvidResponse>, Status> {
        let asked = allowed(request)?;
        let token =
            Token::verify(&asked.svid, &self.now()?.bundle, &asked.audience, (self.clock)());
        let token = token.map_err(|refusal| Status::invalid_argument(refusal.to_string()))?;
        let (spiffe_id, claims) = (token.id.to_string(), Some(claims(&token)));
        Ok(Response::new(messages::ValidateJwtSvidResponse { spiffe_id, claims }))
    }
}

#[cfg(test)]
mod tests {
    use distos_identity::{
        ClusterName, Home, Root, Serial, Subject, TenantName, TokenAuthority, TokenSecret, Validity,
    };
    use prost::Message;
    use tonic::Code;
    use tonic::client::Grpc;
    use tonic::codegen::http::uri::PathAndQuery;
    use tonic::transport::Endpoint;
    use tonic_prost::ProstCodec;

    use super::*;

    const NOW_S: u64 = 1_800_000_000;

    fn shown() -> (Shown, TokenSecret) {
        let (root, secret) = (HolderSecret::from_seed([1; 32]), HolderSecret::from_seed([2; 32]));
        let cluster = ClusterName::new("demo.example").unwrap();
        let validity = Validity { from_s: NOW_S - 60, until_s: NOW_S + 3600 };
        let root = Root::new(cluster.clone(), &root).certificate(validity, Serial([3; 16]));
        let tokens = TokenSecret::from_seed(&[4; 32]).unwrap();
        let authority = TokenAuthority { key: tokens.key(), home: Home::Offline };
        let bundle = Bundle::new(vec![root.unwrap()], 1).unwrap();
        let bundle = bundle.with_authority(authority).unwrap();
        let agent = Subject::Agent { tenant: TenantName::new("red").unwrap(), agent: secret.key() };
        let id = SpiffeId { cluster, subject: agent };
        let chain = vec![vec![5; 10], vec![6; 10]];
        let shown = Shown { id, chain, secret: Arc::new(secret), bundle, until_s: NOW_S + 60 };
        (shown, tokens)
    }

    /// A server at a socket of its own, and somebody who is connected to it.
    async fn served(
        standing: Standing,
        now_s: u64,
    ) -> (tempfile::TempDir, Grpc<tonic::transport::Channel>, mpsc::Receiver<Asked>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (shows, standing) = watch::channel(standing);
        let (asks, asked) = mpsc::channel(1);
        tokio::spawn(async move {
            let _shows = shows;
            serve(listener, standing, asks, Arc::new(move || now_s), std::future::pending()).await
        });
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display())).unwrap();
        (dir, Grpc::new(endpoint.connect().await.unwrap()), asked)
    }

    async fn call<Q, A>(
        client: &mut Grpc<tonic::transport::Channel>,
        method: &'static str,
        message: Q,
        header: bool,
    ) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        client.ready().await.unwrap();
        let mut request = Request::new(message);
        if header {
            request.metadata_mut().insert(HEADER, "true".parse().unwrap());
        }
        let codec: ProstCodec<Q, A> = ProstCodec::default();
        // The first of the answers, if there are several.
        let answers = client.server_streaming(request, PathAndQuery::from_static(method), codec);
        answers.await?.into_inner().message().await?.ok_or(Status::unknown("no answer"))
    }

    type Svid = Result<messages::X509SvidResponse, Status>;

    #[tokio::test]
    async fn who_calls_without_the_header_or_while_there_is_nothing_gets_nothing() {
        const SVID: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
        let held = || Standing::Held(Arc::new(shown().0));
        let (_dir, mut client, _asked) = served(held(), NOW_S).await;
        let refused: Svid = call(&mut client, SVID, messages::X509SvidRequest {}, false).await;
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
        let given: Svid = call(&mut client, SVID, messages::X509SvidRequest {}, true).await;
        let svid = given.unwrap().svids.remove(0);
        assert_eq!(svid.certificates, [[5; 10], [6; 10]].concat());
        assert_eq!(svid.key, [&PKCS8_ED25519[..], &[2; 32]].concat());

        for (standing, now_s, code) in [
            (Standing::Away, NOW_S, Code::Unavailable),
            (held(), NOW_S + 61, Code::Unavailable),
            (Standing::Ended(Fault::Revoked), NOW_S, Code::PermissionDenied),
        ] {
            let (_dir, mut client, _asked) = served(standing, now_s).await;
            let nothing: Svid = call(&mut client, SVID, messages::X509SvidRequest {}, true).await;
            assert_eq!(nothing.unwrap_err().code(), code);
        }
    }

    #[tokio::test]
    async fn there_is_a_most_of_connections_and_whoever_waits_is_served_in_turn() {
        let (dir, mut client, _asked) = served(Standing::Away, NOW_S).await;
        let socket = dir.path().join("api.sock");
        let mut others = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            others.push(UnixStream::connect(&socket).await.unwrap());
        }
        // One that was let in goes on, and one that was not is not answered before another leaves.
        let path = "/SpiffeWorkloadAPI/FetchX509SVID";
        let told: Svid = call(&mut client, path, messages::X509SvidRequest {}, true).await;
        assert_eq!(told.unwrap_err().code(), Code::Unavailable);
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display())).unwrap();
        let mut late = Grpc::new(endpoint.connect_lazy());
        let waits = async {
            let told: Svid = call(&mut late, path, messages::X509SvidRequest {}, true).await;
            told.unwrap_err().code()
        };
        tokio::pin!(waits);
        assert!(tokio::time::timeout(FAULT_WAIT, &mut waits).await.is_err());
        drop(others);
        assert_eq!(waits.await, Code::Unavailable);
    }

    #[tokio::test]
    async fn a_token_is_for_this_agent_and_what_is_wrong_with_one_is_told() {
        const TOKEN: &str = "/SpiffeWorkloadAPI/FetchJWTSVID";
        const CHECK: &str = "/SpiffeWorkloadAPI/ValidateJWTSVID";
        type Checked = Result<messages::ValidateJwtSvidResponse, Status>;
        let (shown, secret) = shown();
        let id = shown.id.clone();
        let validity = Validity { from_s: NOW_S, until_s: NOW_S + 60 };
        let token = Token { id: id.clone(), audiences: vec!["shop".into()], validity };
        let token = token.sign(&secret, Home::Offline).unwrap();
        let (_dir, mut client, mut asked) = served(Standing::Held(Arc::new(shown)), NOW_S).await;
        let made = token.clone();
        tokio::spawn(async move {
            let Asked { audiences, answer } = asked.recv().await.unwrap();
            assert_eq!(audiences, ["shop"]);
            answer.send(Ok(made)).unwrap();
            let Asked { answer, .. } = asked.recv().await.unwrap();
            answer.send(Err(Fault::Revoked)).unwrap();
        });
        let ask = |id: &str| messages::JwtSvidRequest {
            audience: vec!["shop".into()],
            spiffe_id: id.to_owned(),
        };
        type Made = Result<messages::JwtSvidResponse, Status>;
        let another: Made = call(&mut client, TOKEN, ask("spiffe://demo.example/x"), true).await;
        assert_eq!(another.unwrap_err().code(), Code::PermissionDenied);
        let given: Made = call(&mut client, TOKEN, ask(&id.to_string()), true).await;
        assert_eq!(given.unwrap().svids[0].svid, token);
        let refused: Made = call(&mut client, TOKEN, ask(""), true).await;
        assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);

        let check = |audience: &str| messages::ValidateJwtSvidRequest {
            audience: audience.to_owned(),
            svid: token.clone(),
        };
        let good: Checked = call(&mut client, CHECK, check("shop"), true).await;
        let good = good.unwrap();
        assert_eq!(good.spiffe_id, id.to_string());
        assert!(good.claims.unwrap().fields.contains_key("exp"));
        let bad: Checked = call(&mut client, CHECK, check("else"), true).await;
        assert_eq!(bad.unwrap_err().code(), Code::InvalidArgument);
    }
}
