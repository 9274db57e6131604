//! Secrets in memory: each in a page of its own, which is locked (never swapped), excluded from
//! core files, not inherited by children, and erased before it is given back.
//!
//! It does not cover what computes with a secret: the copies that a signature or a cipher makes on
//! the stack last until it overwrites them.

use std::alloc::{Layout, handle_alloc_error};
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memmap2::{Advice, MmapMut};
use zeroize::Zeroize;

/// Bytes of a secret: a symmetric key, or the seed of a key pair.
pub const SECRET_BYTES: usize = 32;

/// A secret of any length, in pages that hold nothing else. Linux may refuse to protect them; the secret works then all the
/// same, and [`SecretBytes::exposure`] and [`SecretPages::now`] say so.
pub struct SecretBytes {
    /// As long as the secret, so that the rest of the last page stays out of reach; one byte if that is empty.
    pages: MmapMut,
    len: usize,
    exposure: Option<String>,
}

impl SecretBytes {
    /// Lets `fill` write a secret of so many bytes where it stays, so that no copy is left on the way. The pages are
    /// protected before. An error of `fill` is passed on, and what it wrote is erased.
    ///
    /// Without memory for the pages the process ends, as for any other memory: whoever calls bounds `len`.
    pub fn fill<E>(
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<SecretBytes, E> {
        let pages = MmapMut::map_anon(len.max(1))
            .unwrap_or_else(|_| handle_alloc_error(Layout::new::<[u8; SECRET_BYTES]>()));
        let exposure = protect(&pages);
        tally().count(exposure.as_deref());
        let mut secret = SecretBytes { pages, len, exposure };
        fill(&mut secret.pages[..len]).map(|()| secret)
    }

    /// The secret.
    pub fn expose(&self) -> &[u8] {
        &self.pages[..self.len]
    }

    /// Why the pages are not protected; `None` if they are.
    pub fn exposure(&self) -> Option<&str> {
        self.exposure.as_deref()
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.pages.zeroize();
        let mut tally = tally();
        tally.held -= 1;
        tally.exposed -= usize::from(self.exposure.is_some());
    }
}

impl std::fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretBytes(…)")
    }
}

/// A secret of [`SECRET_BYTES`] in a page that holds nothing else, protected as [`SecretBytes`] are.
#[derive(Debug)]
pub struct SecretPage(SecretBytes);

impl SecretPage {
    /// As [`SecretBytes::fill`].
    pub fn fill<E>(
        fill: impl FnOnce(&mut [u8; SECRET_BYTES]) -> Result<(), E>,
    ) -> Result<SecretPage, E> {
        let of_its_length =
            |place: &mut [u8]| fill(place.first_chunk_mut().expect("the page has this length"));
        SecretBytes::fill(SECRET_BYTES, of_its_length).map(SecretPage)
    }

    /// The secret.
    pub fn expose(&self) -> &[u8; SECRET_BYTES] {
        self.0.expose().first_chunk().expect("the page has this length")
    }

    /// Why the page is not protected; `None` if it is.
    pub fn exposure(&self) -> Option<&str> {
        self.0.exposure()
    }
}

/// Protects a page as far as Linux lets it, and returns the first thing that it did not.
fn protect(page: &MmapMut) -> Option<String> {
    let steps = [
        ("kept out of core files", page.advise(Advice::DontDump)),
        ("kept from children", page.advise(Advice::DontFork)),
        ("locked", page.lock()),
    ];
    steps.into_iter().find_map(|(step, done)| Some(format!("not {step}: {}", done.err()?)))
}

/// The secrets of this process. They are counted for the process as a whole because Linux limits
/// locked memory by process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretPages {
    /// How many there are.
    pub held: usize,
    /// How many of them are not protected.
    pub exposed: usize,
    /// Why the last one that could not be protected was not.
    pub why: Option<String>,
}

static TALLY: Mutex<SecretPages> = Mutex::new(SecretPages { held: 0, exposed: 0, why: None });

fn tally() -> MutexGuard<'static, SecretPages> {
    TALLY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SecretPages {
    /// As they stand.
    pub fn now() -> SecretPages {
        tally().clone()
    }

    /// Whether a page for a secret can be protected here; if not, why.
    ///
    /// # Errors
    /// The step that failed, in Linux's words.
    pub fn trial() -> Result<(), String> {
        let Ok(page) = SecretPage::fill::<Infallible>(|_| Ok(()));
        page.exposure().map_or(Ok(()), |why| Err(why.to_owned()))
    }

    fn count(&mut self, exposure: Option<&str>) {
        self.held += 1;
        if let Some(why) = exposure {
            self.exposed += 1;
            self.why = Some(why.to_owned());
        }
    }
}
