//! The body of an entry: a `Record` of the kernel's schema as canonical Cap'n Proto.

use capnp::message::{Builder, HeapAllocator, Reader, ReaderOptions, SegmentArray};
use distos_schemas::kernel_capnp::record;

use crate::format::MAX_BODY;

/// What a body says, with its alignment restored so that Cap'n Proto can read it.
pub(crate) struct Body(Vec<capnp::Word>);

impl Body {
    /// Takes the bytes of an entry's body. They come from a frame whose hash was checked; whether
    /// they are a record is found out when they are read.
    pub(crate) fn new(bytes: &[u8]) -> Body {
        let mut words = capnp::Word::allocate_zeroed_vec(bytes.len().div_ceil(8));
        capnp::Word::words_to_bytes_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Body(words)
    }

    /// Reads the record.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(record::Reader<'_>) -> capnp::Result<T>,
    ) -> capnp::Result<T> {
        let segments = [capnp::Word::words_to_bytes(&self.0)];
        let options = ReaderOptions { traversal_limit_in_words: Some(MAX_BODY), nesting_limit: 8 };
        let message = Reader::new(SegmentArray::new(&segments), options);
        read(message.get_root::<record::Reader<'_>>()?)
    }

    /// The journal's sequence number; 0 for an entry that the audit service made itself.
    pub(crate) fn seq(&self) -> capnp::Result<u64> {
        self.read(|record| Ok(record.get_seq()))
    }
}

/// A record as it is stored. One that is longer than [`MAX_BODY`], which no honest kernel sends,
/// is replaced by an entry that names its hash, so that its number is never missing from the log.
pub(crate) fn body_of(record: record::Reader<'_>) -> capnp::Result<Vec<u8>> {
    let body = canonical(record)?;
    if body.len() <= MAX_BODY {
        return Ok(body);
    }
    let detail = format!("a record of {} bytes, BLAKE3 {}", body.len(), blake3::hash(&body));
    own_record(record.get_seq(), record.get_time_ms(), "oversize", &detail)
}

/// An entry about journal records `from..=to`, which the kernel never handed over.
pub(crate) fn gap(time_ms: u64, from: u64, to: u64) -> capnp::Result<Vec<u8>> {
    let detail = format!("journal records {from} to {to} never arrived");
    own_record(0, time_ms, "gap", &detail)
}

fn own_record(seq: u64, time_ms: u64, kind: &str, detail: &str) -> capnp::Result<Vec<u8>> {
    let mut message = Builder::new_default();
    let mut record = message.init_root::<record::Builder<'_>>();
    record.set_seq(seq);
    record.set_time_ms(time_ms);
    record.set_kind(kind);
    record.set_vat("audit");
    record.set_detail(detail);
    canonical(record.into_reader())
}

fn canonical(record: record::Reader<'_>) -> capnp::Result<Vec<u8>> {
    // A canonical message is one segment: room for all of it is allocated at once.
    let words = record.total_size()?.word_count + 1;
    let allocator = HeapAllocator::new().first_segment_words(words.try_into().unwrap_or(u32::MAX));
    let mut message = Builder::new(allocator);
    message.set_root_canonical::<record::Owned>(record)?;
    match &*message.get_segments_for_output() {
        [only] => Ok(only.to_vec()),
        _ => Err(capnp::Error::failed("a canonical record has one segment".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_auditor_reads_back_is_what_the_kernel_sent() {
        let body = own_record(7, 99, "mint", "region 4").unwrap();
        let read = Body::new(&body)
            .read(|r| Ok((r.get_seq(), r.get_time_ms(), r.get_kind()?.to_string()?)))
            .unwrap();
        assert_eq!(read, (7, 99, "mint".to_owned()));
        let again = Body::new(&body).read(body_of).unwrap();
        assert_eq!(again, body, "canonical bytes are stable, or a foreign auditor's hash differs");
    }

    #[test]
    fn an_oversized_record_keeps_its_number_in_the_log() {
        let long = own_record(9, 1, "x", &"d".repeat(MAX_BODY)).unwrap();
        let segments = [long.as_slice()];
        let words = Body::new(segments[0]);
        let inner = [capnp::Word::words_to_bytes(&words.0)];
        let message = Reader::new(SegmentArray::new(&inner), ReaderOptions::new());
        let stored = body_of(message.get_root().unwrap()).unwrap();
        assert!(stored.len() < 1024);
        assert_eq!(Body::new(&stored).seq().unwrap(), 9);
    }

    #[test]
    fn hostile_bytes_are_an_error_and_never_a_panic() {
        for bytes in [vec![], vec![0xff; 8], vec![0xff; 4096], vec![1, 2, 3]] {
            let body = Body::new(&bytes);
            let _ = body.read(|r| Ok((r.get_seq(), r.get_detail()?.to_string())));
        }
    }
}
