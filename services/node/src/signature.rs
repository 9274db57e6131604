//! Signed images: whose signature a node takes. What the signature file beside an image says, and what is signed, is a
//! [`DetachedSignature`](distos_identity::DetachedSignature) over an [`IMAGE`].
//!
//! Pure. What it does not do: a signature covers the image's bytes and nothing that they name. A program
//! that an image names by its path is whatever stands there at boot.

use distos_abi::{Fault, HolderKey};

/// What an image is to whoever signs it.
pub const IMAGE: &str = "image";

/// What a node's directory says about whose images it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The one signer whose images are taken.
    pub pinned: Option<HolderKey>,
    /// Whether a kernel has run in the directory. From then on no signer is taken unasked: a pin
    /// that is lost must not be replaced by whoever comes first.
    pub booted: bool,
}

/// What booting an image makes of a directory's pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// It stays as it is.
    Stays,
    /// The image's signer is pinned on first use.
    First,
    /// The image's signer is pinned because the operator named it.
    Named,
}

impl Trust {
    /// Whether an image signed by `signer` boots here; the operator may have `named` whose images
    /// are to be taken from now on. [`Fault::Unauthenticated`] if it does not.
    pub fn admit(&self, signer: HolderKey, named: Option<HolderKey>) -> Result<Pin, Fault> {
        let refuse = |why: String| Err(Fault::Unauthenticated(why));
        match (named, self.pinned) {
            (Some(named), _) if named != signer => {
                refuse(format!("the image is signed by {signer}, and --signer names {named}"))
            }
            (Some(_), pinned) if pinned != Some(signer) => Ok(Pin::Named),
            (_, Some(pinned)) if pinned != signer => refuse(format!(
                "the image is signed by {signer}, and this node takes images of {pinned} only: \
                 name the signer with --signer PUBFILE, or with `distos image trust PUBFILE`, if \
                 that is to change"
            )),
            (_, Some(_)) => Ok(Pin::Stays),
            (_, None) if self.booted => refuse(format!(
                "the image is signed by {signer}, and no signer is pinned in this node's \
                 directory, which was booted before: name the signer with --signer PUBFILE, or \
                 with `distos image trust PUBFILE`"
            )),
            (_, None) => Ok(Pin::First),
        }
    }

    /// Whether an image without a signature boots here, the operator having asked for it.
    /// [`Fault::Unauthenticated`] if a signer is pinned.
    pub fn admit_unsigned(&self) -> Result<Pin, Fault> {
        match self.pinned {
            None => Ok(Pin::Stays),
            Some(pinned) => Err(Fault::Unauthenticated(format!(
                "this node takes images of {pinned} only: --unsigned is for directories without a \
                 pinned signer"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use distos_types::HolderSecret;

    use super::*;

    fn key(seed: u8) -> HolderKey {
        HolderSecret::from_seed([seed; 32]).key()
    }

    #[test]
    fn only_the_first_boot_of_a_directory_takes_a_signer_unasked() {
        let (ours, theirs) = (key(1), key(2));
        let new = Trust { pinned: None, booted: false };
        let lost = Trust { pinned: None, booted: true };
        let pinned = |booted| Trust { pinned: Some(ours), booted };
        assert_eq!(new.admit(ours, None), Ok(Pin::First));
        assert_eq!(new.admit_unsigned(), Ok(Pin::Stays));
        assert_eq!(lost.admit_unsigned(), Ok(Pin::Stays));
        assert_eq!(lost.admit(ours, None).unwrap_err().code(), 22);
        for booted in [false, true] {
            assert_eq!(pinned(booted).admit(ours, None), Ok(Pin::Stays));
            assert_eq!(pinned(booted).admit(theirs, None).unwrap_err().code(), 22);
            assert_eq!(pinned(booted).admit_unsigned().unwrap_err().code(), 22);
        }
    }

    #[test]
    fn an_operator_changes_the_signer_by_its_name_and_only_to_whom_the_image_is_by() {
        let (ours, theirs) = (key(1), key(2));
        for pinned in [None, Some(ours)] {
            let trust = Trust { pinned, booted: true };
            assert_eq!(trust.admit(theirs, Some(theirs)), Ok(Pin::Named));
            assert_eq!(trust.admit(ours, Some(theirs)).unwrap_err().code(), 22);
            assert_eq!(trust.admit(theirs, Some(ours)).unwrap_err().code(), 22);
        }
        let trust = Trust { pinned: Some(ours), booted: true };
        assert_eq!(trust.admit(ours, Some(ours)), Ok(Pin::Stays));
    }
}
