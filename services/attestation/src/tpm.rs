//! A TPM 2.0 client over one descriptor: the few commands that attestation needs (TPM 2.0
//! Library, Part 3), built and read by hand so that no length of the TPM's is trusted.
//!
//! It does not open a path, load a library or need a resource manager: every object and session
//! that it makes in the TPM is flushed again, because a TPM holds three (else 0x902).

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use distos_abi::Fault;
use distos_evidence::credential::{Credential, EndorsementKey, Template};
use distos_evidence::enrolment::{MAX_ENDORSEMENT_BYTES, certifies, stored};
use distos_evidence::evidence::{
    ALG_ECDSA, ALG_NULL, ALG_SHA256, Attest, HIERARCHY_ENDORSEMENT, PcrSet, Pcrs, key_template,
    pcr_digest,
};
use distos_evidence::wire::{Broken, Reader, Writer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use zeroize::Zeroizing;

/// The largest answer that is read: TPM 2.0's own buffers are 4 KiB.
const MAX_RESPONSE_BYTES: usize = 4096;
/// The longest command: none of ours is half as long. What is longer a software TPM would take for several.
const MAX_COMMAND_BYTES: usize = 1024;
/// What is read from an NV index at a time: every PC's TPM gives so many bytes.
const NV_CHUNK_BYTES: usize = 512;
/// How often registers are quoted that change meanwhile.
const TRIES: usize = 8;
/// A TPM that has not answered by then is taken for dead. Real ones take 0.6 s for a quote.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) const HIERARCHY_OWNER: u32 = 0x4000_0001;
const TAG_NO_SESSIONS: u16 = 0x8001;
const TAG_SESSIONS: u16 = 0x8002;
const SESSION_PASSWORD: u32 = 0x4000_0009;
const SESSION_POLICY: u8 = 0x01;
pub(crate) const HANDLE_NULL: u32 = 0x4000_0007;
const HEADER_BYTES: usize = 10;

const CC_CREATE_PRIMARY: u32 = 0x0131;
const CC_STARTUP: u32 = 0x0144;
const CC_ACTIVATE_CREDENTIAL: u32 = 0x0147;
const CC_NV_READ: u32 = 0x014e;
const CC_POLICY_SECRET: u32 = 0x0151;
pub(crate) const CC_LOAD: u32 = 0x0157;
const CC_QUOTE: u32 = 0x0158;
const CC_FLUSH_CONTEXT: u32 = 0x0165;
const CC_NV_READ_PUBLIC: u32 = 0x0169;
const CC_POLICY_OR: u32 = 0x0171;
pub(crate) const CC_START_AUTH_SESSION: u32 = 0x0176;
const CC_PCR_READ: u32 = 0x017e;
const CC_PCR_EXTEND: u32 = 0x0182;

const RC_INITIALIZE: u32 = 0x100;
/// Try again: testing, yielded, NV rate, lockout, retry, a register changed on the way.
const RC_PASSING: [u32; 6] = [0x90a, 0x908, 0x920, 0x921, 0x922, 0x128];
/// When to ask again after a failure that may pass.
const RETRY_MS: u64 = 1_000;

/// Why the TPM gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TpmError {
    /// The descriptor failed or was closed.
    #[error("the TPM does not answer: {0}")]
    Io(#[from] std::io::Error),
    /// An earlier failure left the conversation half way; its answers can't be told apart.
    #[error("the TPM stopped answering earlier: restart the attestation service")]
    Lost,
    /// An answer that is no TPM's.
    #[error("the TPM's answer is {0}")]
    Malformed(#[from] Broken),
    /// Registers were extended while they were quoted, each time.
    #[error("registers are extended faster than they can be quoted")]
    Restless,
    /// What was to be opened is for another key, or for one in another TPM.
    #[error("it is for another TPM, or another key of this one")]
    Another,
    /// The registers are not those under which something was sealed.
    #[error(
        "the TPM's registers are not those that it was sealed under: this node booted something else, or another image"
    )]
    Registers,
    /// The TPM refused.
    #[error("the TPM refused command {command:#06x} with code {code:#05x}")]
    Refused {
        /// The command code.
        command: u32,
        /// The response code (Part 2, 6.6).
        code: u32,
    },
}

impl From<TpmError> for Fault {
    fn from(error: TpmError) -> Fault {
        let why = error.to_string();
        match error {
            TpmError::Refused { code, .. } if !RC_PASSING.contains(&code) => Fault::Internal(why),
            TpmError::Malformed(_) => Fault::Internal(why),
            TpmError::Another => Fault::Unauthenticated(why),
            TpmError::Registers => Fault::StaleAttestation(why),
            _ => Fault::unavailable(RETRY_MS, why),
        }
    }
}

/// The key by which a TPM is known.
#[derive(Clone, Debug)]
pub(crate) struct Endorsement {
    /// `TPMT_PUBLIC`.
    pub(crate) public: Vec<u8>,
    /// Its certificate (DER), if its maker has left one in the TPM.
    pub(crate) certificate: Option<Vec<u8>>,
}

/// What one attestation takes from the TPM. Nothing in it is believed before appraisal.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    /// `TPMT_PUBLIC` of the key that signed.
    pub(crate) ak_public: Vec<u8>,
    /// `TPMS_ATTEST`, as signed.
    pub(crate) quote: Vec<u8>,
    /// `TPMT_SIGNATURE`.
    pub(crate) signature: Vec<u8>,
    /// The registers, as read beside the quote.
    pub(crate) pcrs: Pcrs,
    /// How long the quote command took.
    pub(crate) quote_micros: u64,
}

/// `TPMS_ATTEST`, `TPMT_SIGNATURE`, the registers, and how long it took in microseconds.
type Quoted = (Vec<u8>, Vec<u8>, Pcrs, u64);

/// A TPM at the other end of `io`.
#[derive(Debug)]
pub(crate) struct Tpm<T> {
    io: T,
    talk: Talk,
    /// Keys and sessions that are in the TPM.
    there: Vec<u32>,
}

/// Where the conversation with a TPM stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Talk {
    /// Every command has its answer.
    Settled,
    /// Not one byte of the answer to the last command, which had this code, came in time.
    Awaited(u32),
    /// It stopped half way.
    Lost,
}

impl<T: Read + Write> Tpm<T> {
    pub(crate) fn new(io: T) -> Self {
        Tpm { io, talk: Talk::Settled, there: Vec::new() }
    }

    #[cfg(test)]
    pub(crate) fn io(&self) -> &T {
        &self.io
    }

    #[cfg(test)]
    pub(crate) fn io_mut(&mut self) -> &mut T {
        &mut self.io
    }

    #[cfg(test)]
    pub(crate) fn into_io(self) -> T {
        self.io
    }

    /// `TPM2_Startup(CLEAR)`; a TPM that is started already says so, which is well.
    pub(crate) fn startup(&mut self) -> Result<(), TpmError> {
        match self.call(&Command::plain(CC_STARTUP, Writer::default().u16(0))) {
            Ok(_) | Err(TpmError::Refused { code: RC_INITIALIZE, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Quotes `pcrs` with `qualifying` as the challenge, and reads the registers. What is extended in between (the kernel
    /// may measure a file at any time) is no fault of anybody's: then both are done again.
    ///
    /// # Errors
    /// [`TpmError::Restless`] if registers change each time.
    pub(crate) fn evidence(
        &mut self,
        qualifying: &[u8; 32],
        pcrs: PcrSet,
    ) -> Result<Evidence, TpmError> {
        let (handle, ak_public) = self.create_ak()?;
        let mut taken = Err(TpmError::Restless);
        for _ in 0..TRIES {
            taken = self.quoted(handle, qualifying, pcrs);
            if !matches!(taken, Err(TpmError::Restless)) {
                break;
            }
        }
        // Flushed also when the quote failed, or three failures would fill the TPM.
        let flushed = self.flush(handle);
        let (quote, signature, values, quote_micros) = taken?;
        flushed?;
        Ok(Evidence { ak_public, quote, signature, pcrs: values, quote_micros })
    }

    /// One quote, and the registers that it covers.
    fn quoted(
        &mut self,
        handle: u32,
        qualifying: &[u8; 32],
        pcrs: PcrSet,
    ) -> Result<Quoted, TpmError> {
        let started = Instant::now();
        let (quote, signature) = self.quote(handle, qualifying, pcrs)?;
        let quote_micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let values = self.pcr_read(pcrs)?;
        let body = Attest::parse(&quote)?;
        if body.quote_body()?.pcr_digest != pcr_digest(values.values()) {
            return Err(TpmError::Restless);
        }
        Ok((quote, signature, values, quote_micros))
    }

    /// The endorsement key, the same at every boot: the first that the TPM's maker has certified, else that of the first
    /// template.
    pub(crate) fn endorsement(&mut self) -> Result<Endorsement, TpmError> {
        for template in Template::ALL {
            let Some(bytes) = self.nv(template.certificate_index())? else { continue };
            let Some(certificate) = stored(&bytes) else { continue };
            let public = match self.endorsement_of(template) {
                // Some make no key of some template, whatever lies in their places.
                Err(TpmError::Refused { code, .. }) if !RC_PASSING.contains(&code) => continue,
                public => public?,
            };
            let key = EndorsementKey::from_public(&public);
            // Or it is one that was made from a template of the maker's own.
            if key.is_ok_and(|key| certifies(&certificate, &key).is_ok()) {
                let certificate = Some(certificate.der().to_vec());
                return Ok(Endorsement { public, certificate });
            }
        }
        let public = self.endorsement_of(Template::ALL[0])?;
        Ok(Endorsement { public, certificate: None })
    }

    /// `TPMT_PUBLIC` of the endorsement key that follows from a template.
    pub(crate) fn endorsement_of(&mut self, template: Template) -> Result<Vec<u8>, TpmError> {
        let (handle, public) = self.create_primary(&template.public())?;
        self.flush(handle)?;
        Ok(public)
    }

    /// What lies at an NV index, up to what a certificate may have; `None` if there is nothing, or it may not be read
    /// with the empty password of the index, as certificates may.
    fn nv(&mut self, index: u32) -> Result<Option<Vec<u8>>, TpmError> {
        match self.nv_whole(index) {
            Ok(bytes) => Ok(bytes),
            Err(TpmError::Refused { code, .. }) if !RC_PASSING.contains(&code) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn nv_whole(&mut self, index: u32) -> Result<Option<Vec<u8>>, TpmError> {
        let parameters = Writer::default().u32(index);
        let response = self.call(&Command::plain(CC_NV_READ_PUBLIC, parameters))?;
        let size = parse_nv_size(&response, index)?;
        if size > MAX_ENDORSEMENT_BYTES {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(size);
        while bytes.len() < size {
            let len = (size - bytes.len()).min(NV_CHUNK_BYTES);
            let field = |number: usize| u16::try_from(number).map_err(|_| Broken("nvPublic"));
            let parameters = Writer::default().u16(field(len)?).u16(field(bytes.len())?);
            let command = Command::new(CC_NV_READ, &[index, index], &[Auth::Password], parameters);
            let response = self.call(&command)?;
            let part = parameters_of(&response, "data")?.sized("data")?.to_vec();
            if part.len() != len {
                return Err(Broken("data").into());
            }
            bytes.extend(part);
        }
        Ok(Some(bytes))
    }

    /// `TPMT_PUBLIC` of the attestation key, the same at every boot.
    pub(crate) fn attestation(&mut self) -> Result<Vec<u8>, TpmError> {
        let (handle, public) = self.create_ak()?;
        self.flush(handle)?;
        Ok(public)
    }

    /// Gives back the secret of a credential that was made for this TPM's attestation key.
    ///
    /// # Errors
    /// [`TpmError::Another`] if it was made for another one.
    pub(crate) fn activate(
        &mut self,
        credential: &Credential,
    ) -> Result<Zeroizing<[u8; 32]>, TpmError> {
        let (ak, _) = self.create_ak()?;
        let activated = self.activate_by(ak, credential);
        let flushed = self.flush(ak);
        activated.and_then(|secret| flushed.map(|()| secret))
    }

    fn activate_by(
        &mut self,
        ak: u32,
        credential: &Credential,
    ) -> Result<Zeroizing<[u8; 32]>, TpmError> {
        let (ek, _) = self.create_primary(&credential.template().public())?;
        let activated = self.activate_both(ak, ek, credential);
        let flushed = self.flush(ek);
        activated.and_then(|secret| flushed.map(|()| secret))
    }

    fn activate_both(
        &mut self,
        ak: u32,
        ek: u32,
        credential: &Credential,
    ) -> Result<Zeroizing<[u8; 32]>, TpmError> {
        let template = credential.template();
        let session = self.start_policy(template.hash_algorithm())?;
        let activated = self.satisfy(session, template).and_then(|()| {
            let auths = [Auth::Password, Auth::Session(session)];
            let parameters = Writer::default().bytes(credential.blob()).bytes(credential.secret());
            let command = Command::new(CC_ACTIVATE_CREDENTIAL, &[ak, ek], &auths, parameters);
            self.call(&command)
        });
        self.used(session, activated.is_ok());
        let response = activated.map_err(|error| match error {
            TpmError::Refused { command: CC_ACTIVATE_CREDENTIAL, code } if is_parameters(code) => {
                TpmError::Another
            }
            error => error,
        })?;
        let mut parameters = parameters_of(&response, "the credential's parameters")?;
        let secret = parameters.sized("certInfo")?;
        Ok(Zeroizing::new(secret.try_into().map_err(|_| Broken("certInfo"))?))
    }

    /// A policy session. It ends with the command that uses it, if that succeeds; else it must be flushed.
    pub(crate) fn start_policy(&mut self, hash_algorithm: u16) -> Result<u32, TpmError> {
        // What the TPM takes from it here is nothing: the session signs and encrypts nothing.
        let nonce = [0u8; 16];
        let parameters = Writer::default()
            .u32(HANDLE_NULL)
            .u32(HANDLE_NULL)
            .sized(&nonce)
            .sized(&[])
            .u8(SESSION_POLICY)
            .u16(ALG_NULL)
            .u16(hash_algorithm);
        let response = self.call(&Command::plain(CC_START_AUTH_SESSION, parameters))?;
        let session = Reader::new(&response).u32("sessionHandle")?;
        self.there.push(session);
        Ok(session)
    }

    /// Takes note of a session that a command used, or that was to be used. The command ends it if it succeeds; if not,
    /// that is what went wrong, whatever becomes of the session.
    pub(crate) fn used(&mut self, session: u32, succeeded: bool) {
        match succeeded {
            true => self.there.retain(|there| *there != session),
            false => drop(self.flush(session)),
        }
    }

    /// Has the session fulfil the policy of an endorsement key.
    fn satisfy(&mut self, session: u32, template: Template) -> Result<(), TpmError> {
        // That it may use what the endorsement hierarchy's holder may, which has no password.
        let parameters = Writer::default().sized(&[]).sized(&[]).sized(&[]).u32(0);
        let handles = [HIERARCHY_ENDORSEMENT, session];
        self.call(&Command::new(CC_POLICY_SECRET, &handles, &[Auth::Password], parameters))?;
        let branches = template.policy_branches();
        if branches.is_empty() {
            return Ok(());
        }
        let count = u32::try_from(branches.len()).map_err(|_| Broken("the policy's branches"))?;
        let list = Writer::default().u32(session).u32(count);
        let list = branches.iter().fold(list, |list, branch| list.sized(branch));
        self.call(&Command::plain(CC_POLICY_OR, list)).map(drop)
    }

    /// Extends `digest` into `pcr` unless that has happened since the TPM's last reset. A register
    /// that holds anything else is left alone: appraisal refuses it. Returns whether the register
    /// was as a reset leaves it.
    pub(crate) fn measure_once(&mut self, pcr: u8, digest: &[u8; 32]) -> Result<bool, TpmError> {
        let set = PcrSet::default().with(pcr);
        let was_reset = self.pcr_read(set)?.get(&pcr) == Some(&[0; 32]);
        if was_reset {
            self.pcr_extend(pcr, digest)?;
        }
        Ok(was_reset)
    }

    pub(crate) fn pcr_extend(&mut self, pcr: u8, digest: &[u8; 32]) -> Result<(), TpmError> {
        let digests = Writer::default().u32(1).u16(ALG_SHA256).bytes(digest);
        self.call(&Command::authorized(CC_PCR_EXTEND, u32::from(pcr), digests)).map(drop)
    }

    /// Reads the SHA-256 registers of `pcrs`. A TPM gives at most eight at a time.
    pub(crate) fn pcr_read(&mut self, pcrs: PcrSet) -> Result<Pcrs, TpmError> {
        let mut values = Pcrs::new();
        let mut left = pcrs;
        while !left.is_empty() {
            let response = self.call(&Command::plain(CC_PCR_READ, selection(left)))?;
            let some = parse_pcr_read(&response, left)?;
            left = some.keys().fold(left, |left, pcr| left.without(*pcr));
            values.extend(some);
        }
        Ok(values)
    }

    /// Makes the attestation key: the same at every boot, as it follows from the TPM's
    /// endorsement seed and the template alone. The handle must be flushed.
    fn create_ak(&mut self) -> Result<(u32, Vec<u8>), TpmError> {
        let template = Writer::default().bytes(&key_template()).sized(&[]).sized(&[]).done();
        self.create_primary(&template)
    }

    /// Makes a key in the endorsement hierarchy. The handle must be flushed.
    fn create_primary(&mut self, template: &[u8]) -> Result<(u32, Vec<u8>), TpmError> {
        self.create_primary_in(HIERARCHY_ENDORSEMENT, template)
    }

    /// Makes a key in a hierarchy that has no password. The handle must be flushed.
    pub(crate) fn create_primary_in(
        &mut self,
        hierarchy: u32,
        template: &[u8],
    ) -> Result<(u32, Vec<u8>), TpmError> {
        let no_secret = Writer::default().sized(&[]).sized(&[]).done();
        let parameters = Writer::default().sized(&no_secret).sized(template).sized(&[]).u32(0);
        let command = Command::authorized(CC_CREATE_PRIMARY, hierarchy, parameters);
        let response = self.call(&command)?;
        let handle = self.made(&response)?;
        match parse_public(&response) {
            Ok(public) => Ok((handle, public)),
            Err(broken) => {
                self.flush(handle)?;
                Err(broken.into())
            }
        }
    }

    /// The object that an answer begins with, which must be flushed.
    pub(crate) fn made(&mut self, response: &[u8]) -> Result<u32, TpmError> {
        let handle = Reader::new(response).u32("handle")?;
        self.there.push(handle);
        Ok(handle)
    }

    fn quote(
        &mut self,
        handle: u32,
        qualifying: &[u8; 32],
        pcrs: PcrSet,
    ) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
        let selected = selection(pcrs).done();
        let parameters =
            Writer::default().sized(qualifying).u16(ALG_ECDSA).u16(ALG_SHA256).bytes(&selected);
        let response = self.call(&Command::authorized(CC_QUOTE, handle, parameters))?;
        let mut parameters = parameters_of(&response, "the quote's parameters")?;
        let quote = parameters.sized("quoted")?.to_vec();
        Ok((quote, parameters.rest().to_vec()))
    }

    /// Takes a key or session out of the TPM; later, if it has not answered what it was asked before.
    pub(crate) fn flush(&mut self, handle: u32) -> Result<(), TpmError> {
        if self.talk != Talk::Settled {
            return Ok(());
        }
        self.there.retain(|there| *there != handle);
        self.call(&Command::plain(CC_FLUSH_CONTEXT, Writer::default().u32(handle))).map(drop)
    }

    /// Sends one command and reads its answer: what follows the header.
    pub(crate) fn call(&mut self, command: &Command) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        self.settle()?;
        let bytes = command.bytes();
        if bytes.len() > MAX_COMMAND_BYTES {
            return Err(Broken("a command that is longer than any of ours").into());
        }
        // Until the command has left as a whole.
        self.talk = Talk::Lost;
        self.io.write_all(&bytes)?;
        self.io.flush()?;
        let (tag, code, body) = self.answer(command.code)?;
        let wanted = if code == 0 { command.tag } else { TAG_NO_SESSIONS };
        match code {
            _ if tag != wanted => {
                self.talk = Talk::Lost;
                Err(Broken("tag").into())
            }
            0 => Ok(body),
            _ => Err(TpmError::Refused { command: command.code, code }),
        }
    }

    /// Reads the answer that did not come in time, or it would be taken for that to the next
    /// command. A TPM gives one answer to each command, in order.
    fn settle(&mut self) -> Result<(), TpmError> {
        match self.talk {
            Talk::Settled => Ok(()),
            Talk::Lost => Err(TpmError::Lost),
            Talk::Awaited(command) => {
                let (_, code, body) = self.answer(command)?;
                let makes = [CC_CREATE_PRIMARY, CC_LOAD, CC_START_AUTH_SESSION];
                if code == 0 && makes.contains(&command) {
                    self.there.push(Reader::new(&body).u32("handle")?);
                }
                // Nobody asks for these any more: they would fill the TPM.
                for handle in std::mem::take(&mut self.there) {
                    match self.flush(handle) {
                        // A session may have ended with the command that used it.
                        Ok(()) | Err(TpmError::Refused { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
        }
    }

    /// Reads the answer to a command with the code `command`: tag, code, and what follows them.
    fn answer(&mut self, command: u32) -> Result<(u16, u32, Zeroizing<Vec<u8>>), TpmError> {
        self.talk = Talk::Lost;
        // A character device gives an answer to one read only as long as the buffer is; the socket
        // gives a stream. Reading into one whole buffer suits both.
        let mut buffer = Zeroizing::new(vec![0u8; MAX_RESPONSE_BYTES]);
        let first = self.fill(&mut buffer, 0, 1);
        if matches!(&first, Err(TpmError::Io(error)) if error.kind() == ErrorKind::TimedOut) {
            self.talk = Talk::Awaited(command);
        }
        let mut filled = self.fill(&mut buffer, first?, HEADER_BYTES)?;
        let mut header = Reader::new(&buffer);
        let (tag, size, code) =
            (header.u16("tag")?, header.u32("responseSize")?, header.u32("responseCode")?);
        let size = usize::try_from(size).map_err(|_| Broken("responseSize"))?;
        if !(HEADER_BYTES..=MAX_RESPONSE_BYTES).contains(&size) {
            return Err(Broken("responseSize").into());
        }
        filled = self.fill(&mut buffer, filled, size)?;
        if filled != size {
            return Err(Broken("responseSize").into());
        }
        self.talk = Talk::Settled;
        Ok((tag, code, Zeroizing::new(buffer[HEADER_BYTES..size].to_vec())))
    }

    fn fill(&mut self, buffer: &mut [u8], from: usize, until: usize) -> Result<usize, TpmError> {
        // Also bounds a TPM that sends a byte now and then.
        let deadline = Instant::now() + TIMEOUT;
        let mut filled = from;
        while filled < until {
            if Instant::now() > deadline {
                return Err(std::io::Error::from(ErrorKind::TimedOut).into());
            }
            match self.io.read(&mut buffer[filled..]) {
                Ok(0) => return Err(std::io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(more) => filled += more,
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(filled)
    }
}

/// By what a handle may be used.
pub(crate) enum Auth {
    /// An empty password: the keys and hierarchies used here have none.
    Password,
    /// A policy session, which ends with the command.
    Session(u32),
}

/// A command of ours.
pub(crate) struct Command {
    tag: u16,
    code: u32,
    handles: Vec<u32>,
    authorization: Vec<u8>,
    /// Some have a secret in them.
    parameters: Zeroizing<Vec<u8>>,
}

impl Command {
    pub(crate) fn plain(code: u32, parameters: Writer) -> Command {
        let (handles, authorization) = (Vec::new(), Vec::new());
        Command {
            tag: TAG_NO_SESSIONS,
            code,
            handles,
            authorization,
            parameters: Zeroizing::new(parameters.done()),
        }
    }

    pub(crate) fn authorized(code: u32, handle: u32, parameters: Writer) -> Command {
        Command::new(code, &[handle], &[Auth::Password], parameters)
    }

    /// With what authorizes the first handles.
    pub(crate) fn new(code: u32, handles: &[u32], auths: &[Auth], parameters: Writer) -> Command {
        let authorization = auths.iter().fold(Writer::default(), |area, auth| {
            let session = match auth {
                Auth::Password => SESSION_PASSWORD,
                Auth::Session(session) => *session,
            };
            area.u32(session).sized(&[]).u8(0).sized(&[])
        });
        let (handles, authorization) = (handles.to_vec(), authorization.done());
        let parameters = Zeroizing::new(parameters.done());
        Command { tag: TAG_SESSIONS, code, handles, authorization, parameters }
    }

    /// On one object, with what a session says of it.
    pub(crate) fn in_session(
        code: u32,
        handle: u32,
        authorization: Vec<u8>,
        parameters: &[u8],
    ) -> Command {
        let parameters = Zeroizing::new(parameters.to_vec());
        Command { tag: TAG_SESSIONS, code, handles: vec![handle], authorization, parameters }
    }

    fn bytes(&self) -> Zeroizing<Vec<u8>> {
        let handles = self.handles.iter().fold(Writer::default(), |all, handle| all.u32(*handle));
        let authorization = match self.authorization.len() {
            0 => handles.done(),
            len => {
                let len = u32::try_from(len).expect("each session is under 100 bytes");
                handles.u32(len).bytes(&self.authorization).done()
            }
        };
        let size = HEADER_BYTES + authorization.len() + self.parameters.len();
        let bytes = Writer::with_room(size)
            .u16(self.tag)
            .u32(u32::try_from(size).expect("commands of ours are under 1 KiB"))
            .u32(self.code)
            .bytes(&authorization)
            .bytes(&self.parameters)
            .done();
        Zeroizing::new(bytes)
    }
}

/// How many bytes an NV index has, from the answer to `TPM2_NV_ReadPublic`.
fn parse_nv_size(response: &[u8], index: u32) -> Result<usize, Broken> {
    let mut r = Reader::new(Reader::new(response).sized("nvPublic")?);
    if r.u32("nvIndex")? != index {
        return Err(Broken("nvIndex"));
    }
    let (_name, _attributes) = (r.u16("nameAlg")?, r.u32("attributes")?);
    r.sized("authPolicy")?;
    let size = r.u16("dataSize")?;
    r.end("nvPublic")?;
    Ok(size.into())
}

/// `TPML_PCR_SELECTION` of one SHA-256 bank.
pub(crate) fn selection(pcrs: PcrSet) -> Writer {
    Writer::default().u32(1).u16(ALG_SHA256).u8(3).bytes(&pcrs.select())
}

/// Reads the answer to `TPM2_PCR_Read`. Takes only registers that were asked for, and demands at
/// least one, so that reading ends.
fn parse_pcr_read(response: &[u8], asked: PcrSet) -> Result<Pcrs, Broken> {
    let mut r = Reader::new(response);
    r.u32("pcrUpdateCounter")?;
    let (banks, bank, len) =
        (r.u32("pcrSelection")?, r.u16("pcrSelection")?, r.u8("pcrSelection")?);
    if (banks, bank, len) != (1, ALG_SHA256, 3) {
        return Err(Broken("pcrSelection"));
    }
    let given = PcrSet::from_select(r.bytes(3, "pcrSelection")?).ok_or(Broken("pcrSelection"))?;
    if given.is_empty() || given.iter().any(|pcr| asked.without(pcr) == asked) {
        return Err(Broken("pcrSelection: this TPM has no such SHA-256 register"));
    }
    let count = r.u32("pcrValues")?;
    if usize::try_from(count).ok() != Some(given.iter().count()) {
        return Err(Broken("pcrValues"));
    }
    let values = given
        .iter()
        .map(|pcr| Ok((pcr, r.sized("pcrValues")?.try_into().map_err(|_| Broken("pcrValues"))?)))
        .collect::<Result<Pcrs, Broken>>()?;
    r.end("the end of the registers")?;
    Ok(values)
}

/// Whether a response code says that a parameter is wrong (Part 2, 6.6.3: format one, with a parameter's number).
pub(crate) fn is_parameters(code: u32) -> bool {
    code & 0xc0 == 0xc0
}

/// The parameter area of an answer with sessions, without a handle before it.
pub(crate) fn parameters_of<'a>(
    response: &'a [u8],
    field: &'static str,
) -> Result<Reader<'a>, Broken> {
    let mut r = Reader::new(response);
    let len = usize::try_from(r.u32(field)?).map_err(|_| Broken(field))?;
    Ok(Reader::new(r.bytes(len, field)?))
}

/// `TPMT_PUBLIC` from the answer to `TPM2_CreatePrimary`.
fn parse_public(response: &[u8]) -> Result<Vec<u8>, Broken> {
    let after_handle = response.get(4..).ok_or(Broken("handle"))?;
    Ok(parameters_of(after_handle, "the key's parameters")?.sized("outPublic")?.to_vec())
}

/// A descriptor on which nothing waits longer than [`TIMEOUT`].
#[derive(Debug)]
pub(crate) struct TimedFd {
    file: File,
    timeout: Duration,
}

impl TimedFd {
    /// Takes over `fd`. Throws away what is waiting there: an answer that a predecessor did not
    /// read would be taken for the next one.
    pub(crate) fn new(fd: OwnedFd, timeout: Duration) -> std::io::Result<TimedFd> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        let mut timed = TimedFd { file: File::from(fd), timeout };
        let mut stale = [0u8; MAX_RESPONSE_BYTES];
        // At most one answer can wait, as each command awaits its own.
        match timed.file.read(&mut stale) {
            Ok(_) => Ok(timed),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(timed),
            Err(error) => Err(error),
        }
    }

    fn wait(&self, flags: PollFlags) -> std::io::Result<()> {
        let timeout = Timespec::try_from(self.timeout).map_err(|_| ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::new(&self.file, flags)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => Err(std::io::Error::new(
                ErrorKind::TimedOut,
                format!("no answer within {} s", self.timeout.as_secs_f32()),
            )),
            Ok(_) => Ok(()),
            Err(Errno::INTR) => Err(ErrorKind::Interrupted.into()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Read for TimedFd {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.wait(PollFlags::IN)?;
        self.file.read(buffer)
    }
}

impl Write for TimedFd {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.wait(PollFlags::OUT)?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
