//! Sessions over streams that anybody may pass on, slow down, cut or change.

use std::future::Future;
use std::io;
use std::time::Duration;

use distos_abi::{Fault, HolderKey};
use distos_noise::stream::{SealedReader, SealedWriter, accept, connect};
use distos_noise::{CARD_BYTES, HELLO, MAX_PLAIN_BYTES, Own};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex,
    split,
};

use crate::relay::{self, From};
use crate::world::{NOW, memory, node, place, secret, vat_at};

type End = (SealedReader<ReadHalf<DuplexStream>>, SealedWriter<WriteHalf<DuplexStream>>);

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(test)
}

async fn holder(stream: DuplexStream) -> Result<End, Fault> {
    let (reader, writer) = split(stream);
    connect(reader, writer, &memory(), &secret(9), NOW).await
}

async fn vat(stream: DuplexStream, own: Option<&Own>) -> Result<(HolderKey, End), Fault> {
    let (mut reader, writer) = split(stream);
    let mut hello = [0; 4];
    reader.read_exact(&mut hello).await.map_err(Fault::internal)?;
    if hello != HELLO {
        return Err(Fault::malformed("it wants no session"));
    }
    let (holder, reader, writer) = accept(reader, writer, own).await?;
    Ok((holder, (reader, writer)))
}

async fn pair(bytes: usize) -> (End, End) {
    let own = vat_at(&memory());
    let (left, right) = duplex(bytes);
    let (holder, vat) = tokio::join!(holder(left), vat(right, Some(&own)));
    let (key, vat) = vat.unwrap();
    assert_eq!(key, secret(9).key());
    (holder.unwrap(), vat)
}

/// Bytes that are other ones everywhere.
fn text(bytes: usize, seed: u32) -> Vec<u8> {
    (0..bytes as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24) as u8)
        .collect()
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), text: &[u8]) {
    writer.write_all(text).await.unwrap();
    writer.shutdown().await.unwrap();
}

async fn read(reader: &mut (impl AsyncRead + Unpin)) -> (Vec<u8>, io::Result<usize>) {
    let mut read = Vec::new();
    let ended = reader.read_to_end(&mut read).await;
    (read, ended)
}

#[test]
fn everything_arrives_both_ways_at_once_however_little_the_stream_takes() {
    for (pipe, bytes) in [(1, 3_000), (7, 70_000), (64 << 10, 3 << 20)] {
        run(async {
            let (mut holder, mut vat) = pair(pipe).await;
            let (there, back) = (text(bytes, 1), text(bytes + 13, 2));
            let ((), (), at_vat, at_holder) = tokio::join!(
                write(&mut holder.1, &there),
                write(&mut vat.1, &back),
                read(&mut vat.0),
                read(&mut holder.0),
            );
            assert!(at_vat.0 == there && at_vat.1.unwrap() == there.len());
            assert!(at_holder.0 == back && at_holder.1.unwrap() == back.len());
        });
    }
}

#[test]
fn a_frame_holds_what_one_write_had_as_far_as_it_goes() {
    run(async {
        let (mut holder, mut vat) = pair(200 << 10).await;
        let long = text(100_000, 3);
        assert_eq!(holder.1.write(&[]).await.unwrap(), 0);
        assert_eq!(holder.1.write(&long).await.unwrap(), MAX_PLAIN_BYTES);
        assert_eq!(holder.1.write(b"short").await.unwrap(), 5);
        holder.1.shutdown().await.unwrap();
        let mut buffer = vec![0; 100_000];
        assert_eq!(vat.0.read(&mut buffer[..0]).await.unwrap(), 0);
        assert_eq!(vat.0.read(&mut buffer[..9]).await.unwrap(), 9);
        assert_eq!(vat.0.read(&mut buffer[9..]).await.unwrap(), MAX_PLAIN_BYTES - 9);
        assert_eq!(buffer[..MAX_PLAIN_BYTES], long[..MAX_PLAIN_BYTES]);
        assert_eq!(vat.0.read(&mut buffer).await.unwrap(), 5);
        assert_eq!(vat.0.read(&mut buffer).await.unwrap(), 0);
        assert_eq!(vat.0.read(&mut buffer).await.unwrap(), 0, "the end stays the end");
        assert!(!format!("{:?}{:?}", vat.0, holder.1).contains("115, 104, 111"), "what was sent");
    });
}

/// Else a call that was given up at the wrong moment breaks every one after it.
#[test]
fn reading_and_writing_can_be_given_up_at_any_time() {
    run(async {
        let (mut holder, mut vat) = pair(3).await;
        let sent = text(2_000, 4);
        let writing = async {
            let mut rest = &sent[..];
            while !rest.is_empty() {
                let most = rest.len().min(90);
                tokio::select! {
                    biased;
                    written = holder.1.write(&rest[..most]) => rest = &rest[written.unwrap()..],
                    () = tokio::task::yield_now() => {}
                }
            }
            while tokio::select! {
                biased;
                done = holder.1.shutdown() => { done.unwrap(); false }
                () = tokio::task::yield_now() => true
            } {}
        };
        let reading = async {
            let (mut got, mut buffer) = (Vec::new(), [0; 50]);
            loop {
                tokio::select! {
                    biased;
                    read = vat.0.read(&mut buffer) => match read.unwrap() {
                        0 => return got,
                        read => got.extend_from_slice(&buffer[..read]),
                    },
                    () = tokio::task::yield_now() => {}
                }
            }
        };
        let ((), got) = tokio::join!(writing, reading);
        assert_eq!(got, sent);
    });
}

/// Else an application whose runtime has several threads could not have any.
#[test]
fn a_session_can_be_begun_and_used_on_any_thread() {
    fn goes_anywhere<T: Send>(what: T) -> T {
        what
    }
    let (own, place, key) = (vat_at(&memory()), memory(), secret(9));
    let (left, right) = duplex(64);
    let (reader, writer) = split(left);
    let connected = connect(reader, writer, &place, &key, NOW);
    let (reader, writer) = split(right);
    let accepted = accept(reader, writer, Some(&own));
    let skipping_hello = async {
        // The holder's end goes away, and so the vat's handshake ends.
        drop(goes_anywhere(connected));
        goes_anywhere(accepted).await
    };
    assert!(run(skipping_hello).is_err());
    run(async {
        let (holder, vat) = pair(64).await;
        goes_anywhere((holder, vat));
    });
}

#[test]
fn a_vat_without_a_card_says_so() {
    run(async {
        let (left, right) = duplex(64);
        let (holder, vat) = tokio::join!(holder(left), vat(right, None));
        for fault in [holder.unwrap_err(), vat.unwrap_err()] {
            assert!(matches!(fault, Fault::Unavailable { .. }), "{fault}");
            assert!(fault.to_string().contains("no card"), "{fault}");
        }
    });
}

const THERE: [&str; 3] = ["a word for the vat", "x", "and one more for it"];
const BACK: [&str; 3] = ["a word for the holder", "y", "and one more for them"];

/// How a session went of which every word went through a relay.
struct Outcome {
    /// What each read, and whether it then came to the end.
    at_vat: Option<(Vec<u8>, bool)>,
    at_holder: Option<(Vec<u8>, bool)>,
    /// What the relay saw.
    from_holder: Vec<u8>,
    from_vat: Vec<u8>,
}

/// One end's part: writes its words, a frame each, and reads what comes.
async fn talk(end: Result<End, Fault>, words: [&str; 3]) -> Option<(Vec<u8>, bool)> {
    let (mut reader, mut writer) = end.ok()?;
    let writing = async {
        for word in words {
            let _ = writer.write_all(word.as_bytes()).await;
            let _ = writer.flush().await;
        }
        let _ = writer.shutdown().await;
    };
    let ((), (read, ended)) = tokio::join!(writing, read(&mut reader));
    Some((read, ended.is_ok()))
}

/// A session with the byte changed that is the `flip`-th of what comes from one side.
async fn relayed(own: &Own, flip: Option<(From, usize)>) -> Outcome {
    let (left, relays_left) = duplex(8192);
    let (relays_right, right) = duplex(8192);
    let (from_holder, to_holder) = split(relays_left);
    let (from_vat, to_vat) = split(relays_right);
    let flips = |from| flip.filter(|(whose, _)| *whose == from).map(|(_, at)| at);
    // Whoever waits for bytes that do not come, because a length was changed, gives up; a busy machine is no reason to.
    let patience = Duration::from_millis(if flip.is_some() { 200 } else { 60_000 });
    let at_holder = async {
        let end = tokio::time::timeout(patience, holder(left)).await;
        talk(end.unwrap_or_else(|_| Err(Fault::unavailable(0, "late"))), THERE).await
    };
    let at_vat = async {
        let end = tokio::time::timeout(patience, vat(right, Some(own))).await;
        let end = end.unwrap_or_else(|_| Err(Fault::unavailable(0, "late")));
        talk(end.map(|(_, end)| end), BACK).await
    };
    let (at_holder, at_vat, from_holder, from_vat) = tokio::join!(
        at_holder,
        at_vat,
        relay::pass(from_holder, to_vat, flips(From::Holder)),
        relay::pass(from_vat, to_holder, flips(From::Vat)),
    );
    Outcome { at_vat, at_holder, from_holder, from_vat }
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn a_relay_reads_nothing_of_what_it_passes_on_nor_who_the_holder_is() {
    let own = vat_at(&memory());
    run(async {
        let outcome = relayed(&own, None).await;
        assert_eq!(outcome.at_vat, Some((THERE.concat().into_bytes(), true)));
        assert_eq!(outcome.at_holder, Some((BACK.concat().into_bytes(), true)));
        for passed in [&outcome.from_holder, &outcome.from_vat] {
            for word in THERE.iter().chain(&BACK).filter(|word| word.len() > 1) {
                assert!(!holds(passed, &word.as_bytes()[..6]), "{word}");
            }
            assert!(!holds(passed, &secret(9).key().0));
        }
    });
}

/// Every byte of the handshake and of the frames, in both directions, lengths included.
#[test]
fn a_relay_that_changes_any_byte_is_found_out_and_no_byte_of_that_frame_is_read() {
    let own = vat_at(&memory());
    run(async {
        let whole = relayed(&own, None).await;
        let prefixes = |words: [&str; 3]| {
            (0..words.len()).map(|n| words[..n].concat().into_bytes()).collect::<Vec<_>>()
        };
        for at in 0..whole.from_holder.len() {
            if let Some((read, ended)) = relayed(&own, Some((From::Holder, at))).await.at_vat {
                assert!(!ended && prefixes(THERE).contains(&read), "byte {at} from the holder");
            }
        }
        for at in 0..whole.from_vat.len() {
            if let Some((read, ended)) = relayed(&own, Some((From::Vat, at))).await.at_holder {
                assert!(!ended && prefixes(BACK).contains(&read), "byte {at} from the vat");
            }
        }
    });
}

#[test]
fn a_relay_that_drops_repeats_or_reorders_frames_is_found_out() {
    let own = vat_at(&memory());
    type Way = fn(&mut Vec<Vec<u8>>);
    let ways: [(&str, usize, Way); 5] = [
        ("drops the first", 0, |frames| drop(frames.remove(0))),
        ("drops one", 1, |frames| drop(frames.remove(1))),
        ("repeats one", 1, |frames| frames.insert(1, frames[0].clone())),
        ("reorders two", 0, |frames| frames.swap(0, 1)),
        ("adds an empty one", 1, |frames| frames.insert(1, [&[0, 16][..], &[0; 16]].concat())),
    ];
    for (what, good, way) in ways {
        run(async {
            let (left, relays_left) = duplex(8192);
            let (relays_right, right) = duplex(8192);
            let (from_holder, to_holder) = split(relays_left);
            let (from_vat, to_vat) = split(relays_right);
            let at_holder = async { talk(holder(left).await, THERE).await };
            let at_vat =
                async { talk(vat(right, Some(&own)).await.map(|(_, end)| end), BACK).await };
            let (_, at_vat, (), _) = tokio::join!(
                at_holder,
                at_vat,
                relay::pass_frames(from_holder, to_vat, HELLO.len(), 1, way),
                relay::pass(from_vat, to_holder, None),
            );
            let expected = THERE[..good].concat().into_bytes();
            assert_eq!(at_vat, Some((expected, false)), "a relay {what}");
        });
    }
}

#[test]
fn a_relay_that_answers_for_itself_is_refused() {
    let gateway = vat_at(&place(node(), "gateway"));
    run(async {
        let (left, right) = duplex(8192);
        let (holder, vat) = tokio::join!(holder(left), vat(right, Some(&gateway)));
        let fault = holder.unwrap_err();
        assert!(matches!(fault, Fault::Unauthenticated(_)), "{fault}");
        assert!(fault.to_string().contains("is not memory"), "{fault}");
        let fault = vat.unwrap_err();
        assert!(matches!(fault, Fault::Unavailable { .. }), "{fault}");
        assert!(fault.to_string().contains("went away before it had sent"), "{fault}");
    });
}

/// What both sides of a good session sent.
fn streams(own: &Own) -> (Vec<u8>, Vec<u8>) {
    let outcome = run(relayed(own, None));
    (outcome.from_holder, outcome.from_vat)
}

/// What becomes of a holder whom these bytes answer.
async fn reach(answers: &[u8]) -> Result<(), Fault> {
    let (place, key) = (memory(), secret(9));
    let connected = connect(answers, tokio::io::sink(), &place, &key, NOW);
    connected.await.map(|_| ())
}

#[test]
fn a_stream_that_ends_within_the_handshake_is_one_that_went_away() {
    let own = vat_at(&memory());
    let (from_holder, from_vat) = streams(&own);
    let handshake = HELLO.len() + 2 + 192;
    run(async {
        for len in HELLO.len()..handshake {
            let mut answered = Vec::new();
            let cut = &from_holder[HELLO.len()..len];
            let fault = accept(cut, &mut answered, Some(&own)).await.unwrap_err();
            assert!(matches!(fault, Fault::Unavailable { .. }), "{len}: {fault}");
            assert!(fault.to_string().contains("went away"), "{len}: {fault}");
        }
        for len in 0..own.card().len() + 2 + 2 {
            let fault = reach(&from_vat[..len]).await.unwrap_err();
            assert!(matches!(fault, Fault::Unavailable { .. }), "{len}: {fault}");
        }
        // A recording, whole: the vat answers it, and reads nothing of it.
        let replayed = &from_holder[HELLO.len()..];
        let (key, mut reader, _) = accept(replayed, tokio::io::sink(), Some(&own)).await.unwrap();
        assert_eq!(key, secret(9).key());
        let (got, ended) = read(&mut reader).await;
        assert!(got.is_empty());
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let recording = reach(&from_vat).await;
        assert!(matches!(recording, Err(Fault::Unauthenticated(_))));
    });
}

#[test]
fn lengths_that_are_none_are_refused_before_anything_is_set_aside_for_them() {
    let own = vat_at(&memory());
    run(async {
        for length in [0, 1, 191, 193, u16::MAX] {
            let bytes = length.to_be_bytes();
            let refused = accept(&bytes[..], tokio::io::sink(), Some(&own)).await.unwrap_err();
            assert!(matches!(refused, Fault::Malformed(_)), "{refused}");
        }
        for length in [CARD_BYTES as u16 + 1, u16::MAX] {
            let bytes = length.to_be_bytes();
            let refused = reach(&bytes).await;
            assert!(matches!(refused, Err(Fault::Malformed(_))));
        }
    });
}

#[test]
fn an_end_between_frames_is_the_end_and_one_within_a_frame_is_an_error() {
    run(async {
        let own = vat_at(&memory());
        for cut in 0..=20 {
            // "x" is 19 bytes: a length, a byte, a tag.
            let (left, mut relays_left) = duplex(8192);
            let (mut relays_right, right) = duplex(8192);
            let ends = async { tokio::join!(holder(left), vat(right, Some(&own))) };
            let (ends, _) = tokio::select! {
                ends = ends => (ends, ()),
                _ = tokio::io::copy_bidirectional(&mut relays_left, &mut relays_right) => panic!("ended"),
            };
            let (mut holder, (_, mut vat)) = (ends.0.unwrap(), ends.1.unwrap());
            holder.1.write_all(b"x").await.unwrap();
            holder.1.flush().await.unwrap();
            let mut frame = [0; 19];
            relays_left.read_exact(&mut frame).await.unwrap();
            relays_right.write_all(&frame[..cut.min(19)]).await.unwrap();
            relays_right.shutdown().await.unwrap();
            let (got, ended) = read(&mut vat.0).await;
            match cut {
                0 => assert!(got.is_empty() && ended.is_ok()),
                1..19 => {
                    assert!(got.is_empty(), "{cut}");
                    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{cut}");
                }
                _ => assert!(got == b"x" && ended.is_ok()),
            }
        }
    });
}
