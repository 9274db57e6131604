//! What it costs to call somebody on another machine: an authorised call over QUIC, beside gRPC over
//! mutual TLS. Both go over this machine's loopback.

use std::path::Path;

use tonic::Request;

use super::{Failure, Outcome};
use crate::node;
use crate::null_capnp::null;
use crate::peers::tls::Peer;
use crate::processors::{self, Stay};
use crate::remote::Remote;
use crate::report::Figure;
use crate::sample::Pairs;

const WARM_UP: usize = 500;
const PAIRS: usize = 5_000;
const CONNECTIONS: usize = 200;
/// Calls that are under way at one time, and rounds of so many.
const IN_FLIGHT: usize = 64;
const BURSTS: usize = 300;

pub(super) fn all(_: &Path) -> Outcome {
    let (ours, theirs) = (tempfile::tempdir()?, tempfile::tempdir()?);
    node::on_one_thread(measure(ours.path(), theirs.path()))
}

async fn measure(ours: &Path, theirs: &Path) -> Outcome {
    let (remote, peer) = (Remote::start(ours)?, Peer::start(theirs)?);
    processors::serve(remote.pid())?;
    processors::serve(peer.pid())?;
    let _client = Stay::with_clients()?;
    let (_connection, null) = remote.connect().await?;
    let client = peer.connect().await?;
    let call = async || -> Result<(), Failure> {
        null.null_request().send().promise.await.map(drop).map_err(Into::into)
    };
    let grpc = async || -> Result<(), Failure> {
        client.clone().null(Request::new(())).await.map(drop).map_err(Into::into)
    };
    Pairs::take_async(WARM_UP, call, grpc).await?;
    let single = Pairs::take_async(PAIRS, call, grpc).await?;
    let bursts = Pairs::take_async(
        BURSTS,
        async || together(|| null.null_request().send().promise).await,
        async || {
            together(|| {
                let mut client = client.clone();
                async move { client.null(Request::new(())).await }
            })
            .await
        },
    )
    .await?;
    let opened = Pairs::take_async(
        CONNECTIONS,
        async || {
            let (_connection, null) = remote.connect().await?;
            null.null_request().send().promise.await.map(drop).map_err(Failure::from)
        },
        async || {
            let mut client = peer.connect().await?;
            client.null(Request::new(())).await.map(drop).map_err(Failure::from)
        },
    )
    .await?;
    let handed = remote.handed().await?;
    processors::serve(handed.pid())?;
    let null_by = |null: &null::Client| {
        let sent = null.null_request().send().promise;
        async move { sent.await.map(drop).map_err(Failure::from) }
    };
    let direct = async || null_by(&handed.direct).await;
    Pairs::take_async(WARM_UP, direct, async || null_by(&handed.proxied).await).await?;
    let proxied = Pairs::take_async(PAIRS, direct, async || null_by(&handed.proxied).await).await?;
    let own = Pairs::take_async(PAIRS, direct, call).await?;
    let figure = |name: &str, pairs: &Pairs, of: usize| {
        let (ours, peer) = pairs.medians();
        let of = of as f64;
        Figure::of("remote", name, ours / of, peer / of).within(pairs.interval())
    };
    Ok(vec![
        figure("authorised null call over QUIC, p50", &single, 1)
            .beside("a tonic call over mutual TLS")
            .at_most(1.0),
        figure("authorised null calls over QUIC, 64 in flight, time of each", &bursts, IN_FLIGHT)
            .beside("tonic calls over mutual TLS, 64 in flight on one connection")
            .at_most(1.0),
        figure("new connection over QUIC, to the first authorised reply, p50", &opened, 1)
            .beside("tonic with mutual TLS and X25519 alone, to its first reply")
            .at_most(1.5)
            .noting("with the hybrid key exchange, a proof of possession, and the kernel's word"),
        figure("call after a handoff, p50", &proxied, 1)
            .beside("the same call by way of the giver")
            .at_most(0.6),
        figure("call after a handoff, as on an own connection, p50", &own, 1)
            .beside("the same call on a connection that the receiver opened itself")
            .noting("the same path: what is to be seen is that it is"),
    ])
}

/// As many calls at one time, all of them answered.
async fn together<F, T, E>(call: impl Fn() -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<T, E>>,
    Failure: From<E>,
{
    let calls: Vec<F> = (0..IN_FLIGHT).map(|_| call()).collect();
    futures::future::try_join_all(calls).await?;
    Ok(())
}
