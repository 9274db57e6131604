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

/// A secret in a page that holds nothing else. Linux may refuse to protect the page; the secret
/// works then all the same, and [`SecretPage::exposure`] and [`SecretPages::now`] say so.
pub struct SecretPage {
    /// [`SECRET_BYTES`] long, so that the rest of the page stays out of reach.
    page: MmapMut,
    exposure: Option<String>,
}

impl SecretPage {
    /// Lets `fill` write the secret where it stays, so that no copy is left on the way. The page
    /// is protected before. An error of `fill` is passed on, and what it wrote is erased.
    ///
    /// Without memory for one more page the process ends, as for any other memory.
    pub fn fill<E>(
        fill: impl FnOnce(&mut [u8; SECRET_BYTES]) -> Result<(), E>,
    ) -> Result<SecretPage, E> {
        let page = MmapMut::map_anon(SECRET_BYTES)
            .unwrap_or_else(|_| handle_alloc_error(Layout::new::<[u8; SECRET_BYTES]>()));
        let exposure = protect(&page);
        tally().count(exposure.as_deref());
        let mut secret = SecretPage { page, exposure };
        fill(secret.bytes_mut()).map(|()| secret)
    }

    /// The secret.
    pub fn expose(&self) -> &[u8; SECRET_BYTES] {
        self.page.first_chunk().expect("the page has this length")
    }

    /// Why the page is not protected; `None` if it is.
    pub fn exposure(&self) -> Option<&str> {
        self.exposure.as_deref()
    }

    fn bytes_mut(&mut self) -> &mut [u8; SECRET_BYTES] {
        self.page.first_chunk_mut().expect("the page has this length")
    }
}

impl Drop for SecretPage {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        let mut tally = tally();
        tally.held -= 1;
        tally.exposed -= usize::from(self.exposure.is_some());
    }
}

impl std::fmt::Debug for SecretPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretPage(…)")
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
