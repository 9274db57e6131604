//! Cap'n Proto RPC as its library gives it: no facet, no bounds, no checks. Buffered as DistOS's
//! own transport is, without which it is half as fast.

use std::rc::Rc;

use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, twoparty};
use futures::io::{BufReader, BufWriter};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use crate::null_capnp::bare;

const BUFFER_BYTES: usize = 64 * 1024;

/// Starts Cap'n Proto on a stream; the caller spawns what it gets.
pub fn start(
    stream: UnixStream,
    side: Side,
    bootstrap: Option<capnp::capability::Client>,
) -> RpcSystem<Side> {
    let (reader, writer) = stream.into_split();
    let network = twoparty::VatNetwork::new(
        BufReader::with_capacity(BUFFER_BYTES, reader.compat()),
        BufWriter::with_capacity(BUFFER_BYTES, writer.compat_write()),
        side,
        Default::default(),
    );
    RpcSystem::new(Box::new(network), bootstrap)
}

struct Server;

impl bare::Server for Server {
    async fn null(
        self: Rc<Self>,
        _: bare::NullParams,
        _: bare::NullResults,
    ) -> Result<(), capnp::Error> {
        Ok(())
    }
}

/// Serves whoever connects.
pub async fn serve(listener: UnixListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let server: bare::Client = capnp_rpc::new_client(Server);
        tokio::task::spawn_local(start(stream, Side::Server, Some(server.client)));
    }
}

/// Connects to [`serve`].
pub async fn connect(socket: &std::path::Path) -> std::io::Result<bare::Client> {
    let mut system = start(UnixStream::connect(socket).await?, Side::Client, None);
    let client = system.bootstrap(Side::Server);
    tokio::task::spawn_local(system);
    Ok(client)
}
