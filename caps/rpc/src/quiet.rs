//! A stranger's socket, which wakes the vat only while the stranger may have its turn.
//!
//! An event loop hears of each byte that comes to a socket in its set, and hearing costs more than a byte
//! does its sender. So this socket is in the set while somebody waits for it ([`Quiet::hear`]), and taken out
//! until the next turn ([`Quiet::hush`]). Once the stranger is a holder it stays in
//! ([`Quiet::settle`]).

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// A connected socket. Clones are the same socket; it is closed with the last of them.
#[derive(Clone)]
pub(crate) struct Quiet(Rc<RefCell<Socket>>);

struct Socket {
    state: State,
    /// Whether it is a holder's.
    settled: bool,
    /// Who waits until there is something to read, and until there is room to write, while this is a
    /// stranger's.
    reader: Option<Waker>,
    writer: Option<Waker>,
}

enum State {
    /// Not in the event loop's set.
    Out(StdStream),
    /// In it.
    In(UnixStream),
    /// An error of the event loop took it.
    Lost,
}

impl Quiet {
    /// `socket` must not block.
    pub(crate) fn new(socket: OwnedFd) -> Quiet {
        Quiet(Rc::new(RefCell::new(Socket {
            state: State::Out(socket.into()),
            settled: false,
            reader: None,
            writer: None,
        })))
    }

    /// Whatever happens to it wakes nobody until [`Quiet::hear`].
    pub(crate) fn hush(&self) {
        self.0.borrow_mut().take_out();
    }

    /// Wakes whoever waits for it as soon as there is a reason.
    pub(crate) fn hear(&self) -> io::Result<()> {
        self.0.borrow_mut().put_in()
    }

    /// The same for good: it is a holder's.
    pub(crate) fn settle(&self) -> io::Result<()> {
        self.0.borrow_mut().settle()
    }
}

/// Does what may be interrupted; `None` if it would block.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<Option<T>> {
    loop {
        match call() {
            Ok(done) => return Ok(Some(done)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

fn lost() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl Socket {
    /// Those who were woken no longer wait; the others go on to.
    fn take_out(&mut self) {
        let State::In(socket) = &self.state else { return };
        if self.settled {
            return;
        }
        let mut nobody = Context::from_waker(Waker::noop());
        if socket.poll_read_ready(&mut nobody).is_ready() {
            self.reader = None;
        }
        if socket.poll_write_ready(&mut nobody).is_ready() {
            self.writer = None;
        }
        if let State::In(socket) = std::mem::replace(&mut self.state, State::Lost) {
            self.state = socket.into_std().map_or(State::Lost, State::Out);
        }
    }

    /// Whoever waits is woken as soon as there is a reason.
    fn put_in(&mut self) -> io::Result<()> {
        self.take_out();
        if self.settled || self.reader.is_none() && self.writer.is_none() {
            return Ok(());
        }
        self.enter()
    }

    fn settle(&mut self) -> io::Result<()> {
        self.take_out();
        if !self.settled {
            self.settled = true;
            self.enter()?;
        }
        Ok(())
    }

    fn enter(&mut self) -> io::Result<()> {
        let State::Out(socket) = std::mem::replace(&mut self.state, State::Lost) else {
            return Err(lost());
        };
        let socket = UnixStream::from_std(socket)?;
        // The event loop looks at a socket that is new to it, so neither is ready before it has.
        if let Some(reader) = &self.reader {
            let _ = socket.poll_read_ready(&mut Context::from_waker(reader));
        }
        if let Some(writer) = &self.writer {
            let _ = socket.poll_write_ready(&mut Context::from_waker(writer));
        }
        self.state = State::In(socket);
        Ok(())
    }

    /// The socket, as long as it is a stranger's.
    fn strangers(&self) -> io::Result<BorrowedFd<'_>> {
        match &self.state {
            State::Out(socket) => Ok(socket.as_fd()),
            State::In(socket) => Ok(socket.as_fd()),
            State::Lost => Err(lost()),
        }
    }

    fn holders(&mut self) -> Option<Pin<&mut UnixStream>> {
        match &mut self.state {
            State::In(socket) if self.settled => Some(Pin::new(socket)),
            _ => None,
        }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(socket) = self.holders() {
            return socket.poll_read(cx, buffer);
        }
        let socket = self.strangers()?;
        if let Some(read) = retry(|| rustix::io::read(socket, buffer.initialize_unfilled()))? {
            buffer.advance(read);
            return Poll::Ready(Ok(()));
        }
        // Who was woken before is not who waits now.
        self.take_out();
        self.reader = Some(cx.waker().clone());
        self.put_in()?;
        Poll::Pending
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(socket) = self.holders() {
            return socket.poll_write(cx, bytes);
        }
        let socket = self.strangers()?;
        // That whoever reads is gone is an error, and no signal that ends this process.
        let sent = retry(|| rustix::net::send(socket, bytes, SendFlags::NOSIGNAL))?;
        if let Some(written) = sent {
            return Poll::Ready(Ok(written));
        }
        self.take_out();
        self.writer = Some(cx.waker().clone());
        self.put_in()?;
        Poll::Pending
    }
}

impl AsyncRead for Quiet {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Quiet {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut socket = self.0.borrow_mut();
        if let Some(socket) = socket.holders() {
            return socket.poll_shutdown(cx);
        }
        shutdown(socket.strangers()?, Shutdown::Write)?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (StdStream, Quiet) {
        let (theirs, ours) = StdStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (theirs, Quiet::new(ours.into()))
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test)
    }

    /// Counts how often whoever waits is woken.
    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Count {
        fn get(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    /// Lets the event loop hear of what there is.
    async fn rest() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }

    fn read(quiet: &mut Quiet, count: &Arc<Count>) -> Poll<usize> {
        let waker = Waker::from(count.clone());
        let mut room = [0; 16];
        let mut buffer = ReadBuf::new(&mut room);
        let read = Pin::new(quiet).poll_read(&mut Context::from_waker(&waker), &mut buffer);
        read.map(|read| read.map(|()| buffer.filled().len()).unwrap())
    }

    #[test]
    fn who_sends_byte_after_byte_wakes_the_vat_once_a_turn() {
        run(async {
            let (mut theirs, mut quiet) = pair();
            let woken = Arc::new(Count::default());
            assert!(read(&mut quiet, &woken).is_pending());
            theirs.write_all(&[1]).unwrap();
            rest().await;
            assert_eq!(woken.get(), 1);
            quiet.hush();
            for _ in 0..8 {
                theirs.write_all(&[1]).unwrap();
                rest().await;
            }
            assert_eq!(woken.get(), 1);
            quiet.hear().unwrap();
            assert_eq!(read(&mut quiet, &woken), Poll::Ready(9));
            assert!(read(&mut quiet, &woken).is_pending());
            rest().await;
            assert_eq!(woken.get(), 1, "there was nothing new");
        });
    }

    /// A turn may have come for another reason than what was waited for.
    #[test]
    fn who_was_not_woken_is_still_waiting_after_the_hush() {
        run(async {
            let (mut theirs, mut quiet) = pair();
            let woken = Arc::new(Count::default());
            assert!(read(&mut quiet, &woken).is_pending());
            quiet.hush();
            theirs.write_all(&[1]).unwrap();
            rest().await;
            assert_eq!(woken.get(), 0);
            quiet.hear().unwrap();
            rest().await;
            assert_eq!(woken.get(), 1);
            assert_eq!(read(&mut quiet, &woken), Poll::Ready(1));
            assert!(read(&mut quiet, &woken).is_pending());
            quiet.settle().unwrap();
            theirs.write_all(&[1]).unwrap();
            rest().await;
            assert_eq!(woken.get(), 2);
            assert_eq!(read(&mut quiet, &woken), Poll::Ready(1));
        });
    }

    #[test]
    fn who_does_not_read_is_waited_for_and_nothing_is_lost() {
        let (theirs, quiet) = pair();
        let text: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        let sent = text.clone();
        let reader = std::thread::spawn(move || {
            let mut theirs = theirs;
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).unwrap();
            all
        });
        run(async move {
            let (mut reading, mut writing) = (quiet.clone(), quiet.clone());
            let write = async {
                for (turn, part) in sent.chunks(50_000).enumerate() {
                    writing.write_all(part).await.unwrap();
                    if turn == 10 {
                        quiet.settle().unwrap();
                    }
                    quiet.hush();
                    quiet.hear().unwrap();
                }
                writing.shutdown().await.unwrap();
            };
            // Its end comes when the other side has read everything.
            let mut nothing = Vec::new();
            let (read, ()) = futures::join!(reading.read_to_end(&mut nothing), write);
            assert_eq!(read.unwrap(), 0);
        });
        assert!(reader.join().unwrap() == text);
    }
}
