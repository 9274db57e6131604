//! What it costs that a call is authorised: an empty method of a live capability, beside the same
//! method on bare Cap'n Proto and beside a gRPC call that carries a macaroon.

use std::path::Path;

use super::Outcome;
use crate::node::{self, Holder};
use crate::null_capnp::null;
use crate::peers::{bare, grpc};
use crate::report::Figure;
use crate::sample::Pairs;
use crate::vats;

const WARM_UP: usize = 2_000;
const PAIRS: usize = 20_000;

/// Both figures: the same capability on the same node.
pub(super) fn null(_: &Path) -> Outcome {
    let node = node::boot(4096)?;
    node::on_one_thread(async {
        let operator = Holder::operator(&node)?;
        let (_connection, null) = operator.restore::<null::Client>("null").await?;
        let bare = bare::connect(&node::socket(&node, vats::BARE)).await?;
        let mut grpc = grpc::Peer::start(&node.file("grpc.sock")).await?;
        let ours = async || null.null_request().send().promise.await.map(drop);
        let same = async || bare.null_request().send().promise.await.map(drop);
        Pairs::take_async(WARM_UP, ours, same).await?;
        let beside_bare = Pairs::take_async(PAIRS, ours, same).await?;
        let ours = async || ours().await.map_err(Into::into);
        let mut call = async || grpc.call().await.map_err(super::Failure::from);
        Pairs::take_async(WARM_UP, ours, &mut call).await?;
        let beside_grpc = Pairs::take_async(PAIRS, ours, call).await?;
        let figure = |pairs: &Pairs, name: &str| {
            let (ours, peer) = pairs.medians();
            Figure::of("call", name, ours, peer).within(pairs.interval())
        };
        Ok(vec![
            figure(&beside_bare, "authorised null call over a Unix socket, p50")
                .beside("the same bare capnp-rpc call, in the same sandbox")
                .at_most(1.05),
            figure(&beside_grpc, "authorised null call over a Unix socket, p50, and gRPC")
                .beside("a tonic call that verifies a macaroon with 5 caveats")
                .at_most(1.0),
        ])
    })
}
