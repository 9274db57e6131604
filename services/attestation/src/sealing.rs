//! Secrets that this TPM keeps sealed: it gives one back only while its registers are what they were when that was sealed
//! (TPM 2.0 Library, Part 3: `TPM2_Create` of a KEYEDHASH object whose policy is `TPM2_PolicyPCR`).
//!
//! What was sealed is a blob that is worth nothing anywhere else: it is encrypted under a storage key that follows from the
//! seed of this TPM's owner hierarchy. Clearing the TPM makes a new seed, and no blob opens any more.
//!
//! # What it does not show
//!
//! - The registers say what was measured at boot, and nothing of what happened since: whoever has this node's TPM while it
//!   runs unchanged (its superuser, say) can have it open a blob as well as this service.
//! - Secrets cross the descriptor to the TPM encrypted (`session.rs`), so that whoever listens on the bus of a discrete TPM reads
//!   none. Whoever stands in between when something is sealed can give a storage key of its own for the TPM's, and read it; what
//!   was sealed under the TPM's own opens under no other.
//! - It knows no password of the owner hierarchy: a TPM whose owner has set one refuses.

use std::io::{Read, Write};

use distos_abi::{Fault, NodeId, VatName};
use distos_delivery::{Content, Purpose, RecipientKey};
use distos_evidence::evidence::{ALG_ECC, ALG_NULL, ALG_SHA256, CURVE_P256, PcrSet, Pcrs};
use distos_evidence::joining::IMAGE_PCR;
use distos_evidence::wire::{Broken, Reader, Writer};
use distos_types::SECRET_BYTES;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::collector::Collector;
use crate::session::{Kind, SaltKey, name};
use crate::tpm::{CC_LOAD, Command, HIERARCHY_OWNER, Tpm, TpmError, is_parameters, selection};

/// The longest blob that is read. Ours has about 300 bytes.
pub(crate) const MAX_BLOB_BYTES: usize = 2048;
/// The firmware's registers on a PC, which the image's joins.
const FIRMWARE_PCRS: std::ops::RangeInclusive<u8> = 0..=7;

const VERSION: u8 = 2;
/// The version of blobs that do not name their storage key.
const WITHOUT_STORAGE: u8 = 1;
const OWNER_DOMAIN: &[u8] = b"distos-sealed-v1";
const OWNER_BYTES: usize = 32;

const CC_CREATE: u32 = 0x0153;
const CC_UNSEAL: u32 = 0x015e;
const CC_POLICY_PCR: u32 = 0x017f;
const ALG_AES: u16 = 0x0006;
const ALG_KEYEDHASH: u16 = 0x0008;
const ALG_CFB: u16 = 0x0043;
/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt (Part 2, 8.3).
const STORAGE_ATTRIBUTES: u32 = 0x0003_0472;
/// fixedTPM, fixedParent, adminWithPolicy, noDA. Without userWithAuth its empty password opens nothing: the policy does.
const SEALED_ATTRIBUTES: u32 = 0x0000_0492;

/// What opens in one TPM alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    /// The name of the storage key that it is under.
    storage: Vec<u8>,
    /// `TPMT_PUBLIC`.
    public: Vec<u8>,
    /// `TPM2B_PRIVATE`'s content: encrypted by the TPM.
    private: Vec<u8>,
}

impl Blob {
    /// Reads one, whole and without anything after it. [`Fault::Malformed`] says of one that was sealed before the storage
    /// key's name was in it what is to be done.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Blob, Fault> {
        if bytes.len() > MAX_BLOB_BYTES {
            return Err(Broken("a blob that is longer than any").into());
        }
        let mut r = Reader::new(bytes);
        match r.u8("the blob's version")? {
            VERSION => {}
            WITHOUT_STORAGE => {
                return Err(Fault::malformed(
                    "sealed by an older version: unseal with shares, then `distos secret bind`",
                ));
            }
            _ => return Err(Broken("the blob's version").into()),
        }
        let storage = r.sized("the blob's storage key")?.to_vec();
        let public = r.sized("the blob's public part")?.to_vec();
        let private = r.sized("the blob's private part")?.to_vec();
        r.end("the blob's end")?;
        Ok(Blob { storage, public, private })
    }

    /// As [`Blob::parse`] reads it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let start = Writer::default().u8(VERSION).sized(&self.storage);
        start.sized(&self.public).sized(&self.private).done()
    }
}

/// The registers that what is sealed depends on.
fn registers() -> PcrSet {
    FIRMWARE_PCRS.fold(PcrSet::default(), PcrSet::with).with(IMAGE_PCR)
}

/// The digest of a policy that is `TPM2_PolicyPCR` alone, over these registers with these values (Part 3, 23.7).
fn pcr_policy(values: &Pcrs) -> [u8; 32] {
    let set = values.keys().fold(PcrSet::default(), |set, pcr| set.with(*pcr));
    let held = values.values().fold(Sha256::new(), |held, value| held.chain_update(value));
    Sha256::new()
        .chain_update([0; 32])
        .chain_update(CC_POLICY_PCR.to_be_bytes())
        .chain_update(selection(set).done())
        .chain_update(held.finalize())
        .finalize()
        .into()
}

/// `TPMT_PUBLIC` of the key under which objects are kept: P-256 and AES-128, in the owner hierarchy (TCG TPM v2.0
/// Provisioning Guidance, 7.5.1).
fn storage_template() -> Vec<u8> {
    Writer::default()
        .u16(ALG_ECC)
        .u16(ALG_SHA256)
        .u32(STORAGE_ATTRIBUTES)
        .sized(&[])
        .u16(ALG_AES)
        .u16(128)
        .u16(ALG_CFB)
        .u16(ALG_NULL)
        .u16(CURVE_P256)
        .u16(ALG_NULL)
        .sized(&[])
        .sized(&[])
        .done()
}

/// `TPMT_PUBLIC` of an object that only a session with this policy opens.
fn sealed_template(policy: &[u8; 32]) -> Vec<u8> {
    Writer::default()
        .u16(ALG_KEYEDHASH)
        .u16(ALG_SHA256)
        .u32(SEALED_ATTRIBUTES)
        .sized(policy)
        .u16(ALG_NULL)
        .sized(&[])
        .done()
}

/// Whether a response code says that the policy does not hold (Part 2, 6.6.3: `TPM_RC_POLICY_FAIL`, of whichever session).
fn is_policy_failure(code: u32) -> bool {
    code & 0xff == 0x9d
}

/// The key of this TPM under which objects are kept, while it is loaded.
struct Storage {
    handle: u32,
    /// `TPMT_PUBLIC`.
    public: Vec<u8>,
    x: [u8; 32],
    y: [u8; 32],
}

impl Storage {
    /// [`Broken`] if it is no key of the template.
    fn of(handle: u32, public: Vec<u8>) -> Result<Storage, Broken> {
        let template = storage_template();
        // Up to its point, of which the template has none.
        let shape = &template[..template.len() - 2 * size_of::<u16>()];
        let field = "the storage key";
        let mut r = Reader::new(public.strip_prefix(shape).ok_or(Broken(field))?);
        let (x, y) = (r.sized(field)?, r.sized(field)?);
        let whole = |number: &[u8]| number.try_into().map_err(|_| Broken(field));
        let (x, y) = (whole(x)?, whole(y)?);
        r.end(field)?;
        Ok(Storage { handle, public, x, y })
    }

    fn salt_key(&self) -> SaltKey<'_> {
        SaltKey { handle: self.handle, point: (&self.x, &self.y) }
    }
}

impl<T: Read + Write> Tpm<T> {
    /// Seals `data`, of at most 128 bytes, to the values that these registers have.
    fn seal(&mut self, data: &[u8], pcrs: PcrSet) -> Result<Blob, TpmError> {
        let policy = pcr_policy(&self.pcr_read(pcrs)?);
        self.with_storage_key(|tpm, key| tpm.create(key, data, &policy))
    }

    /// Gives back what was sealed.
    ///
    /// # Errors
    /// [`TpmError::Registers`] if these have other values than then, [`TpmError::Another`] if it is another TPM's.
    fn unseal(&mut self, blob: &Blob, pcrs: PcrSet) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        self.with_storage_key(|tpm, key| {
            if name(&key.public) != blob.storage {
                return Err(TpmError::Another);
            }
            let object = tpm.load(key.handle, blob)?;
            let opened = tpm.unseal_loaded(key, (object, &name(&blob.public)), pcrs);
            let flushed = tpm.flush(object);
            opened.and_then(|data| flushed.map(|()| data))
        })
    }

    fn with_storage_key<R>(
        &mut self,
        act: impl FnOnce(&mut Self, &Storage) -> Result<R, TpmError>,
    ) -> Result<R, TpmError> {
        let (handle, public) = self.create_primary_in(HIERARCHY_OWNER, &storage_template())?;
        let done = match Storage::of(handle, public) {
            Ok(key) => act(self, &key),
            Err(broken) => Err(broken.into()),
        };
        // Flushed also when that failed, or three failures would fill the TPM.
        let flushed = self.flush(handle);
        done.and_then(|result| flushed.map(|()| result))
    }

    fn create(&mut self, key: &Storage, data: &[u8], policy: &[u8; 32]) -> Result<Blob, TpmError> {
        // No password, and the data.
        let room = 2 * size_of::<u16>() + data.len();
        let sensitive = Zeroizing::new(Writer::with_room(room).sized(&[]).sized(data).done());
        let public = sealed_template(policy);
        // No further data and no registers to be noted as those at its making.
        let rest = Writer::default().sized(&public).sized(&[]).u32(0).done();
        let storage = name(&key.public);
        let session = self.start_salted(Kind::Hmac, key.salt_key())?;
        let handle = session.handle;
        let created = session
            .sending(CC_CREATE, (key.handle, &storage), sensitive, &rest)
            .and_then(|command| self.call_with_secret(command));
        self.used(handle, created.is_ok());
        let parameters = created?;
        let mut made = Reader::new(&parameters);
        let private = made.sized("outPrivate")?.to_vec();
        let public = made.sized("outPublic")?.to_vec();
        Ok(Blob { storage, public, private })
    }

    fn load(&mut self, key: u32, blob: &Blob) -> Result<u32, TpmError> {
        let parameters = Writer::default().sized(&blob.private).sized(&blob.public);
        let response = self.call(&Command::authorized(CC_LOAD, key, parameters)).map_err(
            |error| match error {
                TpmError::Refused { code, .. } if is_parameters(code) => TpmError::Another,
                error => error,
            },
        )?;
        self.made(&response)
    }

    fn unseal_loaded(
        &mut self,
        key: &Storage,
        object: (u32, &[u8]),
        pcrs: PcrSet,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let session = self.start_salted(Kind::Policy, key.salt_key())?;
        let handle = session.handle;
        // Without a digest the TPM takes the registers as they are.
        let parameters = Writer::default().u32(handle).sized(&[]).bytes(&selection(pcrs).done());
        let unsealed = self
            .call(&Command::plain(CC_POLICY_PCR, parameters))
            .and_then(|_| session.fetching(CC_UNSEAL, object))
            .and_then(|command| self.call_for_secret(command));
        self.used(handle, unsealed.is_ok());
        unsealed.map_err(|error| match error {
            TpmError::Refused { command: CC_UNSEAL, code } if is_policy_failure(code) => {
                TpmError::Registers
            }
            error => error,
        })
    }
}

/// What stands before a secret for whom it was sealed.
fn owner_tag(vat: &VatName) -> [u8; OWNER_BYTES] {
    Sha256::new().chain_update(OWNER_DOMAIN).chain_update(vat.as_str()).finalize().into()
}

/// A secret that nobody can guess.
pub(crate) fn new_secret() -> Result<Zeroizing<[u8; SECRET_BYTES]>, Fault> {
    let mut secret = Zeroizing::new([0; SECRET_BYTES]);
    getrandom::fill(&mut *secret).map_err(Fault::internal)?;
    Ok(secret)
}

/// A secret as it goes to the vat of this node that it was sealed for.
pub(crate) fn parcel(
    node: NodeId,
    vat: &VatName,
    to: RecipientKey,
    secret: &[u8; SECRET_BYTES],
) -> Result<Vec<u8>, Fault> {
    distos_delivery::seal(to, &Purpose::of_vat(node, vat, Content::Sealed), secret)
}

impl<T: Read + Write> Collector<T> {
    /// Seals a secret of the vat `owner` to this TPM and what this node has booted: firmware, boot loader and image as far
    /// as registers 0 to 7 and the image's say. It opens for that vat alone.
    pub(crate) fn seal(
        &mut self,
        owner: &VatName,
        secret: &[u8; SECRET_BYTES],
        now_ms: u64,
    ) -> Result<Vec<u8>, Fault> {
        self.measure_image(now_ms)?;
        let mut data = Zeroizing::new([0; OWNER_BYTES + SECRET_BYTES]);
        data[..OWNER_BYTES].copy_from_slice(&owner_tag(owner));
        data[OWNER_BYTES..].copy_from_slice(secret);
        Ok(self.tpm.seal(&*data, registers())?.encode())
    }

    /// Gives back a secret that was sealed for the vat `owner`.
    ///
    /// # Errors
    /// [`Fault::StaleAttestation`] if the registers are others than then, [`Fault::Unauthenticated`] if it is of another
    /// TPM or for another vat, [`Fault::Unavailable`] if the TPM does not answer.
    pub(crate) fn unseal(
        &mut self,
        owner: &VatName,
        blob: &Blob,
        now_ms: u64,
    ) -> Result<Zeroizing<[u8; SECRET_BYTES]>, Fault> {
        self.measure_image(now_ms)?;
        let data = self.tpm.unseal(blob, registers())?;
        let not_its =
            || Fault::Unauthenticated("it was sealed for another service of this node".into());
        let (tag, secret) = data.split_at_checked(OWNER_BYTES).ok_or_else(not_its)?;
        if tag != owner_tag(owner) || secret.len() != SECRET_BYTES {
            return Err(not_its());
        }
        let mut given = Zeroizing::new([0; SECRET_BYTES]);
        given.copy_from_slice(secret);
        Ok(given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::{Node, Swtpm, swtpm};
    use crate::tpm::{Auth, TimedFd};
    use proptest::prelude::*;

    const SECRET: [u8; SECRET_BYTES] = [0x5e; SECRET_BYTES];
    const IMAGE: [u8; 32] = [0x11; 32];

    fn values(pcrs: &[(u8, u8)]) -> Pcrs {
        pcrs.iter().map(|(pcr, byte)| (*pcr, [*byte; 32])).collect()
    }

    #[test]
    fn what_is_sealed_depends_on_the_firmwares_registers_and_the_images_and_no_others() {
        let all: Vec<u8> = registers().iter().collect();
        assert_eq!(all, [0, 1, 2, 3, 4, 5, 6, 7, 11]);
    }

    #[test]
    fn a_register_that_changed_in_any_way_is_another_policy() {
        let sealed = pcr_policy(&values(&[(0, 1), (4, 2), (11, 3)]));
        for other in [
            values(&[(0, 1), (4, 2), (11, 4)]),
            values(&[(0, 2), (4, 1), (11, 3)]),
            values(&[(0, 1), (5, 2), (11, 3)]),
            values(&[(0, 1), (4, 2)]),
            values(&[(0, 1), (4, 2), (7, 0), (11, 3)]),
        ] {
            assert_ne!(pcr_policy(&other), sealed, "{other:?}");
        }
    }

    #[test]
    fn a_policy_is_what_others_compute() {
        // What tpm2_createpolicy --policy-pcr -l sha256:0,1,2,3,4,5,7,11 says of registers as a reset leaves them.
        let policy = pcr_policy(&values(&[0, 1, 2, 3, 4, 5, 7, 11].map(|pcr| (pcr, 0))));
        let expected = "6a745e7d8ba0d86ba2cb4850d1226589c96b12e923e64d86680d2f5e36453cbb";
        assert_eq!(hex::encode(policy), expected);
    }

    fn vat(name: &str) -> VatName {
        VatName::new(name).unwrap()
    }

    fn sealed(node: &Node) -> Vec<u8> {
        let (_swtpm, mut collector) = node.boot(IMAGE);
        collector.seal(&vat("secrets"), &SECRET, 5).unwrap()
    }

    fn opened(node: &Node, image: [u8; 32], name: &str, blob: &[u8]) -> Result<[u8; 32], Fault> {
        let (_swtpm, mut collector) = node.boot(image);
        collector.unseal(&vat(name), &Blob::parse(blob).unwrap(), 5).map(|secret| *secret)
    }

    #[test]
    fn a_sealed_secret_opens_after_every_boot_of_the_same_image_and_fills_no_tpm() {
        let node = Node::new();
        let blob = sealed(&node);
        assert!(blob.len() < 440 && !blob.windows(8).any(|w| w == &SECRET[..8]));
        assert_eq!(opened(&node, IMAGE, "secrets", &blob).unwrap(), SECRET);
        let (_swtpm, mut collector) = node.boot(IMAGE);
        let blob = Blob::parse(&blob).unwrap();
        // More often than the TPM has room for objects and sessions.
        for _ in 0..6 {
            assert_eq!(*collector.unseal(&vat("secrets"), &blob, 5).unwrap(), SECRET);
            collector.seal(&vat("secrets"), &SECRET, 5).unwrap();
            assert!(collector.unseal(&vat("memory"), &blob, 5).is_err());
        }
        assert!(collector.identity(5).is_ok());
    }

    #[test]
    fn a_node_that_booted_something_else_does_not_get_it() {
        let node = Node::new();
        let blob = sealed(&node);
        let fault = opened(&node, [0x22; 32], "secrets", &blob).unwrap_err();
        assert!(matches!(fault, Fault::StaleAttestation(_)), "{fault}");
        let (_swtpm, mut collector) = node.boot(IMAGE);
        let blob = Blob::parse(&blob).unwrap();
        assert_eq!(*collector.unseal(&vat("secrets"), &blob, 5).unwrap(), SECRET);
        for (pcr, opens) in [(10, true), (4, false)] {
            collector.tpm.pcr_extend(pcr, &[0xee; 32]).unwrap();
            // More refusals than the TPM has room for sessions.
            for _ in 0..5 {
                let again = collector.unseal(&vat("secrets"), &blob, 5).map(|secret| *secret);
                assert_eq!(again.is_ok(), opens, "register {pcr}: {again:?}");
                assert!(opens || matches!(again, Err(Fault::StaleAttestation(_))));
            }
        }
    }

    /// What stands between this process and a TPM: keeps what passes, and changes one byte of one answer if it is to.
    struct Between {
        io: TimedFd,
        passed: Vec<u8>,
        answers: usize,
        change: Option<(usize, usize)>,
    }

    impl Read for Between {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let read = self.io.read(buffer)?;
            self.answers += 1;
            match self.change {
                Some((answer, at)) if answer == self.answers && at < read => buffer[at] ^= 1,
                _ => {}
            }
            self.passed.extend(&buffer[..read]);
            Ok(read)
        }
    }

    impl Write for Between {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let written = self.io.write(bytes)?;
            self.passed.extend(&bytes[..written]);
            Ok(written)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            self.io.flush()
        }
    }

    fn listened(node: &Node) -> (Swtpm, Tpm<Between>) {
        let (process, tpm) = swtpm(node.state.path());
        let io = Between { io: tpm.into_io(), passed: Vec::new(), answers: 0, change: None };
        (process, Tpm::new(io))
    }

    fn has_passed(tpm: &Tpm<Between>) -> bool {
        tpm.io().passed.windows(SECRET.len()).any(|window| window == SECRET)
    }

    #[test]
    fn whoever_listens_between_this_service_and_the_tpm_hears_no_secret() {
        let node = Node::new();
        let (_swtpm, mut tpm) = listened(&node);
        let blob = tpm.seal(&SECRET, registers()).unwrap();
        assert_eq!(*tpm.unseal(&blob, registers()).unwrap(), SECRET);
        assert!(tpm.io().passed.len() > 1000 && !has_passed(&tpm));
        // Without a session that encrypts, the same TPM gives it to whoever listens.
        let plain = tpm.with_storage_key(|tpm, key| {
            let object = tpm.load(key.handle, &blob)?;
            let session = tpm.start_policy(ALG_SHA256)?;
            let parameters =
                Writer::default().u32(session).sized(&[]).bytes(&selection(registers()).done());
            tpm.call(&Command::plain(CC_POLICY_PCR, parameters))?;
            let auths = [Auth::Session(session)];
            let command = Command::new(CC_UNSEAL, &[object], &auths, Writer::default());
            let response = tpm.call(&command);
            tpm.used(session, response.is_ok());
            tpm.flush(object)?;
            response
        });
        assert!(plain.is_ok() && has_passed(&tpm), "{plain:?}");
    }

    #[test]
    fn an_answer_that_was_changed_on_its_way_from_the_tpm_is_no_secret() {
        let node = Node::new();
        let (_swtpm, mut tpm) = listened(&node);
        let blob = tpm.seal(&SECRET, registers()).unwrap();
        // The key, the object, the session and the policy come before the secret; then objects are flushed.
        let before = tpm.io().answers;
        assert!(tpm.unseal(&blob, registers()).is_ok());
        let secret = tpm.io().answers - before - 2;
        // A byte of what is encrypted, and one of the session's nonce.
        for at in [20, 60] {
            let begun = tpm.io().answers;
            tpm.io_mut().change = Some((begun + secret, at));
            let opened = tpm.unseal(&blob, registers());
            assert!(matches!(opened, Err(TpmError::Malformed(_))), "byte {at}: {opened:?}");
        }
    }

    /// Else whoever stands in between agrees on the session's key with us in its place.
    #[test]
    fn nothing_is_asked_for_by_another_storage_key_than_that_it_was_sealed_under() {
        let node = Node::new();
        let (_swtpm, mut tpm) = listened(&node);
        let mut blob = tpm.seal(&SECRET, registers()).unwrap();
        blob.storage[20] ^= 1;
        assert!(matches!(tpm.unseal(&blob, registers()), Err(TpmError::Another)));
    }

    #[test]
    fn another_service_and_another_tpm_do_not_get_it() {
        let node = Node::new();
        let blob = sealed(&node);
        for (fault, whose) in [
            (opened(&node, IMAGE, "memory", &blob).unwrap_err(), "another service"),
            (opened(&Node::new(), IMAGE, "secrets", &blob).unwrap_err(), "another TPM"),
        ] {
            assert!(matches!(fault, Fault::Unauthenticated(_)), "{whose}: {fault}");
        }
    }

    #[test]
    fn a_blob_that_was_changed_anywhere_does_not_open() {
        let node = Node::new();
        let blob = sealed(&node);
        let (_swtpm, mut collector) = node.boot(IMAGE);
        for at in (0..blob.len()).step_by(7) {
            let mut changed = blob.clone();
            changed[at] ^= 1;
            let opened = Blob::parse(&changed)
                .and_then(|blob| collector.unseal(&vat("secrets"), &blob, 5).map(|secret| *secret));
            assert!(opened.is_err(), "byte {at}");
        }
        let whole = Blob::parse(&blob).unwrap();
        assert_eq!(*collector.unseal(&vat("secrets"), &whole, 5).unwrap(), SECRET);
    }

    #[test]
    fn of_a_blob_of_an_older_version_it_is_said_what_is_to_be_done() {
        let mut old = Blob { storage: vec![7; 34], public: vec![1], private: vec![2] }.encode();
        old[0] = WITHOUT_STORAGE;
        let Err(Fault::Malformed(why)) = Blob::parse(&old) else { panic!("it was read") };
        assert!(why.contains("distos secret bind"), "{why}");
    }

    proptest! {
        #[test]
        fn a_blob_of_arbitrary_bytes_never_panics_and_has_one_encoding(
            bytes in prop::collection::vec(any::<u8>(), 0..64), cut in 0usize..64,
        ) {
            let private = bytes.iter().rev().copied().collect();
            let blob = Blob { storage: vec![7; 34], public: bytes.clone(), private };
            let encoded = blob.encode();
            prop_assert_eq!(Blob::parse(&encoded), Ok(blob));
            prop_assert!(Blob::parse(&encoded[..cut.min(encoded.len() - 1)]).is_err());
            prop_assert!(Blob::parse(&[&encoded[..], &[0]].concat()).is_err());
            if let Ok(blob) = Blob::parse(&bytes) {
                prop_assert_eq!(blob.encode(), bytes);
            }
        }
    }
}
