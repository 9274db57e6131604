//! What TLS asks of us: who the other side is, and a signature that shows who we are.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use distos_identity::{Checked, Identity, KeyExchange, Refusal, SpiffeId, Trust, Usage, key_of};
use distos_types::HolderSecret;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved,
    SignatureAlgorithm, SignatureScheme,
};

use crate::ALPN;

/// Signatures of certificates that are known to be good: two for each peer, and one of its issuer's.
const CHECKED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// Tells the time, in seconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// By what one shows who one is.
#[derive(Clone)]
pub struct Credentials {
    /// The SVID, DER: its own certificate, then its issuer's.
    pub chain: Vec<Vec<u8>>,
    /// The secret half of the SVID's key.
    pub secret: Arc<HolderSecret>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials(of {:?})", self.secret.key())
    }
}

impl Credentials {
    fn certified(&self) -> CertifiedKey {
        let chain = self.chain.iter().cloned().map(CertificateDer::from).collect();
        CertifiedKey::new(chain, Arc::new(Own(self.secret.clone())))
    }
}

/// What every handshake of an endpoint looks at; both can change meanwhile.
pub(crate) struct Shared {
    trust: RwLock<Trust>,
    own: RwLock<Arc<CertifiedKey>>,
    clock: Clock,
    /// Whoever connects again shows the same certificates.
    checked: Checked,
}

impl Shared {
    pub(crate) fn new(own: &Credentials, trust: Trust, clock: Clock) -> Shared {
        let own = RwLock::new(Arc::new(own.certified()));
        Shared { trust: RwLock::new(trust), own, clock, checked: Checked::new(CHECKED) }
    }

    pub(crate) fn now_s(&self) -> u64 {
        (self.clock)()
    }

    pub(crate) fn admit<T: AsRef<[u8]>>(
        &self,
        chain: &[T],
        now_s: u64,
        usage: Usage,
    ) -> Result<Identity, Refusal> {
        // Nothing in here panics half-way; likewise below.
        let trust = self.trust.read().unwrap_or_else(PoisonError::into_inner);
        trust.admit_once(chain, now_s, usage, &self.checked)
    }

    /// The attestation epoch of whoever that is.
    pub(crate) fn epoch(&self, who: &SpiffeId) -> u64 {
        self.trust.read().unwrap_or_else(PoisonError::into_inner).peers.epoch(&who.subject)
    }

    fn exchange(&self) -> KeyExchange {
        self.trust.read().unwrap_or_else(PoisonError::into_inner).exchange
    }

    /// Whether what is required now was required in a handshake. (Which way was taken, if several were open, QUIC
    /// does not tell.)
    pub(crate) fn allows(&self, exchange: KeyExchange) -> bool {
        exchange == KeyExchange::HybridOnly || self.exchange() == KeyExchange::HybridPreferred
    }

    pub(crate) fn set_trust(&self, trust: Trust) {
        *self.trust.write().unwrap_or_else(PoisonError::into_inner) = trust;
    }

    pub(crate) fn set_own(&self, own: &Credentials) {
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(own.certified());
    }

    fn own(&self) -> Arc<CertifiedKey> {
        self.own.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

/// What one handshake found: who the other side is, or why it is not let in. Empty until it has shown
/// its certificates.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    found: Arc<Mutex<Option<Result<Identity, Refusal>>>>,
    /// How keys are agreed on in it.
    pub(crate) exchange: KeyExchange,
}

impl Verdict {
    /// Of a handshake that begins now.
    pub(crate) fn begin(shared: &Shared) -> Verdict {
        Verdict { exchange: shared.exchange(), ..Verdict::default() }
    }

    fn set(&self, found: Result<Identity, Refusal>) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    }

    pub(crate) fn take(&self) -> Option<Result<Identity, Refusal>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// How TLS is spoken at an endpoint.
pub(crate) struct Tls {
    preferred: Arc<CryptoProvider>,
    only: Arc<CryptoProvider>,
    shared: Arc<Shared>,
}

impl Tls {
    pub(crate) fn new(shared: Arc<Shared>) -> Tls {
        let hybrid = aws_lc_rs::kx_group::X25519MLKEM768;
        let provider =
            |kx_groups| Arc::new(CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() });
        let preferred = provider(vec![hybrid, aws_lc_rs::kx_group::X25519]);
        Tls { preferred, only: provider(vec![hybrid]), shared }
    }

    fn provider(&self, exchange: KeyExchange) -> Arc<CryptoProvider> {
        match exchange {
            KeyExchange::HybridPreferred => self.preferred.clone(),
            KeyExchange::HybridOnly => self.only.clone(),
        }
    }

    /// For one connection, or for none: `verdict` will hold who came.
    pub(crate) fn server(&self, verdict: &Verdict) -> Result<QuicServerConfig, Unusable> {
        let own = self.shared.clone();
        let checks =
            Arc::new(Checks { shared: own.clone(), expected: None, verdict: verdict.clone() });
        let mut config = rustls::ServerConfig::builder_with_details(
            self.provider(verdict.exchange),
            self.time(),
        )
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(checks)
        .with_cert_resolver(Arc::new(Shows(own)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config.try_into()?)
    }

    /// For a connection to `expected`, and to nobody else; `verdict` will hold who it was.
    pub(crate) fn client(
        &self,
        expected: &SpiffeId,
        verdict: &Verdict,
    ) -> Result<QuicClientConfig, Unusable> {
        let own = self.shared.clone();
        let expected = Some(expected.clone());
        let checks = Checks { shared: own.clone(), expected, verdict: verdict.clone() };
        let mut config = rustls::ClientConfig::builder_with_details(
            self.provider(verdict.exchange),
            self.time(),
        )
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(checks))
        .with_client_cert_resolver(Arc::new(Shows(own)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        // The name of whom we want is in its certificate, and nobody on the way needs it.
        config.enable_sni = false;
        Ok(config.try_into()?)
    }

    fn time(&self) -> Arc<dyn TimeProvider> {
        Arc::new(Time(self.shared.clone()))
    }
}

/// This machine's TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("TLS: {0}")]
    Tls(#[from] Error),
    #[error("QUIC has no cipher to begin with: {0}")]
    Initial(#[from] NoInitialCipherSuite),
}

#[derive(Debug)]
struct Time(Arc<Shared>);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.now_s())))
    }
}

/// Shows who we are.
#[derive(Debug)]
struct Shows(Arc<Shared>);

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.own())
    }
}

impl rustls::client::ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.own())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Signs with a key that stays in its page.
#[derive(Debug)]
struct Own(Arc<HolderSecret>);

impl SigningKey for Own {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ED25519).then(|| Box::new(Own(self.0.clone())) as _)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for Own {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.0.sign(message).to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// Decides who the other side is, and whether it is let in.
#[derive(Debug)]
struct Checks {
    shared: Arc<Shared>,
    /// Who it has to be, for whoever connects.
    expected: Option<SpiffeId>,
    verdict: Verdict,
}

impl Checks {
    fn check(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), Error> {
        let chain: Vec<&[u8]> =
            std::iter::once(own).chain(others).map(|certificate| certificate.as_ref()).collect();
        let found = self.shared.admit(&chain, now.as_secs(), usage);
        let found = found.and_then(|found| match &self.expected {
            Some(expected) if *expected != found.id => Err(Refusal::Another(Box::new(found.id))),
            _ => Ok(found),
        });
        let told = found.as_ref().map(|_| ()).map_err(refused);
        self.verdict.set(found);
        told
    }
}

/// What the other side is told.
fn refused(refusal: &Refusal) -> Error {
    let why = match refusal {
        Refusal::Expired { .. } => CertificateError::Expired,
        Refusal::NotYet { .. } => CertificateError::NotValidYet,
        Refusal::Unknown | Refusal::Cluster { .. } => CertificateError::UnknownIssuer,
        Refusal::Forged => CertificateError::BadSignature,
        Refusal::Former { .. } => CertificateError::Revoked,
        Refusal::Usage(_) => CertificateError::InvalidPurpose,
        Refusal::Length(_) | Refusal::Certificate { .. } => CertificateError::BadEncoding,
        Refusal::Lasting(_)
        | Refusal::Stranger
        | Refusal::Vouched(_)
        | Refusal::Another(_)
        | Refusal::KeyExchange
        | Refusal::OwnNode => CertificateError::ApplicationVerificationFailure,
    };
    Error::InvalidCertificate(why)
}

fn signed(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    by: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    if by.scheme != SignatureScheme::ED25519 {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    let forged = Error::InvalidCertificate(CertificateError::BadSignature);
    let key =
        key_of(certificate).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
    match distos_types::verify_signature(key, message, by.signature()) {
        Ok(()) => Ok(HandshakeSignatureValid::assertion()),
        Err(_) => Err(forged),
    }
}

/// TLS 1.2 is not spoken, so nobody comes here.
fn old() -> Error {
    Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered)
}

impl ServerCertVerifier for Checks {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(own, others, now, Usage::Server).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        by: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed(message, certificate, by)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Checks {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(own, others, now, Usage::Client).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        by: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed(message, certificate, by)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
