//! `attest verify`: evidence from files, by the same code as a node's own, without a node.
//!
//! Files are told apart by what is in them. What is verified becomes submodules, as in a live attestation: a quote with the
//! log behind it is two, a machine's GPUs and switches are one each and one for the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use distos_abi::{Fault, NodeId};
use distos_appraisal::{Appraised, MAX_POLICY_BYTES, POLICY, Policies, Tier, appraise};
use distos_collateral::{Collateral, MAX_FILE_BYTES, MAX_FILES, Maker};
use distos_evidence::findings::{Claim, Outcome};
use distos_evidence::ima;
use distos_identity::{DetachedSignature, MAX_SIGNATURE_BYTES};
use serde_json::{Value, json};

use super::files::{io_fault, read_bytes, read_text};
use super::holder::now_ms;
use super::text::parse_instant_s;
use super::{Report, Stop};
use kinds::{Desk, Evidence, Files, Submodules, essential};

mod kinds;

/// The longest file of evidence, in bytes: a list of measured files.
const MAX_EVIDENCE_BYTES: u64 = 32 << 20;
/// How deep folders may lie in the one of trust.
const MAX_FOLDERS: usize = 4;
const WARNING: u8 = 30;
const NONE: u8 = 31;
const CONTRAINDICATED: u8 = 32;
/// How many values of a claim are shown to people.
const MAX_SHOWN: usize = 4;

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
wrote, or JSON. Reference values of GPUs (RIM), lists of revoked certificates and OCSP responses (DER) lie in the folder of
--trust.

Exit code 0: a policy affirms it; without --policy, it is genuine, which is not to say that it is good. 30: a policy warns.
31: nothing can be said, as something is missing, or no policy affirms it. 32: it contradicts itself, its roots or a policy.
16: a file is wrong, or of a kind that is not supported (tdx, cca), which says nothing of the evidence.")]
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

pub(super) fn command(args: &VerifyArgs) -> Result<Report, Stop> {
    let verifier = args.kind.verifier()?;
    let nonces = args.nonce.iter().map(|text| {
        hex::decode(text).map_err(|_| Stop::Usage(format!("--nonce '{text}' is not hexadecimal")))
    });
    let nonces: Vec<Vec<u8>> = nonces.collect::<Result<_, Stop>>()?;
    if nonces.len() > 1 && !verifier.takes_several_nonces() {
        return Err(Stop::Usage("--nonce: only GPUs are asked with several".to_owned()));
    }
    let mut desk = Desk {
        nonces,
        trust: Collateral::default(),
        at_s: args.at.unwrap_or(now_ms() / 1000),
        allow: args.allow.as_deref().map(allowed).transpose()?,
    };
    let mut notes = match &args.trust {
        Some(folder) => pin(folder, verifier.maker(), &mut desk.trust)?,
        None => Vec::new(),
    };
    let mut files = Files { list: Vec::new() };
    for path in &args.files {
        files.list.push((path.clone(), read_bytes(path, MAX_EVIDENCE_BYTES)?));
    }
    let policies = args.policy.as_deref().map(policies).transpose()?;
    let submods = verifier.verify(&mut desk, files, &mut notes)?;
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
            for accepted in of_device.accepted() {
                let _ = writeln!(out, "  {:12} accepted by name: {accepted}", "");
            }
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
            "unchecked": tier.map(|(_, of_device)| of_device.unchecked()),
            "accepted": tier.map(|(_, of_device)| of_device.accepted()),
            "limits": device.kind.limits(),
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
