//! Brings a task's input from its region to its stdin. Each segment is read through a capability
//! that was attenuated to exactly its bytes (C1) and that ends with the task.

use std::rc::Rc;

use bytes::Bytes;
use distos_abi::{ByteRange, Caveats, Fault, Rights};
use distos_rpc::{Open, Pages, fault_of, write_caveats};
use distos_schemas::memory_capnp::region;
use futures::{Stream, StreamExt, stream};

use crate::stdio::Feed;

/// What one read asks for. Two are under way at once, so the program computes on one chunk while
/// the next two travel.
const CHUNK_BYTES: u64 = 512 * 1024;
const READS_AHEAD: usize = 2;
/// From how many bytes on a segment is worth a stream of its own: it takes a call to begin one.
const STREAMED_BYTES: u64 = 2 * CHUNK_BYTES;
/// After a stream was asked for in vain, so many segments are read in calls without asking.
const CALLED_SEGMENTS: u32 = 16;
/// Segments whose capabilities are made ahead of the reading.
const SEGMENTS_AHEAD: usize = 4;

/// A weaker capability to the same region.
pub(crate) async fn attenuate(
    region: &region::Client,
    rights: Rights,
    range: ByteRange,
) -> Result<region::Client, Fault> {
    use capnp::capability::FromClientHook;
    let base: distos_schemas::capability_capnp::capability::Client = region.clone().cast_to();
    let mut request = base.attenuate_request();
    request.get().set_rights(rights.0);
    write_caveats(Caveats { range, ..Caveats::NONE }, request.get().init_caveats());
    let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
    let cap = response.get().and_then(|r| r.get_cap()).map_err(|e| fault_of(&e))?;
    Ok(cap.cast_to())
}

/// The chunks of a segment, in order, none longer than [`CHUNK_BYTES`].
fn chunks(segment: ByteRange) -> impl Iterator<Item = ByteRange> {
    let count = segment.len().div_ceil(CHUNK_BYTES);
    (0..count).map(move |n| {
        let start = segment.start + n * CHUNK_BYTES;
        ByteRange { start, end: segment.end.min(start + CHUNK_BYTES) }
    })
}

async fn read(region: region::Client, range: ByteRange) -> Result<Bytes, Fault> {
    let mut request = region.read_request();
    request.get().set_offset(range.start);
    request.get().set_len(range.len() as u32);
    let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
    let data = response.get().and_then(|r| r.get_data()).map_err(|e| fault_of(&e))?;
    if data.len() as u64 != range.len() {
        return Err(Fault::Corrupt("a region returned another length than was asked for".into()));
    }
    Ok(Bytes::copy_from_slice(data))
}

fn segment_chunks(
    region: region::Client,
    segment: ByteRange,
) -> impl Stream<Item = Result<Bytes, Fault>> {
    stream::iter(chunks(segment))
        .map(move |chunk| read(region.clone(), chunk))
        .buffered(READS_AHEAD)
}

/// A stream beside the calls with the bytes of a segment that is on another node; `None` if there is none to be had.
async fn streamed(region: &region::Client, far: &dyn Open, segment: ByteRange) -> Option<Pages> {
    let stream = far.stream().await.ok()?;
    let mut request = region.stream_request();
    request.get().set_offset(segment.start);
    request.get().set_len(segment.len());
    let answer = request.send().promise.await.ok()?;
    let ticket = answer.get().and_then(|answer| answer.get_ticket()).ok()?;
    Some(stream(ticket.to_vec()))
}

/// Feeds one segment; `calls` is for how many more segments no stream is asked for. `false` if nobody reads any more, or it has ended with a fault. What is on another node comes by a
/// stream if it is worth one, and what does not come by that in calls, which say what is wrong.
async fn feed_segment(
    region: region::Client,
    (far, calls): (Option<&dyn Open>, &mut u32),
    segment: ByteRange,
    stdin: &Feed,
) -> bool {
    let mut at = segment.start;
    let far = far.filter(|_| segment.len() >= STREAMED_BYTES && *calls == 0);
    let mut pages = match far {
        Some(far) => streamed(&region, far, segment).await,
        None => None,
    };
    *calls = match (far, &pages) {
        // There was none to be had: it is not waited for each time.
        (Some(_), None) => CALLED_SEGMENTS,
        _ => calls.saturating_sub(1),
    };
    while let Some(pages) = &mut pages {
        let page = pages.next().await.and_then(Result::ok);
        // Not one byte more than was asked for.
        let Some(page) = page.filter(|page| page.len() as u64 <= segment.end - at) else { break };
        at += page.len() as u64;
        if stdin.send(Ok(page.into())).await.is_err() {
            return false;
        }
    }
    drop(pages);
    let rest = segment_chunks(region, ByteRange { start: at, end: segment.end });
    futures::pin_mut!(rest);
    while let Some(chunk) = rest.next().await {
        let ended = chunk.is_err();
        if stdin.send(chunk).await.is_err() || ended {
            return false;
        }
    }
    true
}

/// Feeds the segments in order; `far` is the connection to their home, if that is on another node. A fault (the
/// capability was revoked, a page is corrupt) goes to the program's stdin, where it ends the task. Returns when all is
/// fed or nobody reads any more.
pub(crate) async fn feed(
    region: region::Client,
    far: Option<Rc<dyn Open>>,
    segments: Vec<ByteRange>,
    stdin: Feed,
) {
    let filled = segments.into_iter().filter(|segment| !segment.is_empty());
    let input = stream::iter(filled)
        .map(|segment| {
            let region = region.clone();
            async move {
                let narrowed = attenuate(&region, Rights::READ, segment).await?;
                Ok::<_, Fault>((narrowed, segment))
            }
        })
        .buffered(SEGMENTS_AHEAD);
    futures::pin_mut!(input);
    let mut calls = 0;
    while let Some(narrowed) = input.next().await {
        let goes_on = match narrowed {
            Ok((narrowed, segment)) => {
                feed_segment(narrowed, (far.as_deref(), &mut calls), segment, &stdin).await
            }
            Err(fault) => {
                // It ends with this, whether or not anybody reads it.
                let _ = stdin.send(Err(fault)).await;
                false
            }
        };
        if !goes_on {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
