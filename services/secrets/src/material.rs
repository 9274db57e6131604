//! What readings of dynamic secrets give: key pairs and certificates, made for one lease. Pure: randomness and time are
//! arguments.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use distos_abi::Fault;
use distos_types::{HolderSecret, SECRET_BYTES};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyIdMethod, KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SerialNumber, SignatureAlgorithm,
    SigningKey,
};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::barrier::Random;

/// An Ed25519 key in PKCS#8, up to its 32 bytes (RFC 8410, section 7).
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// Characters of Base64 in a line (RFC 7468, section 2).
const LINE: usize = 64;
/// How long an authority's own certificate holds, in seconds: ten years of 365 days. It is rotated before.
const AUTHORITY_S: u64 = 10 * 365 * 24 * 3600;
/// A certificate holds from this much before it was made, in seconds, for clocks that are behind.
const BEFORE_S: u64 = 60;

/// A new key pair: the private key in PKCS#8, as text (RFC 7468).
pub(crate) fn key_pair(random: Random<'_>) -> Result<Zeroizing<String>, Fault> {
    Ok(private_key(&HolderSecret::fill(|seed| random(seed))?))
}

/// A new authority that signs certificates of the secret `name`, as it is kept: its seed, then its certificate, DER.
pub(crate) fn authority(
    name: &str,
    now_ms: u64,
    random: Random<'_>,
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let secret = HolderSecret::fill(|seed| random(seed))?;
    let mut params = authority_params(name, &secret);
    let now_s = now_ms / 1000;
    valid(&mut params, now_s.saturating_sub(BEFORE_S), now_s + AUTHORITY_S, random)?;
    let certificate = params.self_signed(&Signing::of(&secret)).map_err(Fault::internal)?;
    let der = certificate.der();
    let mut value = Zeroizing::new(Vec::with_capacity(SECRET_BYTES + der.len()));
    value.extend(secret.seed());
    value.extend_from_slice(der);
    Ok(value)
}

/// A new key pair and a certificate of it by an authority that [`authority`] has made, which holds until `until_ms`: the
/// private key, the certificate, and the authority's, as text (RFC 7468). The certificate is for a client called `name`.
pub(crate) fn credential(
    name: &str,
    authority: &[u8],
    now_ms: u64,
    until_ms: u64,
    random: Random<'_>,
) -> Result<Zeroizing<String>, Fault> {
    let corrupt = || Fault::Corrupt("an authority's key is not what was kept".into());
    let (seed, der) = authority.split_first_chunk::<SECRET_BYTES>().ok_or_else(corrupt)?;
    let signer = HolderSecret::fill(|place| {
        *place = *seed;
        Ok::<(), Fault>(())
    })?;
    let secret = HolderSecret::fill(|seed| random(seed))?;
    let mut params = named(&secret, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    valid(&mut params, (now_ms / 1000).saturating_sub(BEFORE_S), until_ms / 1000, random)?;
    let issuer = authority_params(name, &signer);
    let issuer = rcgen::Issuer::from_params(&issuer, Signing::of(&signer));
    let own = params.signed_by(&Public(secret.key().0), &issuer).map_err(Fault::internal)?;
    let certificates = distos_identity::to_pem(&[own.der().as_ref(), der])?;
    let key = private_key(&secret);
    let mut text = Zeroizing::new(String::with_capacity(key.len() + certificates.len()));
    text.push_str(&key);
    text.push_str(&certificates);
    Ok(text)
}

/// The bytes of the private key stand nowhere else when this returns.
fn private_key(secret: &HolderSecret) -> Zeroizing<String> {
    let mut der = Zeroizing::new([0; PKCS8_ED25519.len() + SECRET_BYTES]);
    der[..PKCS8_ED25519.len()].copy_from_slice(&PKCS8_ED25519);
    der[PKCS8_ED25519.len()..].copy_from_slice(secret.seed());
    // 48 bytes are one line.
    let mut line = Zeroizing::new([0; LINE]);
    let written = BASE64.encode_slice(der.as_slice(), &mut *line);
    debug_assert_eq!(written, Ok(LINE));
    let line = std::str::from_utf8(&*line).expect("Base64 is ASCII");
    let parts = ["-----BEGIN PRIVATE KEY-----\n", line, "\n-----END PRIVATE KEY-----\n"];
    // Long enough from the start: a string that grows leaves its old bytes behind.
    let mut text = Zeroizing::new(String::with_capacity(parts.iter().map(|p| p.len()).sum()));
    parts.iter().for_each(|part| text.push_str(part));
    text
}

fn named(secret: &HolderSecret, name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let hash = blake3::hash(&secret.key().0);
    params.key_identifier_method = KeyIdMethod::PreSpecified(hash.as_bytes()[..20].to_vec());
    params
}

/// An authority's name follows from its key, so that its certificate and those it signs agree.
fn authority_params(name: &str, secret: &HolderSecret) -> CertificateParams {
    let mut params = named(secret, &format!("authority {}", &secret.key().to_string()[..16]));
    params.distinguished_name.push(DnType::OrganizationalUnitName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn valid(
    params: &mut CertificateParams,
    from_s: u64,
    until_s: u64,
    random: Random<'_>,
) -> Result<(), Fault> {
    let date = |s: u64| {
        let date = i64::try_from(s).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
        date.ok_or_else(|| Fault::malformed("a certificate cannot hold for so long"))
    };
    (params.not_before, params.not_after) = (date(from_s)?, date(until_s)?);
    let mut serial = [0; 16];
    random(&mut serial)?;
    // A positive number without a leading zero (RFC 5280, section 4.1.2.2).
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}

/// A public key in a certificate that is to be made.
struct Public([u8; 32]);

impl PublicKeyData for Public {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

/// A key that signs certificates.
struct Signing<'a> {
    secret: &'a HolderSecret,
    public: Public,
}

impl Signing<'_> {
    fn of(secret: &HolderSecret) -> Signing<'_> {
        Signing { secret, public: Public(secret.key().0) }
    }
}

impl PublicKeyData for Signing<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.public.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.public.algorithm()
    }
}

impl SigningKey for Signing<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.secret.sign(message).to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::{CertificateDer, UnixTime};
    use std::time::Duration;
    use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

    const NOW: u64 = 1_700_000_000_000;
    const HOUR: u64 = 3600 * 1000;

    fn random(seed: u8) -> impl FnMut(&mut [u8]) -> Result<(), Fault> {
        let mut n = 0u64;
        move |out| {
            n += 1;
            blake3::Hasher::new().update(&[seed]).update(&n.to_le_bytes()).finalize_xof().fill(out);
            Ok(())
        }
    }

    /// The certificates of a credential, its own first.
    fn certificates(text: &str) -> Vec<Vec<u8>> {
        let at = text.find("-----BEGIN CERTIFICATE").unwrap();
        distos_identity::from_pem(&text[at..]).unwrap()
    }

    fn is_client(certificates: &[Vec<u8>], at_ms: u64) -> Result<(), webpki::Error> {
        let own = CertificateDer::from(certificates[0].as_slice());
        let root = CertificateDer::from(certificates[1].as_slice());
        let anchors = [anchor_from_trusted_cert(&root).unwrap()];
        let at = UnixTime::since_unix_epoch(Duration::from_millis(at_ms));
        let own = EndEntityCert::try_from(&own)?;
        let algorithms = [webpki::aws_lc_rs::ED25519];
        own.verify_for_usage(&algorithms, &anchors, &[], at, KeyUsage::client_auth(), None, None)
            .map(drop)
    }

    #[test]
    fn others_take_a_credential_for_a_client_until_its_lease_ends() {
        let random = &mut random(1);
        let authority = authority("web/front", NOW, random).unwrap();
        let text = credential("web/front", &authority, NOW, NOW + HOUR, random).unwrap();
        let own = certificates(&text);
        assert_eq!(own.len(), 2);
        assert_eq!(is_client(&own, NOW), Ok(()));
        assert_eq!(is_client(&own, NOW + HOUR), Ok(()));
        let late = is_client(&own, NOW + HOUR + 1000).unwrap_err();
        assert!(matches!(late, webpki::Error::CertExpired { .. }), "{late}");
        let others = super::authority("web/front", NOW, random).unwrap();
        let others = credential("web/front", &others, NOW, NOW + HOUR, random).unwrap();
        let mixed = [own[0].clone(), certificates(&others)[1].clone()];
        assert!(is_client(&mixed, NOW).is_err(), "another authority's");
    }

    #[test]
    fn each_reading_has_a_key_of_its_own_and_the_authoritys_leaves_never() {
        let random = &mut random(2);
        let authority = authority("web", NOW, random).unwrap();
        let one = credential("web", &authority, NOW, NOW + HOUR, random).unwrap();
        let two = credential("web", &authority, NOW, NOW + HOUR, random).unwrap();
        assert_ne!(one.lines().nth(1), two.lines().nth(1));
        assert_ne!(key_pair(random).unwrap(), key_pair(random).unwrap());
        let seed = &authority[..SECRET_BYTES];
        for text in [one, two] {
            let key = BASE64.decode(text.lines().nth(1).unwrap()).unwrap();
            assert_eq!(key[..16], PKCS8_ED25519);
            assert!(!key.windows(8).any(|w| w == &seed[..8]));
        }
    }

    #[test]
    fn the_key_of_a_credential_is_that_of_its_certificate() {
        let random = &mut random(3);
        let authority = authority("web", NOW, random).unwrap();
        let text = credential("web", &authority, NOW, NOW + HOUR, random).unwrap();
        let key = BASE64.decode(text.lines().nth(1).unwrap()).unwrap();
        let public = HolderSecret::from_seed(key[16..].try_into().unwrap()).key();
        let own = &certificates(&text)[0];
        assert!(own.windows(32).any(|w| w == public.0));
    }

    #[test]
    fn a_damaged_authority_is_a_fault_and_no_panic() {
        let fault = credential("web", &[1; 31], NOW, NOW + HOUR, &mut random(4)).unwrap_err();
        assert!(matches!(fault, Fault::Corrupt(_)), "{fault}");
    }
}
