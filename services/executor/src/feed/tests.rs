use std::cell::{Cell, RefCell};
use std::rc::Rc;

use distos_abi::Authority;
use distos_rpc::{Streamed, authority_of, fail};
use distos_schemas::capability_capnp::capability;
use distos_schemas::memory_capnp::MAX_CALL_BYTES;
use futures::future::LocalBoxFuture;
use tokio::sync::mpsc;

use super::*;

#[test]
fn chunks_cover_a_segment_exactly_once() {
    for (start, len) in [(0, 1), (5, CHUNK_BYTES), (7, CHUNK_BYTES + 1), (9, 3 * CHUNK_BYTES)] {
        let segment = ByteRange { start, end: start + len };
        let mut at = start;
        for chunk in chunks(segment) {
            assert_eq!(chunk.start, at);
            assert!(!chunk.is_empty() && chunk.len() <= CHUNK_BYTES);
            at = chunk.end;
        }
        assert_eq!(at, segment.end);
    }
    assert_eq!(chunks(ByteRange { start: 4, end: 4 }).count(), 0);
}

/// A region whose byte at `n` is `n % 251`, and which notes what is asked of it.
#[derive(Clone)]
struct Region {
    authority: Authority,
    seen: Rc<Seen>,
}

struct Seen {
    attenuated: RefCell<Vec<Authority>>,
    /// Reads that succeed before the capability is revoked.
    reads_left: Cell<u32>,
}

impl region::Server for Region {
    async fn read(
        self: Rc<Self>,
        params: region::ReadParams,
        mut results: region::ReadResults,
    ) -> Result<(), capnp::Error> {
        let (start, len) = (params.get()?.get_offset(), params.get()?.get_len());
        assert!(len <= MAX_CALL_BYTES);
        let range = ByteRange::at(start, u64::from(len)).unwrap();
        self.authority.permits(Rights::READ, range, 0).map_err(fail)?;
        let left = self.seen.reads_left.get().checked_sub(1);
        self.seen.reads_left.set(left.ok_or_else(|| fail(Fault::Revoked))?);
        // The later of two reads under way may be answered first.
        if start.is_multiple_of(2 * CHUNK_BYTES) {
            tokio::task::yield_now().await;
        }
        results.get().set_data(&bytes(range));
        Ok(())
    }

    async fn stream(
        self: Rc<Self>,
        params: region::StreamParams,
        mut results: region::StreamResults,
    ) -> Result<(), capnp::Error> {
        let (start, len) = (params.get()?.get_offset(), params.get()?.get_len());
        let range = ByteRange::at(start, len).unwrap();
        self.authority.permits(Rights::READ, range, 0).map_err(fail)?;
        results.get().set_ticket(&[start.to_be_bytes(), range.end.to_be_bytes()].concat());
        Ok(())
    }
}

/// A connection to a region elsewhere.
struct Far {
    /// After so many pages a stream is broken off.
    pages: usize,
    /// And then comes this much too much.
    surplus: usize,
    streams: Cell<u32>,
}

impl Open for Far {
    fn ended(&self) -> Option<Fault> {
        None
    }

    fn stream(&self) -> LocalBoxFuture<'static, Result<Streamed, Fault>> {
        let (cut, surplus) = (self.pages, self.surplus);
        self.streams.set(self.streams.get() + 1);
        Box::pin(async move {
            let streamed: Streamed = Box::new(move |ticket| {
                let number = |at: usize| u64::from_be_bytes(ticket[at..at + 8].try_into().unwrap());
                let all = bytes(ByteRange { start: number(0), end: number(8) });
                let pages = all.chunks(65_536).map(|page| Ok(page.to_vec()));
                let mut pages: Vec<Result<Vec<u8>, Fault>> = pages.take(cut).collect();
                match surplus {
                    0 if cut < usize::MAX => pages.push(Err(Fault::Corrupt("cut".into()))),
                    0 => {}
                    more => pages.push(Ok(vec![9; more])),
                }
                stream::iter(pages).boxed_local()
            });
            Ok(streamed)
        })
    }
}

impl capability::Server for Region {
    async fn attenuate(
        self: Rc<Self>,
        params: capability::AttenuateParams,
        mut results: capability::AttenuateResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let wanted = authority_of(params.get_rights(), params.get_caveats()?);
        self.seen.attenuated.borrow_mut().push(wanted);
        let authority = self.authority.narrow(wanted).map_err(fail)?;
        let seen = Rc::clone(&self.seen);
        let weaker: region::Client = capnp_rpc::new_client(Region { authority, seen });
        let weaker: capability::Client = capnp::capability::FromClientHook::cast_to(weaker);
        results.get().set_cap(weaker);
        Ok(())
    }
}

fn bytes(range: ByteRange) -> Vec<u8> {
    (range.start..range.end).map(|n| (n % 251) as u8).collect()
}

/// What arrives on stdin, and the attenuations that were asked for.
fn fed(segments: &[ByteRange], reads: u32) -> (Result<Vec<u8>, Fault>, Vec<Authority>) {
    fed_from(segments, reads, None)
}

fn fed_from(
    segments: &[ByteRange],
    reads: u32,
    far: Option<Rc<dyn Open>>,
) -> (Result<Vec<u8>, Fault>, Vec<Authority>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let seen = Rc::new(Seen { attenuated: RefCell::default(), reads_left: Cell::new(reads) });
    let region = Region { authority: Authority::FULL, seen: Rc::clone(&seen) };
    let (feeder, mut stdin) = mpsc::channel(1);
    let client: region::Client = capnp_rpc::new_client(region);
    let arrived = tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::task::spawn_local(feed(client, far, segments.to_vec(), feeder));
        let mut all = Vec::new();
        while let Some(chunk) = stdin.recv().await {
            all.extend_from_slice(&chunk?);
        }
        Ok(all)
    });
    (arrived, seen.attenuated.take())
}

const SEGMENTS: [ByteRange; 4] = [
    ByteRange { start: 3, end: 3 * CHUNK_BYTES + 10 },
    ByteRange { start: 7, end: 7 },
    ByteRange { start: 65_536, end: 65_600 },
    ByteRange { start: 0, end: 1 },
];

#[test]
fn a_task_gets_its_segments_in_order_through_capabilities_to_nothing_else() {
    let (arrived, attenuated) = fed(&SEGMENTS, u32::MAX);
    let expected: Vec<u8> = SEGMENTS.iter().flat_map(|s| bytes(*s)).collect();
    assert!(arrived.unwrap() == expected, "bytes differ");
    let wanted: Vec<Authority> = [SEGMENTS[0], SEGMENTS[2], SEGMENTS[3]]
        .into_iter()
        .map(|range| Authority {
            rights: Rights::READ,
            caveats: Caveats { range, ..Caveats::NONE },
        })
        .collect();
    assert_eq!(attenuated, wanted);
}

#[test]
fn a_capability_that_is_revoked_in_mid_read_ends_the_input_with_that_fault() {
    for reads in 0..5 {
        assert_eq!(fed(&SEGMENTS, reads).0, Err(Fault::Revoked), "{reads} reads");
    }
}

#[test]
fn what_is_on_another_node_comes_by_a_stream_and_what_does_not_in_calls() {
    let far = |pages, surplus| Rc::new(Far { pages, surplus, streams: Cell::new(0) });
    let expected: Vec<u8> = SEGMENTS.iter().flat_map(|s| bytes(*s)).collect();
    let longest = (3 * CHUNK_BYTES / 65_536) as usize;
    for (pages, surplus) in [(usize::MAX, 0), (0, 0), (7, 0), (longest, 0), (7, 2 << 20)] {
        let far = far(pages, surplus);
        let (arrived, _) = fed_from(&SEGMENTS, u32::MAX, Some(far.clone()));
        assert!(arrived.unwrap() == expected, "bytes differ, cut after {pages} pages");
        assert_eq!(far.streams.get(), 1, "one segment is worth a stream");
    }
    // The others, which are short, are read in calls.
    assert_eq!(fed_from(&SEGMENTS, 2, Some(far(usize::MAX, 0))).0.unwrap(), expected);
    assert_eq!(fed_from(&SEGMENTS, 1, Some(far(usize::MAX, 0))).0, Err(Fault::Revoked));
    // A call says what is wrong.
    assert_eq!(fed_from(&SEGMENTS, 0, Some(far(7, 0))).0, Err(Fault::Revoked));
}
