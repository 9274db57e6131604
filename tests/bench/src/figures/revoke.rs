//! Revoking at scale, at a real kernel: what it takes must not depend on how much hung below, and
//! taking the dead slots back must not keep others waiting.

use std::path::Path;

use distos_client::fault_of;
use distos_schemas::node_capnp;

use super::{Failure, Outcome};
use crate::node::{self, Holder};
use crate::null_capnp::tree;
use crate::report::{Figure, time};
use crate::sample::quantile;

const MANY: u32 = 1_000_000;
/// Room for the many, for those that are being taken back, and for what is minted.
const SLOTS: u32 = 1_200_000;
/// How often the many are revoked. Deriving them takes most of the time.
const ROUNDS: usize = 5;
/// How often one is, in each round.
const SINGLES: usize = 40;
/// Capabilities minted in one call.
const BATCH: u32 = 50;
const IDLE_MINTS: usize = 1_000;

#[derive(Default)]
struct Samples {
    durable: Vec<u64>,
    refused: Vec<u64>,
}

impl Samples {
    /// Command to durable, quiescent and first refusal.
    fn all(&self) -> Vec<u64> {
        self.durable
            .iter()
            .zip(&self.refused)
            .map(|(durable, refused)| *durable.max(refused))
            .collect()
    }
}

pub(super) fn all(_: &Path) -> Outcome {
    let mut node = node::boot(SLOTS)?;
    let figures = node::on_one_thread(async {
        let operator = Holder::operator(&node)?;
        let (_connection, tree) = operator.restore::<tree::Client>("tree").await?;
        let (_control, control) = operator.restore::<node_capnp::node::Client>("node").await?;
        let (mut one, mut many) = (Samples::default(), Samples::default());
        let (mut idle, mut busy) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            for _ in 0..SINGLES {
                cut(&tree, 1, &mut one).await?;
            }
            let before = idle.len();
            while idle.len() < before + IDLE_MINTS {
                idle.extend(mint(&tree).await?);
            }
            let used = slots_used(&control).await?;
            let started = std::time::Instant::now();
            grow(&tree, MANY).await?;
            println!("round {round} of {ROUNDS}: {MANY} derived in {:?}", started.elapsed());
            settle(&tree).await?;
            fell(&tree, MANY, &mut many).await?;
            let started = std::time::Instant::now();
            // What is minted takes slots too, so that the end is near the beginning.
            let mut minted = 0;
            while slots_used(&control).await? > used + minted + MANY / 100 {
                let took = mint(&tree).await?;
                minted += BATCH;
                busy.extend(took);
            }
            println!("round {round} of {ROUNDS}: reclaimed in {:?}", started.elapsed());
        }
        let median = |samples: &[u64]| quantile(&mut samples.to_vec(), 0.5);
        let p99 = |samples: &[u64]| quantile(&mut samples.to_vec(), 0.99);
        let note = format!(
            "durable and quiescent {} ÷ {}; first refusal {} ÷ {}; {} ÷ {} samples",
            time(median(&many.durable)),
            time(median(&one.durable)),
            time(median(&many.refused)),
            time(median(&one.refused)),
            many.durable.len(),
            one.durable.len(),
        );
        let revoked = Figure::of(
            "revoke",
            "1,000,000 descendants: command to durable, quiescent and first refusal",
            median(&many.all()),
            median(&one.all()),
        );
        let minted =
            Figure::of("revoke", "mint while 1,000,000 are reclaimed, p99", p99(&busy), p99(&idle));
        let note_minted = format!(
            "p50 {} ÷ {}; {} ÷ {} samples",
            time(median(&busy)),
            time(median(&idle)),
            busy.len(),
            idle.len()
        );
        Ok(vec![
            revoked.beside("the same with 1 descendant").at_most(1.5).noting(note),
            minted.beside("mint while nothing is reclaimed").at_most(2.0).noting(note_minted),
        ])
    });
    // An orderly end would wait for an audit service, which this node has none of.
    node.crash();
    figures
}

async fn grow(tree: &tree::Client, descendants: u32) -> Result<(), Failure> {
    let mut request = tree.grow_request();
    request.get().set_descendants(descendants);
    request.send().promise.await.map_err(|e| fault_of(&e))?;
    Ok(())
}

async fn fell(tree: &tree::Client, descendants: u32, into: &mut Samples) -> Result<(), Failure> {
    let answer = tree.fell_request().send().promise.await.map_err(|e| fault_of(&e))?;
    let ended = answer.get()?.get_ended()?;
    if ended.get_descendants() != u64::from(descendants) {
        return Err(format!("{} ended with it", ended.get_descendants()).into());
    }
    into.durable.push(ended.get_durable());
    into.refused.push(ended.get_refused());
    Ok(())
}

async fn cut(tree: &tree::Client, descendants: u32, into: &mut Samples) -> Result<(), Failure> {
    grow(tree, descendants).await?;
    settle(tree).await?;
    fell(tree, descendants, into).await
}

/// What is derived within a session is recorded without waiting for the disk (L2), so the next
/// record that does wait takes all of it along. That is to be no part of what is measured.
async fn settle(tree: &tree::Client) -> Result<(), Failure> {
    mint(tree).await.map(drop)
}

async fn mint(tree: &tree::Client) -> Result<Vec<u64>, Failure> {
    let mut request = tree.mint_request();
    request.get().set_count(BATCH);
    let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
    Ok(answer.get()?.get_nanos()?.iter().collect())
}

async fn slots_used(control: &node_capnp::node::Client) -> Result<u32, Failure> {
    let answer = control.status_request().send().promise.await.map_err(|e| fault_of(&e))?;
    Ok(answer.get()?.get_status()?.get_slots_used())
}
