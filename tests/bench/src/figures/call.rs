//! What it costs that a call is authorised: an empty method of a live capability, beside the same
//! method on bare Cap'n Proto and beside a gRPC call that carries a macaroon.

use std::path::Path;

use distos_e2e::Node;

use super::{Failure, Outcome};
use crate::node::{self, Holder};
use crate::null_capnp::null;
use crate::peers::{bare, grpc};
use crate::processors::{self, Stay};
use crate::report::Figure;
use crate::sample::Pairs;
use crate::vats;

const WARM_UP: usize = 1_000;
/// Pairs in each boot.
const PAIRS: usize = 5_000;
/// Where the kernel of Linux puts a process, and what else its memory shares a cache with, is
/// settled at its start, and weighs as much as what is measured.
const BOOTS: usize = 5;

/// Both figures: the same capability on the same node.
pub(super) fn null(_: &Path) -> Outcome {
    let (mut bare, mut grpc) = (Boots::default(), Boots::default());
    for _ in 0..BOOTS {
        let (beside_bare, beside_grpc) = boot()?;
        bare.add(beside_bare);
        grpc.add(beside_grpc);
    }
    Ok(vec![
        bare.figure("authorised null call over a Unix socket, p50")
            .beside("the same bare capnp-rpc call, in the same sandbox")
            .at_most(1.05),
        grpc.figure("authorised null call over a Unix socket, p50, and gRPC")
            .beside("a tonic call that verifies a macaroon with 5 caveats")
            .at_most(1.0),
    ])
}

fn boot() -> Result<(Pairs, Pairs), Failure> {
    let node = node::boot(4096)?;
    for vat in [vats::NULL, vats::BARE] {
        processors::serve(node.pid_of(vat))?;
    }
    let _client = Stay::with_clients()?;
    pairs(&node)
}

fn pairs(node: &Node) -> Result<(Pairs, Pairs), Failure> {
    node::on_one_thread(async {
        let operator = Holder::operator(node)?;
        let (_connection, null) = operator.restore::<null::Client>("null").await?;
        let bare = bare::connect(&node::socket(node, vats::BARE)).await?;
        let mut grpc = grpc::Peer::start(&node.file("grpc.sock")).await?;
        processors::serve(grpc.pid())?;
        let ours = async || null.null_request().send().promise.await.map(drop);
        let same = async || bare.null_request().send().promise.await.map(drop);
        Pairs::take_async(WARM_UP, ours, same).await?;
        let beside_bare = Pairs::take_async(PAIRS, ours, same).await?;
        let ours = async || ours().await.map_err(Into::into);
        let mut call = async || grpc.call().await.map_err(Failure::from);
        Pairs::take_async(WARM_UP, ours, &mut call).await?;
        let beside_grpc = Pairs::take_async(PAIRS, ours, call).await?;
        Ok((beside_bare, beside_grpc))
    })
}

/// The pairs of all boots, and the ratio of each.
#[derive(Default)]
struct Boots {
    all: Pairs,
    ratios: Vec<f64>,
}

impl Boots {
    fn add(&mut self, pairs: Pairs) {
        let (ours, peer) = pairs.medians();
        self.ratios.push(ours / peer);
        self.all.ours.extend(pairs.ours);
        self.all.peer.extend(pairs.peer);
    }

    fn figure(&self, name: &str) -> Figure {
        let (ours, peer) = self.all.medians();
        let ratios: Vec<String> = self.ratios.iter().map(|ratio| format!("{ratio:.3}")).collect();
        Figure::of("call", name, ours, peer)
            .within(self.all.interval())
            .noting(format!("by boot: {}", ratios.join(" ")))
    }
}
