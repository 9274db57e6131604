//! What makers publish of their certificates, in one file: told apart by what is in it, whatever it is called.

use crate::ocsp::Response;
use crate::pki::certificate::{Certificate, Crl, Refusal};

/// What was in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Certificates, in the order of the file.
    pub certificates: Vec<Certificate>,
    /// Lists of revoked certificates.
    pub crls: Vec<Crl>,
    /// What responders have said of certificates.
    pub responses: Vec<Response>,
}

impl Published {
    /// Reads a text of PEM with certificates and lists, or one certificate, list or response in DER. Nothing is in it if
    /// it looks like none of these.
    ///
    /// # Errors
    /// [`Refusal`] if it looks like one and cannot be read: a list or a response that was left out would take back nothing.
    pub fn read(bytes: &[u8]) -> Result<Published, Refusal> {
        const SEQUENCE: u8 = 0x30;
        let has = |label: &[u8]| bytes.windows(label.len()).any(|part| part == label);
        let mut read = Published::default();
        if has(b"-----BEGIN CERTIFICATE-----") {
            read.certificates = Certificate::several(bytes)?;
        }
        if has(b"-----BEGIN X509 CRL-----") {
            read.crls = Crl::several(bytes)?;
        }
        if !read.is_empty() || bytes.first() != Some(&SEQUENCE) {
            return Ok(read);
        }
        if Response::is_one(bytes) {
            return Published::taken_back(bytes);
        }
        match (Certificate::from_der(bytes), Crl::from_der(bytes)) {
            (Ok(one), _) => read.certificates.push(one),
            (_, Ok(one)) => read.crls.push(one),
            (Err(why), Err(_)) => return Err(why),
        }
        Ok(read)
    }

    /// Reads one list or response in DER.
    ///
    /// # Errors
    /// [`Refusal`] if it is neither.
    pub fn taken_back(der: &[u8]) -> Result<Published, Refusal> {
        let mut read = Published::default();
        if Response::is_one(der) {
            read.responses.push(Response::from_der(der)?);
        } else {
            read.crls.push(Crl::from_der(der)?);
        }
        Ok(read)
    }

    /// Whether nothing was in it.
    pub fn is_empty(&self) -> bool {
        self.certificates.is_empty() && self.crls.is_empty() && self.responses.is_empty()
    }
}
