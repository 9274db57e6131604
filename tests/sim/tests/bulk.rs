//! What goes beside the calls of a holder on another machine: many bytes of a region, and what is said of leases.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use capnp::capability::FromClientHook;
use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{ByteRange, Caveats, Fault, Rights};
use distos_client::Connection;
use distos_quic::{Endpoint, Streams};
use distos_rpc::transport::{self, Bounds};
use distos_rpc::{Pages, fault_of, write_caveats};
use distos_schemas::capability_capnp::capability;
use distos_schemas::memory_capnp::{region, regions};
use distos_sim::far::{World, memory, test};
use distos_types::{Chain, HolderSecret};
use futures::{FutureExt as _, StreamExt as _};
use tokio::io::{AsyncRead, ReadBuf};

const MIB: u64 = 1 << 20;

/// Red on another machine, with a connection.
struct Red {
    world: World,
    chain: Chain,
    quic: Streams,
    regions: regions::Client,
    _open: (Endpoint, Connection),
}

impl Red {
    async fn arrive() -> Red {
        let world = World::boot().await;
        let red = HolderSecret::from_seed([11; 32]);
        let (chain, away) = (world.delegated(&red), world.agent("red", &red, 61));
        let link = away.connect(world.address, &world.cluster.id(memory())).await.expect("a link");
        let quic = Streams::of(link.connection().clone());
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
        self.quic.bulk().await.expect("a stream")(ticket)
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
        let third = red.quic.bulk().await.err();
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
            let quic = Streams::of(link.connection().clone());
            let connection = Connection::over(link.start(None, Bounds::EDGE));
            for _ in 0..2 {
                let once = ticket(&region, whole).await.expect("a ticket");
                let mut pages = quic.bulk().await.expect("a stream")(once);
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

/// Reads nothing while it is shut.
struct Gate<R> {
    reader: R,
    is_shut: Rc<Cell<bool>>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Gate<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_shut.get() {
            return Poll::Pending;
        }
        Pin::new(&mut self.reader).poll_read(cx, buffer)
    }
}

/// Else whoever has many replies under way hears of a revocation when it has read them all, and works on by its lease
/// for as long as that lasts.
#[test]
fn a_revocation_is_heard_though_nothing_else_comes_through() {
    test(async {
        let red = Red::arrive().await;
        // What an earlier run may have lent is over.
        tokio::time::sleep(Duration::from_millis(5200)).await;
        let region = red.region(4 * MIB).await;
        let key = HolderSecret::from_seed([11; 32]);
        let away = red.world.agent("red", &key, 62);
        let to = red.world.cluster.id(memory());
        let link = away.connect(red.world.address, &to).await.expect("a link");
        let quic = Streams::of(link.connection().clone());
        let leases = quic.leases();
        let (reader, writer) = link.into_halves();
        let is_shut = Rc::new(Cell::new(false));
        let gate = Gate { reader, is_shut: is_shut.clone() };
        let system = transport::over(gate, writer, Side::Client, None, Bounds::EDGE);
        let connection = Connection::over(system).lending(leases);
        let regions: regions::Client = connection.restore(&red.chain, &key).await.expect("red's");
        let mut request = regions.open_request();
        request.get().set_name("much");
        let opened = request.send().promise.await.expect("the region");
        let opened = opened.get().and_then(|opened| opened.get_region()).expect("the region");
        let held = connection.hold(&opened).await.expect("a lease");
        // So much is read and not given back to the other side as room yet.
        let mut request = opened.read_request();
        request.get().set_len(MIB as u32 / 4);
        request.send().promise.await.expect("a quarter of a MiB");
        is_shut.set(true);
        let whole = ByteRange { start: 0, end: 4 * MIB };
        let mut unread = Vec::new();
        for _ in 0..2 {
            let once = ticket(&region, whole).await.expect("a ticket");
            let mut pages = quic.bulk().await.expect("a stream")(once);
            pages.next().await.expect("a page").expect("a page");
            unread.push(pages);
        }
        let mut waiting: Vec<_> = (0..12)
            .map(|_| {
                let mut request = opened.read_request();
                request.get().set_len(MIB as u32);
                request.send().promise
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(waiting.iter_mut().all(|read| read.now_or_never().is_none()), "nothing is read");
        assert_eq!(held.check(), Ok(()));
        assert_eq!(red.world.take_back(&red.chain).await, 0, "it was heard");
        assert_eq!(held.check(), Err(Fault::Revoked));
    });
}

/// Whoever has shown no capability has nothing to be told of, and one way to be told is enough.
#[test]
fn leases_have_one_way_of_their_own_and_holders_alone_have_it() {
    test(async {
        let red = Red::arrive().await;
        let key = HolderSecret::from_seed([11; 32]);
        let away = red.world.agent("red", &key, 63);
        let to = red.world.cluster.id(memory());
        let link = away.connect(red.world.address, &to).await.expect("a link");
        let leases = Streams::of(link.connection().clone()).leases();
        let connection = Connection::over(link.start(None, Bounds::EDGE)).lending(leases);
        // Whoever it is asked for: the connection is not known to have shown anything.
        let refused = connection.hold(&red.regions).await.err();
        assert!(matches!(refused, Some(Fault::Unavailable { .. })), "{refused:?}");
        let (one, other) = (red.quic.leases(), red.quic.leases());
        let held = one.hold(&red.regions).await.expect("a lease");
        assert_eq!(held.check(), Ok(()));
        let refused = other.hold(&red.regions).await.err();
        assert!(matches!(refused, Some(Fault::Unavailable { .. })), "{refused:?}");
        // Both streams for many bytes are free beside it.
        let whole = ByteRange { start: 0, end: 2 * MIB };
        let region = red.region(2 * MIB).await;
        let first = red.stream(ticket(&region, whole).await.expect("a ticket")).await;
        let second = red.stream(ticket(&region, whole).await.expect("a ticket")).await;
        let (first, second) = futures::join!(all(first), all(second));
        assert!(first.0 == content(whole) && second.0 == content(whole));
        // Whoever ends it is not served on without it: it would not know what has ended.
        drop((held, one));
        let ended = async {
            while ticket(&region, whole).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the connection ends");
        // A capability that was presented together with its lease is shown in time.
        let quiet = red.world.connect(&away).await.expect("once more");
        let regions: regions::Client = quiet.present(&red.chain, &key).await.expect("red's");
        assert_eq!(quiet.hold(&regions).await.expect("a lease").check(), Ok(()));
    });
}

/// Or whoever passes on what is encrypted would be told in the holder's place, and the holder nothing.
#[test]
fn whoever_passes_on_what_is_encrypted_is_told_of_no_leases() {
    test(async {
        let red = Red::arrive().await;
        let key = HolderSecret::from_seed([11; 32]);
        let away = red.world.agent("red", &key, 64);
        let to = red.world.cluster.id(memory());
        let link = away.connect(red.world.address, &to).await.expect("a link");
        let quic = Streams::of(link.connection().clone());
        let (reader, writer) = link.into_halves();
        let sealed = distos_client::end_to_end(reader, writer, &red.chain, &key).await;
        let (reader, writer) = sealed.expect("the vat has a key");
        let connection = Connection::over_end_to_end(reader, writer);
        let regions: regions::Client = connection.restore(&red.chain, &key).await.expect("red's");
        // By the holder's own way there is a lease; by one beside it there is none.
        let refused = quic.leases().hold(&regions).await.err();
        assert!(matches!(refused, Some(Fault::Unavailable { .. })), "{refused:?}");
        assert_eq!(connection.hold(&regions).await.expect("a lease").check(), Ok(()));
    });
}
