//! `attest verify`: evidence from files, by the same code as a node's own, without a node.
//!
//! Files are told apart by what is in them. What is verified becomes submodules, as in a live attestation: a quote with the
//! log behind it is two, a machine's GPUs and switches are one each and one for the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use distos_abi::{Fault, NodeId};
use distos_appraisal::{
    Appraised, Device, Kind, MAX_POLICY_BYTES, POLICY, Policies, Tier, appraise,
};
use distos_collateral::{Added, Collateral, MAX_FILE_BYTES, MAX_FILES, Maker};
use distos_evidence::bank::{Bank, BankValues, Digest, read_values};
use distos_evidence::eventlog::{self, EventLog};
use distos_evidence::findings::{Claim, Outcome};
use distos_evidence::ima::{self, Extension, Form, IMA_PCR, Progress};
use distos_evidence::nvidia::machine::{self, Asking, Shown};
use distos_evidence::nvidia::{self, Architecture};
use distos_evidence::pki::{self, Certificate};
use distos_evidence::quote::{self, Quote, QuoteKey};
use distos_evidence::snp;
use distos_identity::{DetachedSignature, MAX_SIGNATURE_BYTES};
use serde_json::{Value, json};

use super::files::{io_fault, read_bytes, read_text};
use super::holder::now_ms;
use super::text::parse_instant_s;
use super::{Report, Stop};

/// The longest file of evidence, in bytes: a list of measured files.
const MAX_EVIDENCE_BYTES: u64 = 32 << 20;
/// How deep folders may lie in the one of trust.
const MAX_FOLDERS: usize = 4;
const WARNING: u8 = 30;
const NONE: u8 = 31;
const CONTRAINDICATED: u8 = 32;
/// How many values of a claim are shown to people.
const MAX_SHOWN: usize = 4;

/// What kind of evidence the files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Evidence {
    /// Reports of GPUs and switches: a JSON list, or a report and its certificate chain
    Nvidia,
    /// A quote: attest, signature and public key or certificate; if given, register values and logs
    Tpm,
    /// The log of a measured boot, and if given the register values that it is to be replayed to
    Eventlog,
    /// The kernel's list of measured files, and if given register values
    Ima,
    /// A report of SEV-SNP, and the certificates of the key that signed it
    Snp,
}

/// Arguments of `attest verify`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  distos attest verify --kind nvidia evidence.json --trust roots --nonce 4760e305…
  distos attest verify --kind tpm quote.msg quote.sig ak.pem quote.pcrs boot.log --nonce 9f3c…
  distos attest verify --kind eventlog /sys/kernel/security/tpm0/binary_bios_measurements pcrs.yaml
  distos attest verify --kind ima /sys/kernel/security/ima/ascii_runtime_measurements pcrs.yaml
  distos attest verify --kind snp report.bin vcek.der ask.pem --trust roots --policy snp.cedar
Files are told apart by what is in them, in any order. Register values are what `tpm2_quote --pcrs_output` or `tpm2_pcrread`
wrote, or JSON. Reference values of GPUs (RIM) and lists of revoked certificates lie in the folder of --trust.

Exit code 0: a policy affirms it; without --policy, it is genuine, which is not to say that it is good. 30: a policy warns.
31: nothing can be said, as something is missing, or no policy affirms it. 32: it contradicts itself, its roots or a policy.")]
pub struct VerifyArgs {
    /// What the files are
    #[arg(long, value_enum)]
    kind: Evidence,
    /// The evidence
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What was asked with, in hexadecimal [default: unknown, so the evidence may be of any age]. Several, if each GPU
    /// was asked with its own: one for each, in the order of the file
    #[arg(long, value_name = "HEX")]
    nonce: Vec<String>,
    /// Folder with the roots that are trusted; of its folders nvidia, tpm and amd, if there are such, the maker's alone
    #[arg(long, value_name = "DIR")]
    trust: Option<PathBuf>,
    /// The time to verify at, such as 2026-11-22T10:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_instant_s)]
    at: Option<u64>,
    /// What is good, in Cedar; with its signature beside it as FILE.sig, that is checked
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Digests of files that may be measured, one a line, such as sha256:9f3c… (--kind ima and tpm)
    #[arg(long, value_name = "FILE")]
    allow: Option<PathBuf>,
}

/// A file of evidence, or several in one.
struct Files {
    list: Vec<(PathBuf, Vec<u8>)>,
}

/// What evidence is verified with.
struct Desk {
    nonces: Vec<Vec<u8>>,
    trust: Collateral,
    at_s: u64,
    allow: Option<BTreeSet<String>>,
}

impl Desk {
    /// The one nonce, if there is one.
    fn nonce(&self) -> Option<&[u8]> {
        self.nonces.first().map(Vec::as_slice)
    }
}

type Submodules = BTreeMap<String, Device>;

pub(super) fn command(args: &VerifyArgs) -> Result<Report, Stop> {
    let nonces = args.nonce.iter().map(|text| {
        hex::decode(text).map_err(|_| Stop::Usage(format!("--nonce '{text}' is not hexadecimal")))
    });
    let nonces: Vec<Vec<u8>> = nonces.collect::<Result<_, Stop>>()?;
    if nonces.len() > 1 && args.kind != Evidence::Nvidia {
        return Err(Stop::Usage("--nonce: only GPUs are asked with several".to_owned()));
    }
    let maker = match args.kind {
        Evidence::Nvidia => Maker::Nvidia,
        Evidence::Tpm | Evidence::Eventlog | Evidence::Ima => Maker::Tpm,
        Evidence::Snp => Maker::Amd,
    };
    let mut desk = Desk {
        nonces,
        trust: Collateral::default(),
        at_s: args.at.unwrap_or(now_ms() / 1000),
        allow: args.allow.as_deref().map(allowed).transpose()?,
    };
    let mut notes = match &args.trust {
        Some(folder) => pin(folder, maker, &mut desk.trust)?,
        None => Vec::new(),
    };
    let mut files = Files { list: Vec::new() };
    for path in &args.files {
        files.list.push((path.clone(), read_bytes(path, MAX_EVIDENCE_BYTES)?));
    }
    let policies = args.policy.as_deref().map(policies).transpose()?;
    let submods = match args.kind {
        Evidence::Nvidia => of_nvidia(&mut desk, files, &mut notes)?,
        Evidence::Tpm => of_tpm(&desk, files, &mut notes)?,
        Evidence::Eventlog => of_eventlog(files, &mut notes)?,
        Evidence::Ima => of_ima(&desk, files, &mut notes)?,
        Evidence::Snp => of_snp(&desk, files)?,
    };
    // Nobody's node, and no verifier's: what they are called is for policies that name nodes.
    let nobody = NodeId([0; 32]);
    let appraised = appraise(policies.as_ref(), nobody, nobody, &submods)?;
    let verdict = Verdict::of(policies.is_some(), &submods, &appraised);
    let report = Report {
        json: told_json(&desk, verdict, &submods, &appraised, policies.as_ref(), &notes),
        text: told(verdict, &submods, &appraised, policies.as_ref(), &notes),
    };
    match verdict.code() {
        0 => Ok(report),
        code => Err(Stop::Verdict { report, code }),
    }
}

/// What is said of it all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// By a policy.
    Tier(Tier),
    /// Without one: each part is whole, and signed by whom it should be.
    Genuine,
}

impl Verdict {
    fn of(is_by_policy: bool, submods: &Submodules, appraised: &Appraised) -> Verdict {
        if is_by_policy {
            return Verdict::Tier(appraised.tier());
        }
        let mut worst = Verdict::Genuine;
        for device in submods.values() {
            if device.findings.worst() == Outcome::Failed {
                return Verdict::Tier(Tier::Contraindicated);
            }
            let proven = essential(device.kind);
            if proven.iter().any(|name| device.findings.outcome(name) != Outcome::Passed) {
                worst = Verdict::Tier(Tier::None);
            }
        }
        worst
    }

    fn name(self) -> &'static str {
        match self {
            Verdict::Tier(tier) => tier.name(),
            Verdict::Genuine => "genuine",
        }
    }

    fn code(self) -> u8 {
        match self {
            Verdict::Genuine | Verdict::Tier(Tier::Affirming) => 0,
            Verdict::Tier(Tier::Warning) => WARNING,
            Verdict::Tier(Tier::None) => NONE,
            Verdict::Tier(Tier::Contraindicated) => CONTRAINDICATED,
        }
    }
}

/// Without which evidence of a kind is nobody's.
fn essential(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Tpm => &[quote::SIGNATURE, quote::MAGIC, quote::QUOTE],
        Kind::EventLog => &[eventlog::FORMAT, eventlog::REPLAY],
        Kind::Ima => &[ima::LIST, ima::REPLAY],
        Kind::NvidiaGpu | Kind::NvidiaSwitch => {
            &[pki::CHAIN, nvidia::ARCHITECTURE, nvidia::FORMAT, nvidia::SIGNATURE]
        }
        Kind::NvidiaMachine => &[machine::ONE_NONCE, machine::DISTINCT],
        Kind::Snp => &[pki::CHAIN, snp::FORMAT, snp::SIGNATURE, snp::SIGNING_KEY, snp::FIRMWARE],
    }
}

/// Reads a maker's folder of trust, and says what in it is not used.
fn pin(folder: &Path, maker: Maker, trust: &mut Collateral) -> Result<Vec<String>, Fault> {
    // Where makers are kept apart, a root says nothing about another maker's devices.
    let is_kept_apart = Maker::ALL.iter().any(|one| folder.join(one.folder()).is_dir());
    let own = folder.join(maker.folder());
    let folder = if is_kept_apart { &own } else { folder };
    let mut found = Vec::new();
    listed(folder, MAX_FOLDERS, &mut found)?;
    let mut notes = Vec::new();
    for path in found {
        let bytes = read_bytes(&path, MAX_FILE_BYTES as u64)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Err(why) = trust.add(&name, &bytes) {
            notes.push(format!("{} is not used: {why}", path.display()));
        }
    }
    if trust.roots() == 0 {
        return Err(Fault::malformed(format!(
            "{} holds no root: a certificate that names itself as its issuer, in PEM or DER",
            folder.display()
        )));
    }
    Ok(notes)
}

/// Every file in a folder of trust and in its folders, by its name from there.
pub(super) fn files_of(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, Fault> {
    let mut found = Vec::new();
    listed(folder, MAX_FOLDERS, &mut found)?;
    let mut files = BTreeMap::new();
    for path in found {
        let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        files.insert(name, read_bytes(&path, MAX_FILE_BYTES as u64)?);
    }
    Ok(files)
}

fn listed(folder: &Path, deep: usize, found: &mut Vec<PathBuf>) -> Result<(), Fault> {
    let read = fs::read_dir(folder).map_err(|e| io_fault(folder, &e))?;
    for entry in read {
        let entry = entry.map_err(|e| io_fault(folder, &e))?;
        let is_folder = entry.file_type().map_err(|e| io_fault(folder, &e))?.is_dir();
        // What would be left out could be what revokes.
        if found.len() == MAX_FILES || (is_folder && deep == 0) {
            return Err(Fault::malformed(format!(
                "{} has more than {MAX_FILES} files, or folders more than {MAX_FOLDERS} deep",
                folder.display()
            )));
        }
        if is_folder {
            listed(&entry.path(), deep - 1, found)?;
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(())
}

fn allowed(path: &Path) -> Result<BTreeSet<String>, Fault> {
    Ok(ima::known_files(&read_text(path, MAX_EVIDENCE_BYTES)?))
}

fn policies(path: &Path) -> Result<Policies, Fault> {
    let file = read_bytes(path, MAX_POLICY_BYTES as u64)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".sig");
    let beside = PathBuf::from(beside);
    if !beside.exists() {
        return Policies::unsigned(&file);
    }
    // Whether its signer is somebody to trust was decided by whoever chose the file. That it is whole is checked.
    let signature = read_text(&beside, MAX_SIGNATURE_BYTES as u64)?;
    let signer = DetachedSignature::parse(POLICY, &signature)?.verify(&file)?;
    Policies::open(&file, &signature, &[signer])
}

impl Files {
    /// Takes out the files that are so, and whatever `read` makes of each.
    fn take<T>(&mut self, read: impl Fn(&[u8]) -> Option<T>) -> Vec<T> {
        let mut taken = Vec::new();
        self.list.retain(|(_, bytes)| match read(bytes) {
            Some(one) => {
                taken.push(one);
                false
            }
            None => true,
        });
        taken
    }

    /// The one that is so.
    fn one<T>(&mut self, what: &str, read: impl Fn(&[u8]) -> Option<T>) -> Result<T, Fault> {
        let mut taken = self.take(read);
        match (taken.pop(), taken.is_empty()) {
            (Some(one), true) => Ok(one),
            (Some(_), false) => Err(Fault::malformed(format!("more than one file is {what}"))),
            (None, _) => Err(Fault::malformed(format!("no file is {what}"))),
        }
    }

    /// Refuses what nothing was made of.
    fn none_left(&self) -> Result<(), Fault> {
        match self.list.first() {
            None => Ok(()),
            Some((path, _)) => Err(Fault::malformed(format!(
                "{} is nothing that belongs to evidence of this kind",
                path.display()
            ))),
        }
    }

    /// Register values, if there are any.
    fn values(&mut self) -> Vec<BankValues> {
        let found = self.take(|bytes| {
            if let Ok(values) = quote::values_of_tools(bytes) {
                return Some(vec![values]);
            }
            let text = std::str::from_utf8(bytes).ok()?;
            read_values(text).ok().filter(|banks| !banks.is_empty())
        });
        found.into_iter().flatten().collect()
    }
}

fn of_nvidia(
    desk: &mut Desk,
    mut files: Files,
    notes: &mut Vec<String>,
) -> Result<Submodules, Fault> {
    for document in
        files.take(|bytes| bytes.trim_ascii_start().starts_with(b"<").then(|| bytes.to_vec()))
    {
        let added = desk.trust.add("document", &document).map_err(Fault::malformed)?;
        if added != Added::Document {
            return Err(Fault::malformed("a file looks like XML, and is no reference values"));
        }
    }
    let mut devices = Vec::new();
    for list in
        files.take(|bytes| bytes.trim_ascii_start().starts_with(b"[").then(|| bytes.to_vec()))
    {
        let read = nvidia::Evidence::from_json(&list);
        devices.extend(read.map_err(|why| Fault::malformed(format!("the list: {why}")))?);
    }
    if devices.is_empty() {
        let chain = files.one("a certificate chain in PEM", |bytes| {
            Certificate::several(bytes).ok().filter(|_| bytes.is_ascii())
        })?;
        let report = files.one("a report", |bytes| Some(unhexed(bytes)))?;
        let architecture = Architecture::of_chain(&chain)
            .ok_or_else(|| Fault::malformed("the chain is of no known GPU or switch"))?;
        devices.push((nvidia::Evidence { architecture, chain, report, driver: None }, None));
    }
    files.none_left()?;
    let (golden, refused) = desk.trust.golden(desk.at_s);
    notes.extend(refused.into_iter().map(|(name, why)| format!("{name} is not used: {why}")));
    let all = devices.len();
    let mut seen = BTreeSet::new();
    devices.retain(|(evidence, _)| seen.insert(evidence.report.clone()));
    if devices.len() < all {
        notes.push(format!("{} of {all} reports are there more than once", all - devices.len()));
    }
    let (given, asking) = asked_of_nvidia(desk, devices.len())?;
    let named: Vec<[u8; 32]> = devices.iter().filter_map(|(_, nonce)| *nonce).collect();
    if desk.nonces.is_empty() && !named.is_empty() {
        notes.push("the nonce in the file is whoever's who wrote it: give --nonce".to_owned());
    }
    if given.iter().flatten().chain(&named).any(nvidia::is_sample_nonce) {
        notes.push(
            "the nonce is one of published samples: anybody has reports that answer it".to_owned(),
        );
    }
    if devices.iter().any(|(evidence, _)| evidence.driver.is_some()) {
        notes.push("what the driver says in the file is whoever's word who wrote it".to_owned());
    }
    let shown: Vec<Shown> = devices
        .into_iter()
        .zip(given)
        .map(|((evidence, noted), nonce)| Shown { evidence, nonce, noted })
        .collect();
    let found = machine::verify_shown(&shown, asking, desk.trust.anchors(desk.at_s), &golden);
    if found.names_absent {
        notes.push("the devices name others, of which there is no evidence: what they are linked with could be anybody's".to_owned());
    }
    let mut submods = Submodules::new();
    for (name, one) in found.devices {
        let kind = if one.is_switch { Kind::NvidiaSwitch } else { Kind::NvidiaGpu };
        submods.insert(name, Device { kind, findings: one.findings });
    }
    if let Some(findings) = found.together {
        submods.insert("machine".to_owned(), Device { kind: Kind::NvidiaMachine, findings });
    }
    Ok(submods)
}

/// What each device has to answer, if that is known.
type Nonces = Vec<Option<[u8; 32]>>;

/// What each of so many devices has to answer: one nonce is for all, several are one for each in its order.
fn asked_of_nvidia(desk: &Desk, devices: usize) -> Result<(Nonces, Asking), Fault> {
    let read = |nonce: &Vec<u8>| {
        nonce.as_slice().try_into().map_err(|_| {
            Fault::malformed(format!("a nonce of a GPU has 32 bytes, not {}", nonce.len()))
        })
    };
    let nonces: Vec<[u8; 32]> = desk.nonces.iter().map(read).collect::<Result<_, Fault>>()?;
    match nonces.as_slice() {
        [] => Ok((vec![None; devices], Asking::Together)),
        [one] => Ok((vec![Some(*one); devices], Asking::Together)),
        several if several.len() == devices => {
            Ok((several.iter().copied().map(Some).collect(), Asking::Apart))
        }
        several => Err(Fault::malformed(format!(
            "{} nonces for {devices} devices: give one for all, or one for each in its order",
            several.len()
        ))),
    }
}

fn of_tpm(desk: &Desk, mut files: Files, notes: &mut Vec<String>) -> Result<Submodules, Fault> {
    const GENERATED: &[u8] = &[0xff, b'T', b'C', b'G'];
    const SIGNATURES: std::ops::RangeInclusive<u8> = 0x14..=0x18;
    let attest =
        files.one("a quote (TPMS_ATTEST)", |b| b.starts_with(GENERATED).then(|| b.to_vec()))?;
    let signature = files.one("a signature (TPMT_SIGNATURE)", |b| {
        matches!(b, [0, scheme, 0, _, ..] if SIGNATURES.contains(scheme)).then(|| b.to_vec())
    })?;
    let mut keys = files.take(|b| QuoteKey::parse(b).ok()).into_iter();
    let first =
        keys.next().ok_or_else(|| Fault::malformed("no file is a public key or certificate"))?;
    let key = keys
        .try_fold(first, QuoteKey::and)
        .ok_or_else(|| Fault::malformed("there are two keys: give one, and its certificate"))?;
    let values = files.values();
    let logs = files.take(event_log);
    let lists = files.take(ima_list);
    files.none_left()?;
    if logs.len() > 1 || lists.len() > 1 {
        return Err(Fault::malformed("there are two logs of one kind"));
    }
    let quote = Quote { attest: &attest, signature: &signature, values: &values };
    let (findings, proven) =
        quote::verify(quote, &key, desk.nonce(), desk.trust.anchors(desk.at_s));
    if findings.outcome(pki::CHAIN) != Outcome::Passed {
        notes.push(
            "nobody certifies the key: the quote is as good as whoever gave it to you".to_owned(),
        );
    }
    let mut submods = Submodules::new();
    submods.insert("tpm".to_owned(), Device { kind: Kind::Tpm, findings });
    if let Some(log) = logs.first() {
        let findings = eventlog::verify(log, strongest(&proven, log).as_ref());
        submods.insert("eventlog".to_owned(), Device { kind: Kind::EventLog, findings });
    }
    if let Some(list) = lists.first() {
        submods.insert("ima".to_owned(), measured(desk, list, &proven));
    }
    Ok(submods)
}

/// The values that a log is to be replayed to: of the bank that says most, of those that the log has digests for.
fn strongest(values: &[BankValues], log: &[u8]) -> Option<BankValues> {
    let parsed = EventLog::parse(log);
    let usable = parsed.as_ref().map(|log| log.banks()).unwrap_or_default();
    let banks = [Bank::Sha256, Bank::Sha384, Bank::Sha512, Bank::Sha1];
    let mut usable = banks.into_iter().filter(|bank| usable.contains(bank));
    let values = usable.find_map(|bank| values.iter().find(|values| values.bank() == bank))?;
    let mut booted = BankValues::new(values.bank());
    for (pcr, value) in values.iter().filter(|(pcr, _)| eventlog::OF_BOOT.contains(pcr)) {
        booted.insert(pcr, value.as_bytes()).expect("it was a register of the same bank");
    }
    Some(booted)
}

const UNSIGNED: &str =
    "nobody has signed the register values: what they prove is as good as whoever gave them to you";

fn of_eventlog(mut files: Files, notes: &mut Vec<String>) -> Result<Submodules, Fault> {
    let values = files.values();
    let log = files.one("a log", |bytes| Some(bytes.to_vec()))?;
    let booted = strongest(&values, &log);
    if !values.is_empty() {
        notes.push(UNSIGNED.to_owned());
    }
    if booted.is_none() && !values.is_empty() && EventLog::parse(&log).is_ok() {
        return Err(Fault::malformed("the log has no digests for the banks of the values"));
    }
    let findings = eventlog::verify(&log, booted.as_ref());
    Ok(BTreeMap::from([("eventlog".to_owned(), Device { kind: Kind::EventLog, findings })]))
}

fn of_ima(desk: &Desk, mut files: Files, notes: &mut Vec<String>) -> Result<Submodules, Fault> {
    let values = files.values();
    let list = files.one("a list", |bytes| Some(bytes.to_vec()))?;
    if !values.is_empty() {
        notes.push(UNSIGNED.to_owned());
    }
    Ok(BTreeMap::from([("ima".to_owned(), measured(desk, &list, &values))]))
}

/// Replays a list to the value of register 10, in the way in which the kernel that wrote it extends.
fn measured(desk: &Desk, list: &[u8], values: &[BankValues]) -> Device {
    let allow = desk.allow.as_ref();
    let given = |bank: Bank| {
        let of_bank = values.iter().find(|values| values.bank() == bank)?;
        of_bank.value(IMA_PCR).map(Digest::as_bytes)
    };
    let findings = match (given(Bank::Sha256), given(Bank::Sha1)) {
        (None, Some(value)) => {
            let progress = Progress::new(Form::of(list), Extension::Sha1);
            ima::verify(&progress, list, Some(value), allow).0
        }
        (value, _) => ima::verify_first(list, value, allow).0,
    };
    Device { kind: Kind::Ima, findings }
}

fn of_snp(desk: &Desk, mut files: Files) -> Result<Submodules, Fault> {
    let report = files.one("a report of 1184 bytes", |bytes| {
        let bytes = unhexed(bytes);
        let is_report = bytes.len() == snp::REPORT_BYTES && Certificate::from_der(&bytes).is_err();
        is_report.then_some(bytes)
    })?;
    let mut chain: Vec<Certificate> =
        files.take(|bytes| Certificate::several(bytes).ok()).into_iter().flatten().collect();
    let virtual_tpm = files.take(|bytes| QuoteKey::public(bytes).map(<[u8]>::to_vec));
    files.none_left()?;
    if virtual_tpm.len() > 1 {
        return Err(Fault::malformed("more than one file is the key of a virtual TPM"));
    }
    // The key's own certificate is the one that a chip or a cloud is named in.
    chain.sort_by_key(|one| !snp::is_of_signing_key(one));
    // With a virtual TPM the report was asked with the hash of its endorsement key and the nonce.
    let asked = if virtual_tpm.is_empty() { asked_of_snp(desk)? } else { None };
    let anchors = desk.trust.anchors(desk.at_s);
    let (mut findings, verified) = snp::verify(&report, &chain, anchors, asked.as_ref());
    if let ([key], Some(verified)) = (virtual_tpm.as_slice(), verified) {
        match desk.nonce() {
            Some(nonce) => snp::check_vtpm(&verified, nonce, key, &mut findings),
            None => findings.not_checked(snp::VTPM, "no nonce was given"),
        }
    }
    Ok(BTreeMap::from([("snp".to_owned(), Device { kind: Kind::Snp, findings })]))
}

/// What a report is asked with has 64 bytes; a digest of SHA-256 stands there with zeros behind it, as guests fill the field.
fn asked_of_snp(desk: &Desk) -> Result<Option<[u8; 64]>, Fault> {
    let Some(nonce) = desk.nonce() else { return Ok(None) };
    if ![32, 64].contains(&nonce.len()) {
        let why = format!("a report is asked with 64 bytes, or 32, not {}", nonce.len());
        return Err(Fault::malformed(why));
    }
    let mut asked = [0; 64];
    asked[..nonce.len()].copy_from_slice(nonce);
    Ok(Some(asked))
}

fn event_log(bytes: &[u8]) -> Option<Vec<u8>> {
    // Register 0, EV_NO_ACTION: how a crypto-agile log begins. Older ones begin with register 0 and the version.
    let begins = bytes.starts_with(&[0, 0, 0, 0, 3, 0, 0, 0])
        || bytes.starts_with(&[0, 0, 0, 0, 8, 0, 0, 0]);
    begins.then(|| bytes.to_vec())
}

fn ima_list(bytes: &[u8]) -> Option<Vec<u8>> {
    (bytes.starts_with(b"10 ") || bytes.starts_with(&[10, 0, 0, 0])).then(|| bytes.to_vec())
}

/// Bytes, or what their text says in hexadecimal.
fn unhexed(bytes: &[u8]) -> Vec<u8> {
    hex::decode(bytes.trim_ascii()).unwrap_or_else(|_| bytes.to_vec())
}

fn told(
    verdict: Verdict,
    submods: &Submodules,
    appraised: &Appraised,
    policies: Option<&Policies>,
    notes: &[String],
) -> String {
    let mut out = String::new();
    for (name, device) in submods {
        let _ = writeln!(out, "{name} ({})", device.kind.name());
        for check in &device.findings.checks {
            let joint = if check.detail.is_empty() { "" } else { ": " };
            let outcome = check.outcome.to_string();
            let _ =
                writeln!(out, "  {outcome:12} {}{joint}{}", check.name, printable(&check.detail));
        }
        for (claim, value) in &device.findings.claims {
            let _ = writeln!(out, "  says         {claim} = {}", claimed(value));
        }
        if policies.is_some()
            && let Some((_, of_device)) = appraised.submods().get(name)
        {
            let _ = writeln!(out, "  {:12} {}", of_device.tier().name(), of_device.reason());
        }
    }
    for note in notes {
        let _ = writeln!(out, "note: {}", printable(note));
    }
    let why = match (policies, verdict) {
        (Some(policies), _) => {
            let signed = match policies.signer() {
                Some(signer) => format!("signed by {signer}"),
                None => "which nobody has signed".to_owned(),
            };
            let admission = appraised.admission();
            format!(
                "by the policy {}, {signed}; the whole: {}",
                policies.edition(),
                admission.reason()
            )
        }
        (None, Verdict::Genuine) => {
            "whole, and signed by whom it should be; give --policy to learn whether it is good"
                .to_owned()
        }
        (None, Verdict::Tier(Tier::Contraindicated)) => "a check failed".to_owned(),
        (None, Verdict::Tier(_)) => {
            "something that would prove it is missing: see what was not checked".to_owned()
        }
    };
    let _ = write!(out, "verdict: {} ({why})", verdict.name());
    out
}

fn claimed(value: &Claim) -> String {
    match value {
        Claim::Bool(value) => value.to_string(),
        Claim::Number(value) => value.to_string(),
        Claim::Text(value) => printable(value),
        Claim::Texts(values) => {
            let shown: Vec<String> =
                values.iter().take(MAX_SHOWN).map(|one| printable(one)).collect();
            let more = values.len().saturating_sub(MAX_SHOWN);
            let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
            format!("[{}]{rest}", shown.join(", "))
        }
    }
}

/// What evidence says may hold anything: nothing in it moves a terminal's cursor, or turns what is written around.
fn printable(text: &str) -> String {
    let is_plain = |c: char| {
        let turns = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        !c.is_control() && !turns
    };
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_plain(c) { out.push(c) } else { out.extend(c.escape_default()) }
    }
    out
}

fn told_json(
    desk: &Desk,
    verdict: Verdict,
    submods: &Submodules,
    appraised: &Appraised,
    policies: Option<&Policies>,
    notes: &[String],
) -> Value {
    let each = submods.iter().map(|(name, device)| {
        let tier = policies.and(appraised.submods().get(name));
        let value = json!({
            "kind": device.kind.name(), "checks": device.findings.checks, "claims": device.findings.claims,
            "status": tier.map(|(_, of_device)| of_device.tier().name()),
            "reason": tier.map(|(_, of_device)| of_device.reason()),
        });
        (name.clone(), value)
    });
    let policy = policies.map(|policies| {
        let edition = policies.edition();
        json!({
            "name": edition.name, "version": edition.version, "digest": hex::encode(edition.digest),
            "signer": policies.signer().map(|signer| signer.to_string()),
        })
    });
    json!({
        "verdict": verdict.name(), "submods": each.collect::<serde_json::Map<_, _>>(), "policy": policy,
        "at_s": desk.at_s, "collateral": hex::encode(desk.trust.digest()), "notes": notes,
    })
}
