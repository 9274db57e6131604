//! Decides which pulled records become entries. Pure.

use capnp::struct_list;
use distos_schemas::kernel_capnp::record;

use crate::record::{body_of, gap};
use crate::store::Incoming;

/// The entries for `records`, which were pulled by a log whose newest journal record is `last`.
/// A record that the log has is skipped: after a crash the kernel sends again what was not
/// acknowledged, and each record is in the log exactly once. Where numbers are missing, an entry
/// of kind "gap" says so. At most `max` records are looked at.
pub(crate) fn take(
    mut last: u64,
    records: struct_list::Reader<'_, record::Owned>,
    max: u32,
    now_ms: u64,
) -> capnp::Result<Vec<Incoming>> {
    let mut batch = Vec::new();
    for record in records.iter().take(max as usize) {
        let seq = record.get_seq();
        if seq <= last {
            continue;
        }
        if seq > last + 1 {
            batch.push((0, gap(now_ms, last + 1, seq - 1)?));
        }
        batch.push((seq, body_of(record)?));
        last = seq;
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Body;
    use distos_schemas::kernel_capnp::outbox;
    use proptest::prelude::*;

    fn taken(last: u64, seqs: &[u64]) -> Vec<(u64, String)> {
        let mut message = capnp::message::Builder::new_default();
        let results = message.init_root::<outbox::pull_results::Builder<'_>>();
        let mut records = results.init_records(seqs.len() as u32);
        for (n, seq) in seqs.iter().enumerate() {
            let mut record = records.reborrow().get(n as u32);
            record.set_seq(*seq);
            record.set_kind("mint");
        }
        let batch = take(last, records.into_reader(), 1024, 5).unwrap();
        let words = |(seq, body): (u64, Vec<u8>)| {
            let text = Body::new(&body)
                .read(|r| Ok(format!("{} {}", r.get_kind()?.to_str()?, r.get_detail()?.to_str()?)))
                .unwrap();
            (seq, text)
        };
        batch.into_iter().map(words).collect()
    }

    #[test]
    fn an_auditor_sees_that_records_are_missing() {
        let batch = taken(3, &[4, 7]);
        let seqs: Vec<u64> = batch.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(seqs, [4, 0, 7]);
        assert_eq!(batch[1].1, "gap journal records 5 to 6 never arrived");
    }

    #[test]
    fn a_log_that_starts_late_says_so() {
        assert_eq!(taken(0, &[1]).len(), 1);
        assert_eq!(taken(0, &[9])[0].1, "gap journal records 1 to 8 never arrived");
    }

    proptest! {
        #[test]
        fn no_record_is_ever_twice_in_the_log_whatever_the_kernel_sends(
            pulls in proptest::collection::vec(proptest::collection::vec(0u64..40, 0..20), 0..8)
        ) {
            let (mut last, mut log) = (0, Vec::new());
            for pull in pulls {
                for (seq, _) in taken(last, &pull) {
                    last = last.max(seq);
                    log.push(seq);
                }
            }
            let kept: Vec<u64> = log.into_iter().filter(|seq| *seq != 0).collect();
            prop_assert!(kept.windows(2).all(|w| w[0] < w[1]));
        }
    }
}
