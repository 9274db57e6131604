//! A task's three streams. stdin hands out exactly the promised number of bytes as they arrive
//! from the region; stdout is kept in memory up to its limit; stderr keeps its first bytes for
//! the fault text.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use distos_abi::Fault;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

/// Chunks that may wait between the reader of the region and the program.
const CHUNKS_WAITING: usize = 1;

/// The writing end of a task's stdin. A fault that is sent ends the task with that fault;
/// dropping it before all bytes were sent ends the task as cancelled.
pub type Feed = mpsc::Sender<Result<Bytes, Fault>>;

/// A stdin of exactly `total` bytes.
pub fn stdin(total: u64) -> (Feed, Stdin) {
    let (feed, chunks) = mpsc::channel(CHUNKS_WAITING);
    let source = Source { chunks, current: Bytes::new(), remaining: total, fault: None };
    (feed, Stdin(Arc::new(Mutex::new(source))))
}

/// The program's end of stdin. Clones share one position.
#[derive(Clone)]
pub struct Stdin(Arc<Mutex<Source>>);

struct Source {
    chunks: mpsc::Receiver<Result<Bytes, Fault>>,
    current: Bytes,
    remaining: u64,
    fault: Option<Fault>,
}

impl Stdin {
    /// The fault that ended the stream, if one did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.source().fault.clone()
    }

    fn source(&self) -> MutexGuard<'_, Source> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.current.is_empty() && self.remaining > 0 && self.fault.is_none() {
            match self.chunks.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(chunk))) => self.accept(chunk),
                Poll::Ready(Some(Err(fault))) => self.fault = Some(fault),
                Poll::Ready(None) => {
                    self.fault = Some(Fault::unavailable(0, "the task was cancelled"));
                }
            }
        }
        Poll::Ready(())
    }

    /// Never more than the promised total, whatever the feeder sends.
    fn accept(&mut self, mut chunk: Bytes) {
        chunk.truncate(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        self.current = chunk;
    }

    fn take(&mut self, size: usize) -> StreamResult<Bytes> {
        if self.fault.is_some() {
            return Err(StreamError::trap("stdin ended"));
        }
        if self.remaining == 0 {
            return Err(StreamError::Closed);
        }
        let taken = self.current.split_to(size.min(self.current.len()));
        self.remaining -= taken.len() as u64;
        Ok(taken)
    }
}

#[async_trait]
impl Pollable for Stdin {
    async fn ready(&mut self) {
        poll_fn(|context| self.source().poll_ready(context)).await;
    }
}

impl InputStream for Stdin {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.source().take(size)
    }
}

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Stdin {
    /// Preview 1 reads through `p2_stream`; nothing else is linked.
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(tokio::io::empty())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

/// What happens to bytes beyond a sink's limit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beyond {
    /// The task ends.
    Ends,
    /// They are dropped.
    Dropped,
}

/// A bounded stdout or stderr. Clones share one buffer.
#[derive(Clone)]
pub(crate) struct Sink {
    limit: usize,
    beyond: Beyond,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    overflowed: bool,
}

/// The most that a program may write at once.
const WRITE_PERMIT_BYTES: usize = 64 * 1024;

impl Sink {
    pub(crate) fn new(limit: usize, beyond: Beyond) -> Sink {
        Sink { limit, beyond, kept: Arc::default() }
    }

    /// What was written, up to the limit.
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.kept().bytes)
    }

    /// Whether more was written than the limit allows.
    pub(crate) fn overflowed(&self) -> bool {
        self.kept().overflowed
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Pollable for Sink {
    async fn ready(&mut self) {}
}

impl OutputStream for Sink {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut kept = self.kept();
        let room = self.limit - kept.bytes.len();
        let fits = room.min(bytes.len());
        kept.bytes.extend_from_slice(&bytes[..fits]);
        if fits == bytes.len() {
            return Ok(());
        }
        kept.overflowed = true;
        match self.beyond {
            Beyond::Dropped => Ok(()),
            Beyond::Ends => Err(StreamError::trap("output limit")),
        }
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_PERMIT_BYTES)
    }
}

impl IsTerminal for Sink {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Sink {
    /// Preview 1 writes through `p2_stream`; nothing else is linked.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_never_reads_past_its_segments_even_if_more_is_sent() {
        let (feed, stdin) = stdin(5);
        feed.try_send(Ok(Bytes::from_static(b"hello, neighbour"))).unwrap();
        let mut source = stdin.source();
        assert!(source.poll_ready(&mut Context::from_waker(std::task::Waker::noop())).is_ready());
        assert_eq!(source.take(3).unwrap(), "hel");
        assert_eq!(source.take(100).unwrap(), "lo");
        assert!(matches!(source.take(1), Err(StreamError::Closed)));
    }

    #[test]
    fn an_input_cut_short_is_never_taken_for_its_end() {
        let (feed, stdin) = stdin(5);
        drop(feed);
        let mut source = stdin.source();
        assert!(source.poll_ready(&mut Context::from_waker(std::task::Waker::noop())).is_ready());
        assert!(matches!(source.take(1), Err(StreamError::Trap(_))));
        assert_eq!(source.fault.as_ref().map(Fault::name), Some("unavailable"));
    }
}
