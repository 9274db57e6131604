//! What each GPU is asked with, and what it shows. Pure.

use std::collections::BTreeSet;

use distos_abi::Fault;

/// What one GPU shows of itself, with a nonce that it was asked with. Verified by nobody here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// As NVIDIA's tools name it; empty if the driver does not know.
    pub(crate) arch: String,
    /// What the driver says of confidential computing: "on", "off", "devtools"; empty if nothing.
    pub(crate) mode: &'static str,
    /// Certificates in PEM, the device's own first, and the report; or why there is neither.
    pub(crate) signed: Result<Signed, String>,
}

impl Shown {
    /// Nothing, and why.
    pub(crate) fn nothing(why: String) -> Shown {
        Shown { arch: String::new(), mode: "", signed: Err(why) }
    }
}

/// What a GPU has signed, and by whose key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signed {
    pub(crate) chain: Vec<u8>,
    /// The request and the response, as NVML gives them in one.
    pub(crate) report: Vec<u8>,
}

/// Reads one nonce for each of so many GPUs.
///
/// # Errors
/// [`Fault::Malformed`]: there is another number of them, one is not 32 bytes long, or one is there twice: then one GPU's
/// answer would do for another's.
pub(crate) fn nonces<'a>(
    given: impl ExactSizeIterator<Item = &'a [u8]>,
    gpus: usize,
) -> Result<Vec<[u8; 32]>, Fault> {
    if given.len() != gpus {
        let given = given.len();
        return Err(Fault::malformed(format!("{given} nonces for {gpus} GPUs: one each")));
    }
    let read = |nonce: &[u8]| {
        let length = nonce.len();
        nonce
            .try_into()
            .map_err(|_| Fault::malformed(format!("a nonce of a GPU has 32 bytes, not {length}")))
    };
    let nonces: Vec<[u8; 32]> = given.map(read).collect::<Result<_, Fault>>()?;
    if nonces.iter().collect::<BTreeSet<_>>().len() < nonces.len() {
        return Err(Fault::malformed("a nonce is there twice: each GPU is asked with its own"));
    }
    Ok(nonces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gpu_is_asked_with_a_nonce_of_its_own_or_none_is() {
        let (one, other) = ([1u8; 32], [2u8; 32]);
        let of = |given: &[&[u8]], gpus| nonces(given.iter().copied(), gpus);
        assert_eq!(of(&[&one, &other], 2), Ok(vec![one, other]));
        assert_eq!(of(&[], 0), Ok(vec![]), "a machine without a GPU");
        for (given, gpus) in [
            (&[&one[..]][..], 2),
            (&[&one, &other], 1),
            (&[&one], 0),
            (&[&one, &one], 2),
            (&[&one[..31]], 1),
            (&[&[&one[..], &[0]].concat()[..]], 1),
            (&[&[][..]], 1),
        ] {
            assert_eq!(of(given, gpus).unwrap_err().code(), 16, "{given:?} for {gpus}");
        }
    }
}
