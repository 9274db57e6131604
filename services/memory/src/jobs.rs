//! What reads and writes do with the disk, the cipher and the hash: work that any thread can do,
//! with all that it needs taken along, and the threads that do most of it.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use distos_abi::{Fault, ObjectId};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::disk::{Disk, Name};
use crate::error::StoreError;
use crate::recent::Recent;
use crate::sealed::{self, Address, HEADER, PAGE, PageHash, RegionKey, SEALED, STRIDE};
use crate::state::{Page, Place, Plain, Span};

const SEALERS: usize = 2;
/// Why a region whose key is damaged cannot be read.
pub(crate) const LOST_KEY: &str = "the region's key is damaged, its content cannot be read";

/// Where a page's content comes from, in terms that another thread can use.
pub(crate) enum Source {
    Zeros,
    Disk { slot: u32, address: Address, hash: PageHash },
    Ram { plain: Plain, page: u32, hash: PageHash },
}

impl Source {
    pub(crate) fn of(
        object: ObjectId,
        number: u32,
        page: Option<&Page>,
        recent: &mut Recent,
    ) -> Source {
        let Some(page) = page else { return Source::Zeros };
        let ram = |plain| Source::Ram { plain, page: number, hash: page.hash };
        match &page.place {
            Place::Disk(slot) => match recent.get(object, number, page.version) {
                Some(plain) => ram(plain),
                None => Source::Disk {
                    slot: slot.number(),
                    address: Address { region: object.0, page: number, version: page.version },
                    hash: page.hash,
                },
            },
            Place::Ram(plain) => ram(plain.clone()),
        }
    }

    /// Copies the page's bytes from `start` into `into`, if the whole page is what it should be.
    fn copy(
        &self,
        disk: &dyn Disk,
        key: Option<&RegionKey>,
        start: usize,
        into: &mut [u8],
        buffer: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let damaged =
            |page: u32| Fault::Corrupt(format!("page {page} does not match its checksum"));
        let text = match self {
            Source::Zeros => {
                into.fill(0);
                return Ok(());
            }
            Source::Ram { plain, page, hash } => {
                if blake3::hash(plain) != *hash {
                    return Err(damaged(*page));
                }
                &plain[..]
            }
            Source::Disk { slot, address, hash } => {
                let key = key.ok_or_else(|| Fault::Corrupt(LOST_KEY.to_owned()))?;
                buffer.resize(SEALED, 0);
                disk.read(Name::Extents, u64::from(*slot) * STRIDE, buffer)
                    .map_err(|error| unreadable(disk, address.page, &error))?;
                sealed::open(key, *address, hash, buffer).ok_or_else(|| damaged(address.page))?
            }
        };
        into.copy_from_slice(&text[start..start + into.len()]);
        Ok(())
    }
}

fn unreadable(disk: &dyn Disk, page: u32, error: &std::io::Error) -> Fault {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Fault::Corrupt(format!("page {page} is missing from the extent file"))
        }
        _ => StoreError::io(&disk.name(), &format!("read page {page}"), error).into(),
    }
}

/// A read, with all that it needs: the pages as they were at one moment.
pub(crate) struct ReadJob {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) key: Option<Arc<RegionKey>>,
    /// Which part of which page, and where that page is.
    pub(crate) parts: Vec<(Span, Source)>,
    /// Of all parts together.
    pub(crate) len: usize,
}

/// So many pages that are in memory are hashed in the time that it takes to hand them to another
/// thread and back.
const BRIEF_PAGES: usize = 1;
/// What was read.
pub(crate) struct Read {
    /// The bytes of the range.
    pub(crate) data: Vec<u8>,
    /// Pages that had to be opened, with their versions.
    pub(crate) opened: Vec<(u32, u64, Plain)>,
}

impl ReadJob {
    /// Whether it is done sooner than another thread is woken for it, and waits for no disk.
    pub(crate) fn is_brief(&self) -> bool {
        self.parts.len() <= BRIEF_PAGES
            && !self.parts.iter().any(|(_, source)| matches!(source, Source::Disk { .. }))
    }

    pub(crate) fn execute(self) -> Result<Read, Fault> {
        let mut data = vec![0; self.len];
        // What is read in one go by the megabyte is not soon read again.
        let keeps = self.parts.len() <= BRIEF_PAGES;
        let mut opened = Vec::new();
        let mut buffer = Zeroizing::new(Vec::new());
        for (span, source) in &self.parts {
            self.copy(span, source, &mut data, &mut buffer)?;
            if let (true, Source::Disk { address, .. }) = (keeps, source) {
                let plain = Zeroizing::new(buffer[HEADER..HEADER + PAGE].to_vec());
                opened.push((address.page, address.version, Arc::new(plain)));
            }
        }
        Ok(Read { data, opened })
    }

    fn copy(
        &self,
        span: &Span,
        source: &Source,
        data: &mut [u8],
        buffer: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let into = &mut data[span.at..span.at + span.len];
        source.copy(&*self.disk, self.key.as_deref(), span.start, into, buffer)
    }
}

/// One page's part of a read, and its hash.
pub(crate) struct Piece {
    pub(crate) hash: PageHash,
    pub(crate) bytes: Bytes,
}

/// A page that was never written.
static NOTHING: [u8; PAGE] = [0; PAGE];
static NOTHINGS_HASH: LazyLock<PageHash> = LazyLock::new(|| *blake3::hash(&NOTHING).as_bytes());

/// A page in memory, for whoever sends it.
struct InMemory(Plain);

impl AsRef<[u8]> for InMemory {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl ReadJob {
    /// Whether all of it is there page by page without any work.
    pub(crate) fn is_at_hand(&self) -> bool {
        self.parts.iter().all(|(span, source)| {
            span.is_whole() && matches!(source, Source::Zeros | Source::Ram { .. })
        })
    }

    /// The same page by page, each with its hash. Of a whole page that is the one that it had when it was written: if it is
    /// in memory, whoever gets it checks it (M2), and it is not copied.
    pub(crate) fn pieces(self) -> Result<Vec<Piece>, Fault> {
        let mut buffer = Zeroizing::new(Vec::new());
        let piece = |(span, source): &(Span, Source)| {
            match source {
                Source::Zeros if span.is_whole() => {
                    return Ok(Piece { hash: *NOTHINGS_HASH, bytes: Bytes::from_static(&NOTHING) });
                }
                Source::Ram { plain, hash, .. } if span.is_whole() => {
                    let bytes = Bytes::from_owner(InMemory(plain.clone()));
                    return Ok(Piece { hash: *hash, bytes });
                }
                _ => {}
            }
            let mut bytes = vec![0; span.len];
            source.copy(&*self.disk, self.key.as_deref(), span.start, &mut bytes, &mut buffer)?;
            let hash = match source {
                Source::Disk { hash, .. } if span.is_whole() => *hash,
                _ => *blake3::hash(&bytes).as_bytes(),
            };
            Ok(Piece { hash, bytes: bytes.into() })
        };
        self.parts.iter().map(piece).collect()
    }
}

/// A read that needs nothing but the processor: the pages as they are at this moment.
pub struct ReadNow(pub(crate) ReadJob);

impl ReadNow {
    /// Copies the bytes of the range into `into`, which is as long. Every page is checked against
    /// its hash (M2).
    ///
    /// # Errors
    /// [`Fault::Corrupt`] if a page is not what it should be; then `into` holds nothing of it.
    pub fn copy_into(&self, into: &mut [u8]) -> Result<(), Fault> {
        let mut buffer = Zeroizing::new(Vec::new());
        self.0
            .parts
            .iter()
            .try_for_each(|(span, source)| self.0.copy(span, source, into, &mut buffer))
    }
}

/// What a write does to one page.
pub(crate) struct WritePart {
    /// Which of its bytes.
    pub(crate) span: Span,
    /// What the page's other bytes are.
    pub(crate) old: Source,
    /// What it is sealed as.
    pub(crate) address: Address,
    /// Where to; `None` if the region is volatile.
    pub(crate) slot: Option<u32>,
}

/// A write, with all that it needs, up to its publication.
pub(crate) struct WriteJob {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) key: Option<Arc<RegionKey>>,
    pub(crate) parts: Vec<WritePart>,
    /// Of all parts together.
    pub(crate) data: Vec<u8>,
}

/// A page that stands in its slot, or in memory.
pub(crate) struct Written {
    /// Of its plain text.
    pub(crate) hash: PageHash,
    /// The text, if it is in memory.
    pub(crate) plain: Option<Plain>,
}

impl WriteJob {
    pub(crate) fn execute(self) -> Result<Vec<Written>, Fault> {
        let mut nonces = vec![[0; 24]; self.parts.len()];
        random(nonces.as_flattened_mut())?;
        let mut buffer = vec![0; SEALED];
        let mut scratch = Zeroizing::new(Vec::new());
        let parts = self.parts.iter().zip(nonces);
        parts.map(|(part, nonce)| self.part(part, nonce, &mut buffer, &mut scratch)).collect()
    }

    fn part(
        &self,
        part: &WritePart,
        nonce: [u8; 24],
        buffer: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<Written, Fault> {
        let key = self.key.as_deref();
        let span = part.span;
        let text = &mut buffer[HEADER..HEADER + PAGE];
        if !span.is_whole() {
            part.old.copy(&*self.disk, key, 0, text, scratch)?;
        }
        text[span.start..span.start + span.len]
            .copy_from_slice(&self.data[span.at..span.at + span.len]);
        let Some(slot) = part.slot else {
            let hash = *blake3::hash(text).as_bytes();
            return Ok(Written { hash, plain: Some(Arc::new(Zeroizing::new(text.to_vec()))) });
        };
        let key = key.ok_or_else(|| Fault::Corrupt(LOST_KEY.to_owned()))?;
        let hash = sealed::seal(key, part.address, nonce, buffer);
        self.disk
            .write(Name::Extents, u64::from(slot) * STRIDE, buffer)
            .map_err(|error| StoreError::io(&self.disk.name(), "write a page", &error))?;
        Ok(Written { hash, plain: None })
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads for work that would hold up the RPC thread.
pub(crate) struct Sealers {
    jobs: Sender<Job>,
}

impl Sealers {
    /// Starts them; they end with this value.
    pub(crate) fn start() -> std::io::Result<Sealers> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..SEALERS {
            let queue = queue.clone();
            std::thread::Builder::new().name("seal".into()).spawn(move || {
                while let Some(job) = next_job(&queue) {
                    job();
                }
            })?;
        }
        Ok(Sealers { jobs })
    }

    /// Has one of them do it.
    ///
    /// # Errors
    /// [`Fault::Internal`] if it has ended early.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move || {
            // A caller that went away needs no answer.
            let _ = reply.send(work());
        });
        let gone = || Fault::internal("a sealing thread is gone");
        self.jobs.send(job).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

fn next_job(queue: &Mutex<Receiver<Job>>) -> Option<Job> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// Fills `bytes` with random ones.
///
/// # Errors
/// The operating system has none.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), StoreError> {
    getrandom::fill(bytes).map_err(|error| StoreError::Io {
        what: "get random bytes".into(),
        error: error.to_string(),
    })
}
