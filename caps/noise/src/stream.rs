//! Sessions over byte streams.
//!
//! Whoever wants a session calls [`connect`]. A vat reads the first four bytes of a stream itself, and calls [`accept`] if
//! they are [`HELLO`]. Both then have a reader and a writer of plain bytes; none is handed out before the whole frame
//! that it came in was checked.

use std::fmt;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use distos_abi::{Fault, HolderKey};
use distos_types::HolderSecret;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use zeroize::Zeroizing;

use crate::card::{CARD_BYTES, Card, Place};
use crate::handshake::{Initiator, MESSAGE_1_BYTES, MESSAGE_2_BYTES, Own};
use crate::session::{MAX_PLAIN_BYTES, Opener, Sealer, Session, TAG_BYTES};
use distos_rpc::seal::HELLO;

const LENGTH_BYTES: usize = 2;
/// When to try again if the other side is gone or has no card.
const RETRY_MS: u64 = 1000;

/// A session of `holder` with the vat at `place`, at time `now_ms`, in milliseconds since the Unix epoch.
///
/// [`Fault::Unavailable`] if the vat has no card, says so whoever passes the stream on, or the other side goes away;
/// otherwise fails as [`Card::decode`], [`Initiator::begin`] and [`Initiator::finish`] do. Whoever cannot have a session
/// is not to go on without one.
pub async fn connect<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    mut reader: R,
    mut writer: W,
    place: &Place,
    holder: &HolderSecret,
    now_ms: u64,
) -> Result<(SealedReader<R>, SealedWriter<W>), Fault> {
    send(&mut writer, &HELLO).await?;
    let card = card(&mut reader, place).await?;
    let (initiator, message) = Initiator::begin(&card, place, holder, now_ms, &mut os_random)?;
    send(&mut writer, &sized(&message)).await?;
    let answer: [u8; MESSAGE_2_BYTES] = message_of(&mut reader, "the vat's answer").await?;
    Ok(sealed(reader, writer, initiator.finish(&answer)?))
}

/// A holder's session with this vat, and which holder it is, after whoever read [`HELLO`] has done so. That the holder is there,
/// and not somebody who recorded how it connected, shows only when the first byte can be read.
///
/// Without anything of its `own` the vat says that there is no session to be had, and this fails with
/// [`Fault::Unavailable`]; also if the other side goes away. Otherwise it fails as [`Own::answer`] does.
pub async fn accept<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    mut reader: R,
    mut writer: W,
    own: Option<&Own>,
) -> Result<(HolderKey, SealedReader<R>, SealedWriter<W>), Fault> {
    let Some(own) = own else {
        send(&mut writer, &[0; LENGTH_BYTES]).await?;
        return Err(Fault::unavailable(RETRY_MS, "this vat has no card to begin a session with"));
    };
    send(&mut writer, &sized(own.card())).await?;
    let message: [u8; MESSAGE_1_BYTES] =
        message_of(&mut reader, "the holder's first message").await?;
    let (session, holder, answer) = own.answer(&message, &mut os_random)?;
    send(&mut writer, &sized(&answer)).await?;
    let (reader, writer) = sealed(reader, writer, session);
    Ok((holder, reader, writer))
}

fn os_random(bytes: &mut [u8; 32]) -> Result<(), Fault> {
    getrandom::fill(bytes).map_err(Fault::internal)
}

fn sealed<R, W>(reader: R, writer: W, session: Session) -> (SealedReader<R>, SealedWriter<W>) {
    let (sealer, opener) = session.split();
    (SealedReader::new(reader, opener), SealedWriter::new(writer, sealer))
}

/// Behind its length. A card or a message: both are shorter than two bytes can say.
fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

async fn send<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> Result<(), Fault> {
    let sent = async {
        writer.write_all(bytes).await?;
        writer.flush().await
    };
    sent.await.map_err(|error: io::Error| {
        Fault::unavailable(RETRY_MS, format!("the other side took nothing more: {error}"))
    })
}

async fn card<R: AsyncRead + Unpin>(reader: &mut R, place: &Place) -> Result<Card, Fault> {
    let what = "the vat's card";
    let bytes = length(reader, what).await?;
    if bytes == 0 {
        let why = format!("{place} has no card: there is no session to be had with it now");
        return Err(Fault::unavailable(RETRY_MS, why));
    }
    if bytes != CARD_BYTES {
        return Err(Fault::malformed(format!("a card has {CARD_BYTES} bytes, and not {bytes}")));
    }
    let mut card = [0; CARD_BYTES];
    reader.read_exact(&mut card).await.map_err(gone(what))?;
    Card::decode(&card)
}

async fn message_of<const N: usize, R: AsyncRead + Unpin>(
    reader: &mut R,
    what: &'static str,
) -> Result<[u8; N], Fault> {
    let bytes = length(reader, what).await?;
    if bytes != N {
        return Err(Fault::malformed(format!("{what} has {N} bytes, and not {bytes}")));
    }
    let mut message = [0; N];
    reader.read_exact(&mut message).await.map_err(gone(what))?;
    Ok(message)
}

async fn length<R: AsyncRead + Unpin>(reader: &mut R, what: &'static str) -> Result<usize, Fault> {
    reader.read_u16().await.map(usize::from).map_err(gone(what))
}

fn gone(what: &'static str) -> impl Fn(io::Error) -> Fault {
    move |error| {
        let why = match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                format!("the other side went away before it had sent {what}")
            }
            _ => format!("{what} did not come: {error}"),
        };
        Fault::unavailable(RETRY_MS, why)
    }
}

/// Cap'n Proto passes on the text of what breaks its stream, so callers find the fault in it.
fn broken(fault: Fault) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, fault.to_wire())
}

/// Likewise.
fn cut() -> io::Error {
    let fault = Fault::unavailable(RETRY_MS, "the connection ended within what was said");
    io::Error::new(io::ErrorKind::UnexpectedEof, fault.to_wire())
}

/// What the other side sealed, as plain bytes.
///
/// Ends where the stream ends between two frames; that end is nobody's word. One within a frame is an error
/// ([`io::ErrorKind::UnexpectedEof`]), and so is a frame that is not the next that the other side sealed
/// ([`io::ErrorKind::InvalidData`]): nothing can be read after it. Holds at most one frame, sealed and plain; reads two
/// times for each, its length and the rest. What it held in plain is erased when it is dropped.
pub struct SealedReader<R> {
    inner: R,
    opener: Opener,
    /// The frame that is coming in, with its length; the first `have` bytes have come.
    frame: Vec<u8>,
    have: usize,
    /// The last frame that came; what is `left` of it has not been handed out.
    plain: Zeroizing<Vec<u8>>,
    left: Range<usize>,
}

impl<R> fmt::Debug for SealedReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedReader({:?}, {} bytes left)", self.opener, self.left.len())
    }
}

impl<R> SealedReader<R> {
    /// What `opener` opens of what `inner` reads.
    pub fn new(inner: R, opener: Opener) -> SealedReader<R> {
        let plain = Zeroizing::default();
        SealedReader { inner, opener, frame: Vec::new(), have: 0, plain, left: 0..0 }
    }

    /// How many bytes of the frame are to have come before it can be gone on with.
    fn wanted(&self) -> io::Result<usize> {
        let Some(length) = self.frame[..self.have].first_chunk::<LENGTH_BYTES>() else {
            return Ok(LENGTH_BYTES);
        };
        let bytes = usize::from(u16::from_be_bytes(*length));
        // One that holds nothing would be work for nothing, as often as the other side likes.
        if bytes <= TAG_BYTES {
            return Err(broken(Fault::malformed(format!(
                "a frame of {bytes} bytes holds nothing"
            ))));
        }
        Ok(LENGTH_BYTES + bytes)
    }

    /// Opens the frame, all of which has come.
    fn open(&mut self) -> io::Result<()> {
        let sealed = &self.frame[LENGTH_BYTES..self.have];
        let bytes = sealed.len() - TAG_BYTES;
        if self.plain.len() < bytes {
            // Another one in place of this, and not a longer one: a vector that grows leaves its bytes behind.
            self.plain = Zeroizing::new(vec![0; bytes.next_power_of_two()]);
        }
        let opened = self.opener.open(sealed, &mut self.plain).map_err(broken)?;
        self.left = 0..opened;
        self.have = 0;
        Ok(())
    }
}

impl<R: AsyncRead + Unpin> SealedReader<R> {
    /// Whether there was one more frame.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            let wanted = self.wanted()?;
            if self.have == wanted {
                return Poll::Ready(self.open().map(|()| true));
            }
            if self.frame.len() < wanted {
                self.frame.resize(wanted, 0);
            }
            let mut part = ReadBuf::new(&mut self.frame[self.have..wanted]);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part))?;
            match part.filled().len() {
                0 if self.have == 0 => return Poll::Ready(Ok(false)),
                0 => return Poll::Ready(Err(cut())),
                more => self.have += more,
            }
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for SealedReader<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.left.is_empty() && !ready!(this.poll_frame(cx))? {
            return Poll::Ready(Ok(()));
        }
        let bytes = this.left.len().min(buffer.remaining());
        let start = this.left.start;
        buffer.put_slice(&this.plain[start..start + bytes]);
        this.left.start += bytes;
        Poll::Ready(Ok(()))
    }
}

/// Seals plain bytes for the other side.
///
/// Each write is at most one frame, which is begun to be sent at once. What the stream below does not take waits here, and
/// goes with the next write, a flush or a shutdown: so whoever has written flushes. After an error nothing more is to be
/// written.
pub struct SealedWriter<W> {
    inner: W,
    sealer: Sealer,
    /// The frame that is going out; its first `sent` bytes have gone.
    frame: Vec<u8>,
    sent: usize,
}

impl<W> fmt::Debug for SealedWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedWriter({:?}, {} bytes waiting)", self.sealer, self.frame.len() - self.sent)
    }
}

impl<W> SealedWriter<W> {
    /// Writes to `inner` what `sealer` seals.
    pub fn new(inner: W, sealer: Sealer) -> SealedWriter<W> {
        SealedWriter { inner, sealer, frame: Vec::new(), sent: 0 }
    }

    /// Makes one frame of `plain`, when the one before has gone.
    fn seal(&mut self, plain: &[u8]) -> io::Result<()> {
        let bytes = plain.len() + TAG_BYTES;
        self.frame.resize(LENGTH_BYTES + bytes, 0);
        let (length, sealed) = self.frame.split_at_mut(LENGTH_BYTES);
        length.copy_from_slice(&(bytes as u16).to_be_bytes());
        let done = self.sealer.seal(plain, sealed);
        if done.is_err() {
            self.frame.clear();
        }
        done.map(|_| ()).map_err(broken)
    }
}

impl<W: AsyncWrite + Unpin> SealedWriter<W> {
    /// Sends what waits.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.frame.len() {
            let waiting = &self.frame[self.sent..];
            match ready!(Pin::new(&mut self.inner).poll_write(cx, waiting))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                more => self.sent += more,
            }
        }
        self.frame.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for SealedWriter<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        plain: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        let plain = &plain[..plain.len().min(MAX_PLAIN_BYTES)];
        if plain.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.seal(plain)?;
        // It is this side's to send from here on, whether or not the stream takes it at once.
        match self.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(plain.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
