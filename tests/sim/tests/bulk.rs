//! Many bytes of a region for a holder on another machine, on a stream beside the calls.

use capnp::capability::FromClientHook;
use distos_abi::{ByteRange, Caveats, Fault, Rights};
use distos_client::Connection;
use distos_quic::Endpoint;
use distos_rpc::transport::Bounds;
use distos_rpc::{Pages, fault_of, write_caveats};
use distos_schemas::capability_capnp::capability;
use distos_schemas::memory_capnp::{region, regions};
use distos_sim::far::{World, memory, test};
use distos_types::{Chain, HolderSecret};
use futures::StreamExt as _;

const MIB: u64 = 1 << 20;

/// Red on another machine, with a connection.
struct Red {
    world: World,
    chain: Chain,
    quic: distos_quic::Connection,
    regions: regions::Client,
    _open: (Endpoint, Connection),
}

impl Red {
    async fn arrive() -> Red {
        let world = World::boot().await;
        let red = HolderSecret::from_seed([11; 32]);
        let (chain, away) = (world.delegated(&red), world.agent("red", &red, 61));
        let link = away.connect(world.address, &world.cluster.id(memory())).await.expect("a link");
        let quic = link.connection().clone();
        let connection = Connection::over(link.start(None, Bounds::EDGE));
        let regions = connection.restore(&chain, &red).await.expect("red's");
        Red { world, chain, quic, regions, _open: (away, connection) }
    }

    /// A region with a byte for each place, but for a gap of a MiB that nobody has written.
    async fn region(&self, bytes: u64) -> region::Client {
        self.region_of(bytes, true).await
    }

    async fn region_of(&self, bytes: u64, volatile: bool) -> region::Client {
        let mut request = self.regions.create_request();
        request.get().set_name("much");
        request.get().set_bytes(bytes);
        request.get().set_volatile(volatile);
        let made = request.send().promise.await.expect("a region");
        let region = made.get().and_then(|made| made.get_region()).expect("a region");
        for start in (0..bytes).step_by(MIB as usize).filter(|start| *start != MIB) {
            let mut request = region.write_request();
            request.get().set_offset(start);
            let end = bytes.min(start + MIB);
            request.get().set_data(&content(ByteRange { start, end }));
            request.send().promise.await.expect("it is written");
        }
        region
    }

    async fn stream(&self, ticket: Vec<u8>) -> Pages {
        distos_quic::stream(self.quic.clone()).await.expect("a stream")(ticket)
    }
}

fn content(range: ByteRange) -> Vec<u8> {
    let gap = MIB..2 * MIB;
    (range.start..range.end)
        .map(|n| if gap.contains(&n) { 0 } else { (n % 251) as u8 ^ (n >> 16) as u8 })
        .collect()
}

async fn ticket(region: &region::Client, range: ByteRange) -> Result<Vec<u8>, Fault> {
    let mut request = region.stream_request();
    request.get().set_offset(range.start);
    request.get().set_len(range.len());
    let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
    answer.get().and_then(|a| a.get_ticket()).map(<[u8]>::to_vec).map_err(|e| fault_of(&e))
}

/// All that comes, and how it ends.
async fn all(mut pages: Pages) -> (Vec<u8>, Option<Fault>) {
    let mut came = Vec::new();
    while let Some(page) = pages.next().await {
        match page {
            Ok(page) => came.extend_from_slice(&page),
            Err(fault) => return (came, Some(fault)),
        }
    }
    (came, None)
}

#[test]
fn a_region_comes_whole_by_a_stream_once_and_to_nobody_without_its_ticket() {
    test(async {
        let red = Red::arrive().await;
        let bytes = 3 * MIB + 70_000;
        let region = red.region(bytes).await;
        for (start, end) in [(0, bytes), (5, 2 * MIB + 1), (65_535, 65_537), (bytes - 1, bytes)] {
            let range = ByteRange { start, end };
            let once = ticket(&region, range).await.expect("a ticket");
            let (came, fault) = all(red.stream(once.clone()).await).await;
            assert_eq!(fault, None, "{range:?}");
            assert!(came == content(range), "{range:?}: {} bytes came", came.len());
            let (came, fault) = all(red.stream(once).await).await;
            assert!(came.is_empty() && fault.is_some(), "twice by one ticket");
        }
        for other in [vec![7; 16], vec![], vec![7; 3]] {
            let (came, fault) = all(red.stream(other).await).await;
            assert!(came.is_empty() && fault.is_some());
        }
        // Over no bytes, beyond the region, and beyond what a weaker capability reaches (C1).
        for (start, len) in [(0, 0), (0, bytes + 1), (bytes, 1), (u64::MAX, 2)] {
            let range = ByteRange { start, end: start.wrapping_add(len) };
            let refused = ticket(&region, range).await;
            assert!(refused.is_err(), "{range:?}");
        }
        let as_any: capability::Client = region.clone().cast_to();
        let mut request = as_any.attenuate_request();
        request.get().set_rights(Rights::READ.0);
        let range = ByteRange { start: 10, end: 2 * MIB };
        write_caveats(Caveats { range, ..Caveats::NONE }, request.get().init_caveats());
        let weaker = request.send().promise.await.expect("less than it has");
        let weaker = weaker.get().and_then(|made| made.get_cap()).expect("a capability");
        let weaker: region::Client = weaker.cast_to();
        let denied = ticket(&weaker, ByteRange { start: 9, end: 20 }).await;
        assert!(matches!(denied, Err(Fault::Denied { .. })), "{denied:?}");
        let once = ticket(&weaker, range).await.expect("a ticket");
        assert!(all(red.stream(once).await).await.0 == content(range));
    });
}

/// C2: what has entered the stream before is under way; nothing enters it after.
#[test]
fn after_a_revocation_has_returned_no_page_enters_a_stream() {
    test(async {
        let red = Red::arrive().await;
        let bytes = 12 * MIB;
        let region = red.region(bytes).await;
        let whole = ByteRange { start: 0, end: bytes };
        let unused = ticket(&region, whole).await.expect("a ticket");
        let begun = ticket(&region, whole).await.expect("a ticket");
        let mut pages = red.stream(begun).await;
        let first = pages.next().await.expect("a page").expect("a page");
        // Nobody reads on until there is room for nothing more.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let (file, owner) = red.world.node.operator().expect("the operator's files");
        let nearby = red.world.node.connect("memory").await.expect("the socket");
        let own = &file.find("regions").expect("regions").chain;
        let root: regions::Client = nearby.restore(own, &owner).await.expect("the operator's");
        let root: capability::Client = root.cast_to();
        let mut request = root.revoke_link_request();
        request.get().set_link(&red.chain.links().last().expect("a link").hash.0);
        request.get().set_expires_ms(u64::MAX);
        request.send().promise.await.expect("the link is revoked");
        let (rest, fault) = all(pages).await;
        assert!(fault.is_some(), "it ended as if it were whole");
        let came = (first.len() + rest.len()) as u64;
        // A window on each side, and a page.
        assert!(came <= 2 * MIB + (128 << 10), "{came} bytes: more than were under way");
        let (came, fault) = all(red.stream(unused).await).await;
        assert!(came.is_empty() && fault.is_some(), "begun after the revocation");
        let again = ticket(&region, whole).await;
        assert_eq!(again, Err(Fault::Revoked));
    });
}

#[test]
fn calls_go_on_beside_streams_that_nobody_reads_and_no_more_of_those_begin() {
    test(async {
        let red = Red::arrive().await;
        let region = red.region(8 * MIB).await;
        let whole = ByteRange { start: 0, end: 8 * MIB };
        let mut lying = Vec::new();
        for _ in 0..2 {
            let mut pages = red.stream(ticket(&region, whole).await.expect("a ticket")).await;
            pages.next().await.expect("a page").expect("a page");
            lying.push(pages);
        }
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        for _ in 0..20 {
            let mut request = region.read_request();
            request.get().set_len(MIB as u32);
            let read = request.send().promise.await.expect("a call");
            let data = read.get().and_then(|read| read.get_data()).expect("its bytes");
            assert!(data == content(ByteRange { start: 0, end: MIB }));
        }
        let third = distos_quic::stream(red.quic.clone()).await.err();
        assert!(matches!(third, Some(Fault::Unavailable { .. })), "{third:?}");
        // When one is given up, another one begins.
        drop(lying.pop());
        let next = red.stream(ticket(&region, whole).await.expect("a ticket")).await;
        assert!(all(next).await.0 == content(whole));
    });
}

/// Or one tenant could have everybody's reads and writes, and the node's end, wait for it.
#[test]
fn streams_of_a_region_on_disk_that_nobody_reads_keep_nobody_from_the_store() {
    test(async {
        let red = Red::arrive().await;
        let region = red.region_of(4 * MIB, false).await;
        let whole = ByteRange { start: 0, end: 4 * MIB };
        let once = ticket(&region, whole).await.expect("a ticket");
        assert!(all(red.stream(once).await).await.0 == content(whole), "from disk");
        let (key, mut lying) = (HolderSecret::from_seed([11; 32]), Vec::new());
        for _ in 0..9 {
            let away = red.world.agent("red", &key, 61);
            let link = away.connect(red.world.address, &red.world.cluster.id(memory())).await;
            let link = link.expect("a link");
            let quic = link.connection().clone();
            let connection = Connection::over(link.start(None, Bounds::EDGE));
            for _ in 0..2 {
                let once = ticket(&region, whole).await.expect("a ticket");
                let mut pages = distos_quic::stream(quic.clone()).await.expect("a stream")(once);
                // Of the last ones nothing comes: there are enough.
                let _ = pages.next().await;
                lying.push(pages);
            }
            lying.push(futures::stream::pending().boxed_local());
            std::mem::forget((away, connection));
        }
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        // Another one at work meanwhile: pages that are read from the disk, and written to it.
        for start in (0..4 * MIB).step_by(MIB as usize) {
            let mut request = region.read_request();
            request.get().set_offset(start);
            request.get().set_len(MIB as u32);
            request.send().promise.await.expect("a call");
            let mut request = region.write_request();
            request.get().set_offset(start);
            request.get().set_data(&[9; 65_536]);
            request.send().promise.await.expect("a call");
        }
    });
}
