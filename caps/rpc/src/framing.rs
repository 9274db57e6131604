//! Watches the framing of Cap'n Proto messages as their bytes come in, so that a message that is
//! too long ends the connection before any memory is set aside for it.
//!
//! A message is a table, the number of segments less one and then each segment's length in words,
//! as 32-bit little-endian numbers padded to a whole word; and then the segments
//! (<https://capnproto.org/encoding.html#serialization-over-a-stream>).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures::AsyncRead;

use crate::admission::Stranger;

/// Most segments of a message: what the reader behind accepts.
const MAX_SEGMENTS: u32 = 512;

/// The lengths, in words, of messages whose table was seen and which the reader behind has not
/// been asked about.
pub(crate) type Lengths = Rc<RefCell<VecDeque<u64>>>;

/// How long a message may be, in words.
pub(crate) struct Longest {
    /// At any time.
    pub(crate) words: u64,
    /// Until the other side has shown that it holds a capability here. What a stranger announces
    /// takes memory and time from everybody, and a certificate chain is short.
    pub(crate) stranger: Option<Rc<Stranger>>,
}

/// The longest message of a stranger.
const STRANGERS_WORDS: u64 = (64 << 10) / 8;

impl Longest {
    fn words(&self) -> u64 {
        if self.of_a_stranger().is_some() { self.words.min(STRANGERS_WORDS) } else { self.words }
    }

    fn of_a_stranger(&self) -> Option<&Stranger> {
        self.stranger.as_deref().filter(|stranger| !stranger.restored.get())
    }
}

/// A stream of messages, none of which is too long.
pub(crate) struct Framed<R> {
    inner: R,
    frames: Frames,
}

impl<R> Framed<R> {
    pub(crate) fn new(inner: R, longest: Longest, lengths: Lengths) -> Framed<R> {
        let frames = Frames { longest, lengths, at: At::Table(Table::default()) };
        Framed { inner, frames }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Framed<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Framed { inner, frames } = &mut *self;
        let mut most = buffer.len();
        if let Some(stranger) = frames.longest.of_a_stranger() {
            most = most.min(stranger.may_read());
            // However much a stranger has sent, others have their turn in between.
            if most == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        let read = Pin::new(inner).poll_read(cx, &mut buffer[..most]);
        read.map(|read| {
            let read = read?;
            let ended = frames.take(&buffer[..read])?;
            if let Some(stranger) = frames.longest.of_a_stranger() {
                stranger.has_read(read, ended, frames.are_amid());
            }
            Ok(read)
        })
    }
}

/// Where in which message the stream stands.
struct Frames {
    longest: Longest,
    lengths: Lengths,
    at: At,
}

enum At {
    Table(Table),
    /// Within the segments: bytes that are still to come.
    Segments(u64),
}

/// A table of which a part has been seen.
#[derive(Default)]
struct Table {
    number: [u8; 4],
    have: usize,
    /// Numbers to come after the first, padding included; `None` before the first.
    left: Option<u32>,
    /// Of `left`, those that are lengths.
    lengths: u32,
    words: u64,
}

impl Frames {
    /// Whether a message has been begun and not ended.
    fn are_amid(&self) -> bool {
        match &self.at {
            At::Table(table) => table.have > 0 || table.left.is_some(),
            At::Segments(_) => true,
        }
    }

    /// Whether a message ended in these bytes.
    fn take(&mut self, mut bytes: &[u8]) -> io::Result<bool> {
        let mut ended = false;
        while !bytes.is_empty() {
            match &mut self.at {
                At::Segments(left) => {
                    let passed = (*left).min(bytes.len() as u64);
                    *left -= passed;
                    bytes = &bytes[passed as usize..];
                    if *left == 0 {
                        ended = true;
                        self.at = At::Table(Table::default());
                    }
                }
                At::Table(table) => {
                    if let Some(words) = table.push(bytes[0])? {
                        let longest = self.longest.words();
                        if words > longest {
                            let what =
                                format!("a message of {words} words is longer than {longest}");
                            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                        }
                        self.lengths.borrow_mut().push_back(words);
                        self.at = if words == 0 {
                            ended = true;
                            At::Table(Table::default())
                        } else {
                            At::Segments(words * 8)
                        };
                    }
                    bytes = &bytes[1..];
                }
            }
        }
        Ok(ended)
    }
}

impl Table {
    /// Takes one byte; the message's length once the table is complete.
    fn push(&mut self, byte: u8) -> io::Result<Option<u64>> {
        self.number[self.have] = byte;
        self.have += 1;
        if self.have < 4 {
            return Ok(None);
        }
        self.have = 0;
        let number = u32::from_le_bytes(self.number);
        let left = match self.left {
            None => {
                if number >= MAX_SEGMENTS {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a message of too many segments",
                    ));
                }
                self.lengths = number + 1;
                // With the first number, the table fills whole words.
                self.lengths + (self.lengths + 1) % 2
            }
            Some(left) => {
                if self.lengths > 0 {
                    self.lengths -= 1;
                    self.words += u64::from(number);
                }
                left - 1
            }
        };
        self.left = Some(left);
        Ok((left == 0).then_some(self.words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(max_words: u64) -> (Frames, Lengths) {
        let lengths = Lengths::default();
        let longest = Longest { words: max_words, stranger: None };
        (Frames { longest, lengths: lengths.clone(), at: At::Table(Table::default()) }, lengths)
    }

    fn message(segments: &[u32]) -> Vec<u8> {
        let mut bytes = (segments.len() as u32 - 1).to_le_bytes().to_vec();
        segments.iter().for_each(|words| bytes.extend(words.to_le_bytes()));
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.resize(bytes.len() + segments.iter().sum::<u32>() as usize * 8, 0xa5);
        bytes
    }

    #[test]
    fn every_message_is_measured_however_its_bytes_arrive() {
        let all = [vec![1], vec![2, 3], vec![0, 5, 1], vec![0], vec![4; 9]];
        let stream: Vec<u8> = all.iter().flat_map(|segments| message(segments)).collect();
        for step in [1, 3, 7, 64, stream.len()] {
            let (mut frames, lengths) = frames(100);
            stream.chunks(step).for_each(|bytes| {
                frames.take(bytes).unwrap();
            });
            assert_eq!(*lengths.borrow(), [1, 5, 6, 0, 36]);
        }
    }

    #[test]
    fn what_the_library_writes_is_measured_as_the_library_reads_it() {
        let mut builder = capnp::message::Builder::new_default();
        builder.set_root::<capnp::data::Owned>(&[7u8; 100_000][..]).unwrap();
        let bytes = capnp::serialize::write_message_to_words(&builder);
        let (mut frames, lengths) = frames(20_000);
        frames.take(&bytes).unwrap();
        frames.take(&bytes).unwrap();
        assert_eq!(lengths.borrow().len(), 2);
        let table = (bytes.len() as u64 / 8) - lengths.borrow()[0];
        assert!((1..=2).contains(&table));
    }

    #[test]
    fn a_message_that_would_be_too_long_is_refused_by_its_table_alone() {
        let (mut frames, _) = frames(10);
        assert!(frames.take(&message(&[10])).is_ok());
        assert!(frames.take(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f]).is_err());
        let (mut frames, _) = self::frames(10);
        assert!(frames.take(&[2, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0]).is_err());
        let (mut frames, _) = self::frames(10);
        assert!(frames.take(&[0xff, 0xff, 0, 0]).is_err());
    }

    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[test]
    fn of_a_stranger_little_is_read_in_a_turn_and_whoever_waits_for_more_is_woken() {
        let stranger = Rc::new(Stranger::default());
        let longest = Longest { words: 100_000, stranger: Some(stranger.clone()) };
        let sent = message(&[4096]);
        let mut framed =
            Framed::new(futures::io::Cursor::new(sent.clone()), longest, Lengths::default());
        let count = std::sync::Arc::new(Count::default());
        let waker = std::task::Waker::from(count.clone());
        let woken = || count.0.swap(0, std::sync::atomic::Ordering::Relaxed);
        let mut buffer = [0; 10_000];
        let mut turn = |most: usize| {
            stranger.begin_turn();
            let (mut got, mut cx) = (0, Context::from_waker(&waker));
            while let Poll::Ready(read) =
                Pin::new(&mut framed).poll_read(&mut cx, &mut buffer[..most])
            {
                match read.unwrap() {
                    0 => break,
                    read => got += read,
                }
            }
            got
        };
        assert_eq!((turn(10_000), woken()), (4096, 1), "as much as a turn has");
        assert_eq!((turn(1), woken()), (2, 1), "two reads, however short");
        stranger.restored.set(true);
        assert_eq!((turn(10_000), woken()), (sent.len() - 4098, 0), "a holder's, to its end");
    }

    #[test]
    fn a_stranger_announces_no_long_message_and_a_holder_may() {
        let stranger = Rc::new(Stranger::default());
        let longest = || Longest { words: 100_000, stranger: Some(stranger.clone()) };
        let frames = || Frames {
            longest: longest(),
            lengths: Lengths::default(),
            at: At::Table(Table::default()),
        };
        let announced = |words: u32| [0, words].map(u32::to_le_bytes).concat();
        assert!(frames().take(&announced(8192)).is_ok(), "a chain does not get through");
        assert!(frames().take(&announced(8193)).is_err());
        stranger.restored.set(true);
        assert!(frames().take(&announced(100_000)).is_ok());
        assert!(frames().take(&announced(100_001)).is_err());
    }
}
