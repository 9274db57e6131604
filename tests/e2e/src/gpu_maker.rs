//! A maker of GPUs that attest themselves, with an authority of its own. **Synthetic**: no such GPU exists. Its reports have
//! the shape of a real H100's, and are signed live, with the nonce that a node's GPU service asks with.
//!
//! A node loads the stand-in for NVIDIA's library; that hands each request to a thread of this test, which has the keys.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P384_SHA384,
};

use crate::repository;

/// How often the thread looks whether it is asked.
const POLL: Duration = Duration::from_millis(2);
/// What every synthetic GPU's firmware is.
const FIRMWARE_ID: [u8; 48] = [0x5f; 48];
/// How many blocks an H100 measures.
const BLOCKS: u8 = 64;

/// The authority, and a folder with its root.
pub struct GpuMaker {
    params: CertificateParams,
    key: KeyPair,
    folder: tempfile::TempDir,
    made: AtomicU32,
}

/// The GPUs of one machine. They stop answering when this is dropped.
pub struct Gpus {
    directory: PathBuf,
    keys: Arc<Vec<EcdsaKeyPair>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl GpuMaker {
    /// One that has made nothing yet.
    ///
    /// # Panics
    /// The test's own files cannot be written.
    pub fn found() -> GpuMaker {
        let key = p384();
        let mut params = named("synthetic GPU root of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("a certificate of the test's own");
        let folder = tempfile::tempdir().expect("a temporary directory");
        fs::write(folder.path().join("synthetic-root.pem"), pem(root.der())).expect("a file");
        GpuMaker { params, key, folder, made: AtomicU32::new(0) }
    }

    /// The folder that has the root.
    pub fn roots(&self) -> &Path {
        self.folder.path()
    }

    /// Makes so many GPUs for a machine, and puts them and the library into `directory`. At first they do what `says`
    /// says.
    ///
    /// # Panics
    /// There is no C compiler, or the directory cannot be written.
    pub fn supply(&self, directory: &Path, gpus: u32, says: &str) -> Gpus {
        build_library(directory);
        let keys: Vec<EcdsaKeyPair> = (0..gpus)
            .map(|index| {
                let (chain, key) = self.make();
                fs::write(directory.join(format!("chain-{index}")), chain).expect("a file");
                key
            })
            .collect();
        Gpus::start(directory, Arc::new(keys), says)
    }

    /// A GPU's certificates, as a library has them, and its key.
    fn make(&self) -> (String, EcdsaKeyPair) {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let root = Issuer::from_params(&self.params, &self.key);
        let (rom_key, leaf_key) = (p384(), p384());
        let mut rom = named("GH100 A01 GSP BROM");
        // A byte of type, and the device's number.
        let serial = DnType::CustomDnType(vec![2, 5, 4, 5]);
        rom.distinguished_name.push(serial, format!("41{:016x}", 1 + u64::from(number)));
        rom.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let rom_certificate = rom.signed_by(&rom_key, &root).expect("a certificate");
        let mut leaf = named("GH100 A01 GSP FMC LF");
        let firmware = [&[0x30, 0x30][..], &FIRMWARE_ID].concat();
        let id = CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], firmware);
        leaf.custom_extensions.push(id);
        let rom = Issuer::from_params(&rom, &rom_key);
        let leaf = leaf.signed_by(&leaf_key, &rom).expect("a certificate");
        let pkcs8 = leaf_key.serialize_der();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &pkcs8);
        ([pem(leaf.der()), pem(rom_certificate.der())].concat(), key.expect("a key of P-384"))
    }
}

impl Gpus {
    fn start(directory: &Path, keys: Arc<Vec<EcdsaKeyPair>>, says: &str) -> Gpus {
        let ended = Arc::new(AtomicBool::new(false));
        let (watched, until, own) = (directory.to_owned(), ended.clone(), keys.clone());
        let answer = move || {
            while !until.load(Ordering::Relaxed) {
                answer(&watched, &own);
                std::thread::sleep(POLL);
            }
        };
        let thread = Some(std::thread::spawn(answer));
        let gpus = Gpus { directory: directory.to_owned(), keys, ended, thread };
        gpus.says(says);
        gpus
    }

    /// The same GPUs in another machine, as if each question there was passed on to them: they answer both. The library
    /// is put into `directory` as well.
    ///
    /// # Panics
    /// As [`GpuMaker::supply`].
    pub fn relayed_to(&self, directory: &Path, says: &str) -> Gpus {
        build_library(directory);
        for index in 0..self.keys.len() {
            let name = format!("chain-{index}");
            fs::copy(self.directory.join(&name), directory.join(&name)).expect("a file");
        }
        Gpus::start(directory, self.keys.clone(), says)
    }

    /// From now on: how many GPUs there are, how many processes on each, how many bytes in use, and a word for how they
    /// attest themselves (`services/gpu/tests/fake-nvml/nvml.c`).
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn says(&self, what: &str) {
        // In one step: the library may be reading.
        let new = self.directory.join("state.new");
        fs::write(&new, what).expect("a file");
        fs::rename(&new, self.directory.join("state")).expect("a file");
    }
}

impl Drop for Gpus {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked leaves a test without answers, which then says so.
            let _ = thread.join();
        }
    }
}

/// Where [`build_library`] leaves it.
pub fn library(directory: &Path) -> PathBuf {
    directory.join("libnvidia-ml.so.1")
}

/// Builds the stand-in for NVIDIA's library into the directory from which it reads what to pretend.
///
/// # Panics
/// There is no C compiler.
pub fn build_library(directory: &Path) {
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(library(directory))
        .arg(format!("-DDIRECTORY=\"{}\"", directory.display()))
        .arg(repository().join("services/gpu/tests/fake-nvml/nvml.c"))
        .status();
    assert!(built.expect("a C compiler: run `make setup` first").success());
}

/// Answers what the library has asked since: files `ask-GPU-NONCE`.
fn answer(directory: &Path, keys: &[EcdsaKeyPair]) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(asked) = name.strip_prefix("ask-") else { continue };
        let Some((index, nonce)) = asked.split_once('-') else { continue };
        let key = index.parse().ok().and_then(|index: usize| keys.get(index));
        let mut bytes = [0; 32];
        let (Some(key), Ok(())) = (key, hex::decode_to_slice(nonce, &mut bytes)) else { continue };
        let new = directory.join("report.new");
        // A directory that is going away has nobody who waits for this.
        let _ = fs::remove_file(entry.path());
        let _ = fs::write(&new, report(key, bytes));
        let _ = fs::rename(&new, directory.join(format!("report-{asked}")));
    }
}

/// The request with this nonce and the response to it, signed.
fn report(key: &EcdsaKeyPair, nonce: [u8; 32]) -> Vec<u8> {
    let mut record = Vec::new();
    for number in 1..=BLOCKS {
        record.extend([number, 1, 51, 0, 1, 48, 0]);
        record.extend([number; 48]);
    }
    let fields: [(u16, &[u8]); 5] = [
        (3, b"999.10\0"),
        (6, &[0, 0xaa, 0, 0x96, 7, 0, 0, 0]),
        (11, &[0x55]),
        (20, &FIRMWARE_ID),
        (21, &[0x55]),
    ];
    let mut opaque = Vec::new();
    for (number, value) in fields {
        opaque.extend(number.to_le_bytes());
        opaque.extend((value.len() as u16).to_le_bytes());
        opaque.extend(value);
    }
    let mut out = vec![0x11, 0xe0, 1, 0xff];
    out.extend(nonce);
    out.extend([0, 0x11, 0x60, 0, 0, BLOCKS]);
    out.extend(&(record.len() as u32).to_le_bytes()[..3]);
    out.extend(record);
    out.extend([9; 32]);
    out.extend((opaque.len() as u16).to_le_bytes());
    out.extend(opaque);
    let signature = key.sign(&SystemRandom::new(), &out).expect("a signature");
    out.extend(signature.as_ref());
    out
}

fn p384() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key")
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<String> =
        text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
