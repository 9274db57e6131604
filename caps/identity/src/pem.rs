//! Certificates in text files (RFC 7468).

use distos_abi::Fault;
use x509_cert::der::pem::{Decoder, LineEnding, encode_string};

use crate::profile::MAX_CERTIFICATE_BYTES;

/// The longest file of certificates that is read, in bytes.
pub const MAX_PEM_BYTES: usize = 16 * 1024;
const LABEL: &str = "CERTIFICATE";
const END: &str = "-----END CERTIFICATE-----";

/// The certificates, DER, as text.
pub fn to_pem<T: AsRef<[u8]>>(certificates: &[T]) -> Result<String, Fault> {
    let text = |der: &T| encode_string(LABEL, LineEnding::LF, der.as_ref());
    certificates.iter().map(text).collect::<Result<String, _>>().map_err(Fault::internal)
}

/// Reads [`to_pem`]: certificates and nothing else, in DER. [`Fault::Malformed`] if there is anything
/// else, or too much.
pub fn from_pem(text: &str) -> Result<Vec<Vec<u8>>, Fault> {
    if text.len() > MAX_PEM_BYTES {
        return Err(Fault::malformed("this is no file of certificates: it is too long"));
    }
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let number = found.len() + 1;
        let wrong = || Fault::malformed(format!("certificate {number} of the file is broken"));
        let end = rest.find(END).ok_or_else(wrong)? + END.len();
        let (one, after) = rest.split_at(end);
        let mut decoder = Decoder::new(one.as_bytes()).map_err(|_| wrong())?;
        if decoder.type_label() != LABEL || decoder.remaining_len() > MAX_CERTIFICATE_BYTES {
            return Err(wrong());
        }
        let mut der = Vec::new();
        decoder.decode_to_end(&mut der).map_err(|_| wrong())?;
        found.push(der);
        rest = after.trim_start();
    }
    Ok(found)
}
