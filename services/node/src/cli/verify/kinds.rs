//! The kinds of evidence that come in files, and what verifies each: by the same code as a node's own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::ValueEnum;
use distos_abi::Fault;
use distos_appraisal::{Device, Kind};
use distos_collateral::{Added, Collateral, Maker};
use distos_evidence::bank::{Bank, BankValues, Digest, read_values};
use distos_evidence::eventlog::{self, EventLog};
use distos_evidence::findings::Outcome;
use distos_evidence::ima::{self, Extension, Form, IMA_PCR, Progress};
use distos_evidence::nvidia::machine::{self, Asking, Shown};
use distos_evidence::nvidia::{self, Architecture};
use distos_evidence::pki::{self, Certificate};
use distos_evidence::quote::{self, Quote, QuoteKey};
use distos_evidence::snp;

/// What kind of evidence the files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Evidence {
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
    /// A quote of Intel TDX: not supported
    Tdx,
    /// A token of Arm CCA: not supported
    Cca,
}

/// What verifies one kind of evidence. A new kind is one of these, and a line in [`Evidence::verifier`].
pub(super) trait Verifier {
    /// Whose roots it is held against.
    fn maker(&self) -> Maker;

    /// Whether several devices may each have been asked with a nonce of its own.
    fn takes_several_nonces(&self) -> bool {
        false
    }

    /// Verifies the files, and notes what people should know of it.
    ///
    /// # Errors
    /// [`Fault::Malformed`]: a file is missing, one too many, or nothing that belongs to evidence of this kind.
    fn verify(
        &self,
        desk: &mut Desk,
        files: Files,
        notes: &mut Vec<String>,
    ) -> Result<Submodules, Fault>;
}

impl Evidence {
    /// What verifies evidence of this kind.
    ///
    /// # Errors
    /// [`Fault::Malformed`]: nothing here does, and what can be done instead.
    pub(super) fn verifier(self) -> Result<&'static dyn Verifier, Fault> {
        Ok(match self {
            Evidence::Nvidia => &Nvidia,
            Evidence::Tpm => &Tpm,
            Evidence::Eventlog => &BootLog,
            Evidence::Ima => &MeasuredFiles,
            Evidence::Snp => &Snp,
            Evidence::Tdx => return Err(unsupported("Intel TDX quotes", "Intel's")),
            Evidence::Cca => return Err(unsupported("Arm CCA tokens", "Arm's")),
        })
    }
}

/// Nothing is said of what cannot be verified: not that it is good, and not that it is bad.
fn unsupported(what: &str, whose: &str) -> Fault {
    Fault::malformed(format!(
        "{what} are not supported: nothing here can tell a good one from a bad one. Verify it with {whose} own tools, or have \
         the machine show its TPM (--kind tpm)"
    ))
}

/// A file of evidence, or several in one.
pub(super) struct Files {
    pub(super) list: Vec<(PathBuf, Vec<u8>)>,
}

/// What evidence is verified with.
pub(super) struct Desk {
    pub(super) nonces: Vec<Vec<u8>>,
    pub(super) trust: Collateral,
    pub(super) at_s: u64,
    pub(super) allow: Option<BTreeSet<String>>,
}

impl Desk {
    /// The one nonce, if there is one.
    fn nonce(&self) -> Option<&[u8]> {
        self.nonces.first().map(Vec::as_slice)
    }
}

/// What was verified, by name.
pub(super) type Submodules = BTreeMap<String, Device>;

/// Without which evidence of a kind is nobody's.
pub(super) fn essential(kind: Kind) -> &'static [&'static str] {
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

/// Reports of NVIDIA's GPUs and switches.
struct Nvidia;

impl Verifier for Nvidia {
    fn maker(&self) -> Maker {
        Maker::Nvidia
    }

    fn takes_several_nonces(&self) -> bool {
        true
    }

    fn verify(
        &self,
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
            notes
                .push(format!("{} of {all} reports are there more than once", all - devices.len()));
        }
        let (given, asking) = asked_of_nvidia(desk, devices.len())?;
        let named: Vec<[u8; 32]> = devices.iter().filter_map(|(_, nonce)| *nonce).collect();
        if desk.nonces.is_empty() && !named.is_empty() {
            notes.push("the nonce in the file is whoever's who wrote it: give --nonce".to_owned());
        }
        if given.iter().flatten().chain(&named).any(nvidia::is_sample_nonce) {
            notes.push(
                "the nonce is one of published samples: anybody has reports that answer it"
                    .to_owned(),
            );
        }
        if devices.iter().any(|(evidence, _)| evidence.driver.is_some()) {
            notes
                .push("what the driver says in the file is whoever's word who wrote it".to_owned());
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

/// Quotes, with the logs behind them.
struct Tpm;

impl Verifier for Tpm {
    fn maker(&self) -> Maker {
        Maker::Tpm
    }

    fn verify(
        &self,
        desk: &mut Desk,
        mut files: Files,
        notes: &mut Vec<String>,
    ) -> Result<Submodules, Fault> {
        const GENERATED: &[u8] = &[0xff, b'T', b'C', b'G'];
        const SIGNATURES: std::ops::RangeInclusive<u8> = 0x14..=0x18;
        let attest =
            files.one("a quote (TPMS_ATTEST)", |b| b.starts_with(GENERATED).then(|| b.to_vec()))?;
        let signature = files.one("a signature (TPMT_SIGNATURE)", |b| {
            matches!(b, [0, scheme, 0, _, ..] if SIGNATURES.contains(scheme)).then(|| b.to_vec())
        })?;
        let mut keys = files.take(|b| QuoteKey::parse(b).ok()).into_iter();
        let first = keys
            .next()
            .ok_or_else(|| Fault::malformed("no file is a public key or certificate"))?;
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
                "nobody certifies the key: the quote is as good as whoever gave it to you"
                    .to_owned(),
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

/// Logs of measured boots.
struct BootLog;

impl Verifier for BootLog {
    fn maker(&self) -> Maker {
        Maker::Tpm
    }

    fn verify(
        &self,
        _: &mut Desk,
        mut files: Files,
        notes: &mut Vec<String>,
    ) -> Result<Submodules, Fault> {
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
}

/// The kernel's lists of measured files.
struct MeasuredFiles;

impl Verifier for MeasuredFiles {
    fn maker(&self) -> Maker {
        Maker::Tpm
    }

    fn verify(
        &self,
        desk: &mut Desk,
        mut files: Files,
        notes: &mut Vec<String>,
    ) -> Result<Submodules, Fault> {
        let values = files.values();
        let list = files.one("a list", |bytes| Some(bytes.to_vec()))?;
        if !values.is_empty() {
            notes.push(UNSIGNED.to_owned());
        }
        Ok(BTreeMap::from([("ima".to_owned(), measured(desk, &list, &values))]))
    }
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

/// Reports of AMD's SEV-SNP.
struct Snp;

impl Verifier for Snp {
    fn maker(&self) -> Maker {
        Maker::Amd
    }

    fn verify(
        &self,
        desk: &mut Desk,
        mut files: Files,
        _: &mut Vec<String>,
    ) -> Result<Submodules, Fault> {
        let report = files.one("a report of 1184 bytes", |bytes| {
            let bytes = unhexed(bytes);
            let is_report =
                bytes.len() == snp::REPORT_BYTES && Certificate::from_der(&bytes).is_err();
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
