//! How fast many bytes come from another node: a region by a stream beside the calls, each page checked against its
//! hash by whoever reads, beside the same connection with nothing around its bytes. Both go over this machine's loopback.

use std::path::Path;

use super::Outcome;
use crate::bulk::{BUFFER, BUFFERS, Bare, Memory};
use crate::node;
use crate::processors::{self, Stay};
use crate::report::Figure;
use crate::sample::Pairs;

const MIB: u64 = 1 << 20;
const BYTES: u64 = (BUFFER * BUFFERS) as u64;
const WARM_UP: usize = 2;
const ROUNDS: usize = 25;

pub(super) fn all(_: &Path) -> Outcome {
    let (ours, theirs) = (tempfile::tempdir()?, tempfile::tempdir()?);
    node::on_one_thread(measure(ours.path(), theirs.path()))
}

async fn measure(ours: &Path, theirs: &Path) -> Outcome {
    let (memory, bare) = (Memory::start(ours).await?, Bare::start(theirs).await?);
    processors::serve(memory.pid())?;
    processors::serve(bare.pid())?;
    let _client = Stay::with_clients()?;
    let volatile = memory.region("volatile", BYTES, true).await?;
    let durable = memory.region("durable", BYTES, false).await?;
    let peer = async || bare.read(BUFFERS as u64).await;
    let streamed = async || memory.stream(&volatile, BYTES).await;
    Pairs::take_async(WARM_UP, streamed, peer).await?;
    let single = Pairs::take_async(ROUNDS, streamed, peer).await?;
    let kept = Pairs::take_async(ROUNDS, async || memory.stream(&durable, BYTES).await, peer);
    let kept = kept.await?;
    let calls = Pairs::take_async(ROUNDS, async || memory.call(&volatile, BYTES).await, peer);
    let calls = calls.await?;
    let figure = |name: &str, pairs: &Pairs| {
        let (ours, peer) = pairs.medians();
        let of = (BYTES / MIB) as f64;
        Figure::of("bulk", name, ours / of, peer / of)
            .within(pairs.interval())
            .beside("bare quinn, the same connection and buffers")
    };
    let speed = |pairs: &Pairs| {
        let (ours, peer) = pairs.medians();
        let mib_s = |ns: f64| (BYTES / MIB) as f64 / (ns / 1e9);
        format!("{:.0} and {:.0} MiB/s", mib_s(ours), mib_s(peer))
    };
    Ok(vec![
        figure("a MiB by a stream, each page checked, volatile region", &single)
            .at_most(1.25)
            .noting(speed(&single)),
        figure("a MiB by a stream, each page checked, durable region", &kept)
            .noting(format!("{}; each page is read from disk and decrypted", speed(&kept))),
        figure("a MiB in calls of 512 KiB, two at a time, volatile region", &calls)
            .noting(speed(&calls)),
    ])
}
