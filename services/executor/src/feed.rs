//! Brings a task's input from its region to its stdin. Each segment is read through a capability
//! that was attenuated to exactly its bytes (C1) and that ends with the task.

use bytes::Bytes;
use distos_abi::{ByteRange, Caveats, Fault, Rights};
use distos_rpc::{fault_of, write_caveats};
use distos_schemas::memory_capnp::region;
use futures::{Stream, StreamExt, TryStreamExt, stream};

use crate::stdio::Feed;

/// What one read asks for. Two are under way at once, so the program computes on one chunk while
/// the next two travel.
const CHUNK_BYTES: u64 = 512 * 1024;
const READS_AHEAD: usize = 2;
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

/// Feeds the segments in order. A fault (the capability was revoked, a page is corrupt) goes to
/// the program's stdin, where it ends the task. Returns when all is fed or nobody reads any more.
pub(crate) async fn feed(region: region::Client, segments: Vec<ByteRange>, stdin: Feed) {
    let filled = segments.into_iter().filter(|segment| !segment.is_empty());
    let input = stream::iter(filled)
        .map(|segment| {
            let region = region.clone();
            async move {
                let narrowed = attenuate(&region, Rights::READ, segment).await?;
                Ok::<_, Fault>((narrowed, segment))
            }
        })
        .buffered(SEGMENTS_AHEAD)
        .map_ok(|(narrowed, segment)| segment_chunks(narrowed, segment))
        .try_flatten();
    futures::pin_mut!(input);
    while let Some(chunk) = input.next().await {
        let ended = chunk.is_err();
        if stdin.send(chunk).await.is_err() || ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
