//! Reading a page, beside a server that keeps its values in memory and checks nothing.

use std::path::Path;

use distos_client::fault_of;
use distos_e2e::Node;
use distos_schemas::memory_capnp::{region, regions};

use super::{Failure, Outcome};
use crate::node::{self, Holder};
use crate::peers::redis;
use crate::processors::{self, Stay};
use crate::report::Figure;
use crate::sample::{Pairs, Random};

const PAGE: usize = 65536;
/// What is read again and again.
const FEW: usize = 64;
/// Read one after the other, so that none of them is among those that the service keeps opened.
const MANY: usize = 320;
/// Whole rounds, so that what is measured goes on where this ends.
const WARM_UP: usize = 2 * MANY;
const PAIRS: usize = 5_000;

pub(super) fn read(_: &Path) -> Outcome {
    let node = Node::boot();
    node::on_one_thread(async {
        let operator = Holder::operator(&node)?;
        let (_connection, regions) = operator.restore::<regions::Client>("regions").await?;
        let mut redis = redis::Peer::start(&node.work())?;
        for server in [node.pid_of("memory"), redis.pid()] {
            processors::serve(server)?;
        }
        let _client = Stay::with_clients()?;
        let mut random = Random(3);
        let pages: Vec<Vec<u8>> = (0..MANY)
            .map(|_| (0..PAGE / 8).flat_map(|_| random.number().to_le_bytes()).collect())
            .collect();
        for (number, page) in pages.iter().enumerate() {
            redis.set(number, page)?;
        }
        let mut figures = Vec::new();
        let kinds = [
            ("volatile", true, FEW),
            ("durable-kept-opened", false, FEW),
            ("durable-decrypted", false, MANY),
        ];
        for (kind, volatile, count) in kinds {
            let region = create(&regions, kind, volatile, count).await?;
            let pages = &pages[..count];
            for (number, page) in pages.iter().enumerate() {
                write(&region, number, page).await?;
            }
            take(WARM_UP, &region, &mut redis, pages).await?;
            let pairs = take(PAIRS, &region, &mut redis, pages).await?;
            let (ours, peer) = pairs.medians();
            let name = format!("64 KiB read, BLAKE3-verified, over the socket, p50 ({kind})");
            let figure = Figure::of("memory", name, ours, peer)
                .beside("Redis GET of 64 KiB over its socket")
                .within(pairs.interval())
                .at_most(1.5);
            figures.push(figure);
        }
        Ok(figures)
    })
}

async fn take(
    count: usize,
    region: &region::Client,
    redis: &mut redis::Peer,
    pages: &[Vec<u8>],
) -> Result<Pairs, Failure> {
    let order = |seed: u64| {
        let mut random = Random(seed);
        let count = pages.len();
        (0..).map(move |turn: usize| if count == FEW { random.below(FEW) } else { turn % count })
    };
    let (mut one, mut other) = (order(8), order(8));
    // Whole pages are compared now and then only: comparing is no part of reading.
    let same = |got: &[u8], number: usize| -> Result<(), Failure> {
        let page = &pages[number];
        if got.len() == page.len() && got[..8] == page[..8] && got[PAGE - 8..] == page[PAGE - 8..] {
            return Ok(());
        }
        Err("a page is not what was stored".into())
    };
    let ours = async || {
        let number = one.next().ok_or("an endless order has ended")?;
        let mut request = region.read_request();
        request.get().set_offset((number * PAGE) as u64);
        request.get().set_len(PAGE as u32);
        let answer = request.send().promise.await?;
        same(answer.get()?.get_data()?, number)
    };
    let peer = async || {
        let number = other.next().ok_or("an endless order has ended")?;
        same(&redis.get(number)?, number)
    };
    Pairs::take_async(count, ours, peer).await
}

async fn create(
    regions: &regions::Client,
    name: &str,
    volatile: bool,
    pages: usize,
) -> Result<region::Client, Failure> {
    let mut request = regions.create_request();
    request.get().set_name(name);
    request.get().set_bytes((pages * PAGE) as u64);
    request.get().set_volatile(volatile);
    let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
    Ok(answer.get()?.get_region()?)
}

async fn write(region: &region::Client, number: usize, page: &[u8]) -> Result<(), Failure> {
    let mut request = region.write_request();
    request.get().set_offset((number * PAGE) as u64);
    request.get().set_data(page);
    request.send().promise.await.map_err(|e| fault_of(&e))?;
    Ok(())
}
