//! `attest status`, `now`, `nodes`, `result`, `identity`, and what evidence is judged by: `sign`, `policy`, `trust`, `enrol`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use distos_abi::{Fault, HolderKey, NodeId};
use distos_appraisal::{MAX_POLICY_BYTES, POLICY, Policies};
use distos_evidence::credential::{EndorsementKey, is_name_long};
use distos_evidence::enrolment::Origin;
use distos_evidence::evidence::AttestationKey;
use distos_evidence::joining::Challenge;
use distos_evidence::pki::Certificate;
use distos_identity::{DetachedSignature, MAX_SIGNATURE_BYTES, did};
use distos_schemas::attestation_capnp::{Standing, attestation, verdict};
use serde_json::{Value, json};

use super::files::{self, read_bytes, read_text};
use super::holder::{Holder, call, now_ms, read, read_secret_file};
use super::{Context, Report, node, text};

/// The entry of a capability file that these commands use.
const ENTRY: &str = "attestation";

/// Commands about evidence.
#[derive(Subcommand)]
pub enum AttestCommand {
    /// The last appraisal of this node
    #[command(after_help = "Example:\n  distos attest status")]
    Status,
    /// Take and appraise a new quote
    #[command(after_help = "Example:\n  distos attest now --json | jq .good")]
    Now,
    /// Which TPM this node has: what whoever invites it by its TPM has to know
    #[command(after_help = "\
Example:
  distos attest identity
The first name is that of the TPM's endorsement key, which stays the same for the life of the TPM. Take it to whoever
invites on a way that nobody changes: a node is invited by it (`distos network invite --tpm`). If the TPM's maker has
certified the key, the node can be invited by that instead (`--tpm-roots`), and nothing has to be told.")]
    Identity,
    /// What this node says of those that it verifies
    #[command(
        after_help = "Example:\n  distos attest nodes\nEach standing is this node's own word. See docs/attestation.md for what follows from it."
    )]
    Nodes,
    /// A node's DID document, with the TPM by which this node knows it
    #[command(
        after_help = "Example:\n  distos attest did > node.did.json\nIt says what this node's verifier has had the TPM show. Nobody has signed it."
    )]
    Did {
        /// Of this node [default: the one that is asked]
        #[arg(value_name = "NODE")]
        whose: Option<String>,
    },
    /// A signed result (EAR) of the last evidence, while it is fresh
    #[command(
        after_help = "Example:\n  distos attest result > ear.jwt\nIt is made only by a policy that somebody has signed, and holds for five minutes at most."
    )]
    Result {
        /// Of this node [default: the one that is asked]
        #[arg(value_name = "NODE")]
        whose: Option<String>,
    },
    /// Sign a policy, without a node
    #[command(after_help = "\
Example:
  distos image keygen policies.key
  distos attest sign site.cedar --key policies.key
writes site.cedar.sig. Nodes take it whose image names the key: policy_signers, among the settings of the attestation service.")]
    Sign {
        /// The policy, in Cedar
        #[arg(value_name = "FILE")]
        policy: PathBuf,
        /// The secret key that signs
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Judge evidence by another policy from now on
    #[command(
        after_help = "Example:\n  distos attest policy site.cedar\nsite.cedar.sig lies beside it. The name stays, and the version only goes up."
    )]
    Policy {
        /// The policy, in Cedar
        #[arg(value_name = "FILE")]
        policy: PathBuf,
    },
    /// Hold evidence against the roots, lists and reference values in a folder from now on
    #[command(after_help = "\
Example:
  distos attest trust roots
Of the folder count tpm/, software-tpm/ (roots of software TPMs), nvidia/, amd/, and ima/known-files. It takes the place
of what was given before, and an empty folder takes back all.")]
    Trust {
        /// The folder
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Say which TPM a node has, or have it enrolled anew
    Enrol(EnrolArgs),
    /// Verify evidence from anywhere, without a node
    Verify(super::verify::VerifyArgs),
}

/// Which TPM.
#[derive(Args)]
#[command(after_help = "\
Examples:
  distos attest enrol --tpm 000b9f3c…           this node has that TPM, and no other will do
  distos attest enrol 4a1f… --tpm 000b9f3c…     another node, which this one verifies
  distos attest enrol --again                   its TPM was cleared or changed: take the next that comes
`distos attest identity` at the node tells the name. With --again a policy has to put up with that nobody vouches for the TPM,
or its certificate has to lead to a root that is trusted.")]
pub struct EnrolArgs {
    /// The node [default: the one that is asked]
    #[arg(value_name = "NODE")]
    whose: Option<String>,
    /// The name of its TPM's endorsement key, in hexadecimal
    #[arg(long, value_name = "HEX", required_unless_present = "again")]
    tpm: Option<String>,
    /// Whichever TPM comes next
    #[arg(long, conflicts_with = "tpm")]
    again: bool,
}

/// What the attestation service says about the node.
pub struct Verdict(Value);

impl Verdict {
    /// For machines.
    pub fn json(&self) -> Value {
        self.0.clone()
    }

    /// Whether there is good evidence that is fresh at `now_ms`.
    pub fn holds(&self, now_ms: u64) -> bool {
        self.0["good"] == true && self.0["fresh_until_ms"].as_u64().unwrap_or(0) > now_ms
    }

    /// For people.
    pub fn text(&self, now_ms: u64) -> String {
        let v = &self.0;
        let taken = v["taken_ms"].as_u64().unwrap_or(0);
        let mut out = format!(
            "{}\nquoted   {} in {}\nPCRs     {} digest {}\nboots    {} resets, {} restarts\nkey name {}",
            node::evidence_line(v, now_ms),
            text::instant(taken),
            text::micros(v["quote_micros"].as_u64().unwrap_or(0)),
            v["pcrs"],
            v["pcr_digest"].as_str().unwrap_or_default(),
            v["reset_count"],
            v["restart_count"],
            v["ak_name"].as_str().unwrap_or_default(),
        );
        let policy = v["policy"].as_str().filter(|policy| !policy.is_empty());
        let _ = write!(
            out,
            "\nstanding {}, epoch {}\npolicy   {}, which says: {}",
            v["standing"].as_str().unwrap_or_default(),
            v["epoch"],
            policy.unwrap_or("none: nothing is good"),
            v["tier"].as_str().filter(|tier| !tier.is_empty()).unwrap_or("nothing yet"),
        );
        for one in v["submods"].as_array().into_iter().flatten() {
            let word = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
            let (name, kind, tier, reason) =
                (word("name"), word("kind"), word("tier"), word("reason"));
            let _ = write!(out, "\n{name} ({kind}): {tier}, {reason}");
            for check in one["checks"].as_array().into_iter().flatten() {
                let word = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
                let joint = if word("why").is_empty() { "" } else { ": " };
                let _ = write!(
                    out,
                    "\n  {:12} {}{joint}{}",
                    word("outcome"),
                    word("name"),
                    word("why")
                );
            }
        }
        out
    }
}

pub(super) async fn command(context: &Context, command: AttestCommand) -> Result<Report, Fault> {
    let holder = context.holder()?;
    let verdict = match command {
        AttestCommand::Status => status(&holder).await?,
        AttestCommand::Now => now(&holder).await?,
        AttestCommand::Identity => return identity(&holder).await,
        AttestCommand::Nodes => return nodes(&holder).await,
        AttestCommand::Did { whose } => return did(&holder, whose.as_deref()).await,
        AttestCommand::Result { whose } => return result(&holder, whose.as_deref()).await,
        AttestCommand::Policy { policy } => return govern(&holder, &policy).await,
        AttestCommand::Trust { folder } => return trust(&holder, &folder).await,
        AttestCommand::Enrol(args) => return enrol(&holder, &args).await,
        AttestCommand::Sign { .. } | AttestCommand::Verify(_) => {
            return Err(Fault::internal("what needs no node is not asked of one"));
        }
    };
    Ok(Report { text: verdict.text(now_ms()), json: verdict.json() })
}

async fn identity(holder: &Holder) -> Result<Report, Fault> {
    let client: attestation::Client = holder.root(ENTRY).await?;
    let answer = call(client.identity_request()).await?;
    let (ek, ak, certificate) = read(|| {
        let answer = answer.get()?;
        let certificate = answer.get_ek_certificate()?.to_vec();
        Ok((answer.get_ek()?.to_vec(), answer.get_ak()?.to_vec(), certificate))
    })?;
    let strange = |broken| Fault::internal(format!("the TPM's key is {broken}"));
    let ek = hex::encode(EndorsementKey::from_public(&ek).map_err(strange)?.name());
    let ak = hex::encode(AttestationKey::from_public(&ak).map_err(strange)?.name());
    let says = match certificate.as_slice() {
        [] => "none: its maker has left none in the TPM".to_owned(),
        der => {
            let origin = Certificate::from_der(der).and_then(|one| Origin::of(&one));
            let origin = origin.map_err(|why| Fault::internal(format!("the TPM's: {why}")))?;
            format!("{origin}; whoever invites verifies it")
        }
    };
    let text = format!("endorsement key {ek}\nattestation key {ak}\ncertificate     {says}");
    let json = json!({
        "endorsement_key": ek, "attestation_key": ak, "certificate": hex::encode(certificate),
    });
    Ok(Report { text, json })
}

async fn nodes(holder: &Holder) -> Result<Report, Fault> {
    let client: attestation::Client = holder.root(ENTRY).await?;
    let answer = call(client.verdicts_request()).await?;
    let verdicts = read(|| {
        let list = answer.get()?.get_verdicts()?;
        list.iter().map(|one| Ok(verdict_of(one)?.json())).collect::<capnp::Result<Vec<_>>>()
    })?;
    let mut rows =
        vec![text::row(["node", "standing", "epoch", "fresh until", "policy", "reason"])];
    for one in &verdicts {
        let word = |key: &str| one[key].as_str().unwrap_or_default();
        let until = match one["fresh_until_ms"].as_u64() {
            None | Some(0) => String::new(),
            Some(until) => text::instant(until),
        };
        let epoch = one["epoch"].to_string();
        let cells =
            [word("node"), word("standing"), &epoch, &until, word("policy"), word("reason")];
        rows.push(text::row(cells));
    }
    Ok(Report { text: text::table(&rows), json: json!({ "nodes": verdicts }) })
}

async fn did(holder: &Holder, node: Option<&str>) -> Result<Report, Fault> {
    let wanted = node_bytes(node)?;
    let client: attestation::Client = holder.root(ENTRY).await?;
    let answer = call(client.verdicts_request()).await?;
    let known = read(|| {
        let list = answer.get()?.get_verdicts()?;
        let each = list.iter().map(|one| Ok((one.get_node()?.to_vec(), one.get_ek()?.to_vec())));
        each.collect::<capnp::Result<Vec<_>>>()
    })?;
    // The first is that of the node that is asked.
    let found = known.into_iter().find(|(node, _)| wanted.is_empty() || *node == wanted);
    let (node, ek) = found.ok_or_else(|| Fault::not_found("this node verifies no such node"))?;
    if ek.is_empty() {
        let why = "no TPM of it is known: it has shown no good evidence yet";
        return Err(Fault::StaleAttestation(why.to_owned()));
    }
    let document = did::document_of_node(NodeId::try_from(&node[..])?, &ek);
    let text = serde_json::to_string_pretty(&document).map_err(Fault::internal)?;
    Ok(Report { text, json: document })
}

async fn result(holder: &Holder, node: Option<&str>) -> Result<Report, Fault> {
    let client: attestation::Client = holder.root(ENTRY).await?;
    let mut request = client.result_request();
    request.get().set_node(&node_bytes(node)?);
    let answer = call(request).await?;
    let (result, key) = read(|| {
        let answer = answer.get()?;
        Ok((answer.get_result()?.to_str()?.to_owned(), hex::encode(answer.get_key()?)))
    })?;
    Ok(Report { json: json!({ "result": result, "key": key }), text: result })
}

/// Signs a policy that is one.
pub(super) fn sign(policy: &Path, key: &Path) -> Result<Report, Fault> {
    let secret = read_secret_file(key)?;
    let bytes = read_bytes(policy, MAX_POLICY_BYTES as u64)?;
    let edition = Policies::unsigned(&bytes)?.edition().to_string();
    let beside = beside(policy);
    let signature = DetachedSignature::sign(POLICY, &bytes, &secret).to_text();
    files::write(&beside, signature.as_bytes(), files::PUBLIC)?;
    let (at, signer) = (beside.display().to_string(), secret.key().to_string());
    let text = format!("{edition} is signed by {signer}: {at}");
    Ok(Report { text, json: json!({ "policy": edition, "signer": signer, "signature": at }) })
}

fn beside(policy: &Path) -> PathBuf {
    let mut beside = policy.as_os_str().to_owned();
    beside.push(".sig");
    beside.into()
}

async fn govern(holder: &Holder, policy: &Path) -> Result<Report, Fault> {
    let bytes = read_bytes(policy, MAX_POLICY_BYTES as u64)?;
    let signature = read_text(&beside(policy), MAX_SIGNATURE_BYTES as u64)?;
    let edition = Policies::unsigned(&bytes)?.edition().to_string();
    let client: attestation::Client = holder.root(ENTRY).await?;
    let mut request = client.govern_request();
    request.get().set_policy(&bytes);
    request.get().set_signature(signature.as_str());
    call(request).await?;
    let text = format!("evidence is judged by {edition} from now on: see `distos attest status`");
    Ok(Report { text, json: json!({ "policy": edition }) })
}

async fn trust(holder: &Holder, folder: &Path) -> Result<Report, Fault> {
    let found = super::verify::files_of(folder)?;
    let client: attestation::Client = holder.root(ENTRY).await?;
    let mut request = client.anchor_request();
    let mut list = request.get().init_files(found.len() as u32);
    for (index, (name, bytes)) in (0..).zip(&found) {
        let mut file = list.reborrow().get(index);
        file.set_name(name.as_str());
        file.set_bytes(bytes);
    }
    call(request).await?;
    let text = format!("evidence is held against {} files from now on", found.len());
    Ok(Report { text, json: json!({ "files": found.len() }) })
}

async fn enrol(holder: &Holder, args: &EnrolArgs) -> Result<Report, Fault> {
    let ek = args.tpm.as_deref().map(hex::decode).transpose();
    let ek = ek.map_err(|_| Fault::malformed("--tpm is not hexadecimal"))?;
    if ek.as_ref().is_some_and(|ek| !is_name_long(ek.len())) {
        let why = "--tpm is no name of an endorsement key: `distos attest identity` shows it";
        return Err(Fault::malformed(why));
    }
    let ek = ek.unwrap_or_default();
    let client: attestation::Client = holder.root(ENTRY).await?;
    let mut request = client.enrol_request();
    request.get().set_node(&node_bytes(args.whose.as_deref())?);
    request.get().set_ek(&ek);
    call(request).await?;
    let text = match &args.tpm {
        Some(name) => format!("the TPM {name} is taken, and no other: see `distos attest status`"),
        None => "the next TPM that comes is taken, and no other after it".to_owned(),
    };
    Ok(Report { text, json: json!({ "tpm": args.tpm }) })
}

/// A node's number; empty for the one that is asked.
fn node_bytes(node: Option<&str>) -> Result<Vec<u8>, Fault> {
    let Some(text) = node else { return Ok(Vec::new()) };
    let bytes = hex::decode(text.strip_prefix("node/").unwrap_or(text));
    let bytes = bytes.map_err(|_| Fault::malformed(format!("{text} is no node")))?;
    Ok(NodeId::try_from(&bytes[..])?.0.to_vec())
}

/// What this node's TPM says to whoever challenged it, as JSON.
pub(super) async fn present(
    holder: &Holder,
    challenge: &Challenge,
    key: HolderKey,
) -> Result<String, Fault> {
    let client: attestation::Client = holder.root(ENTRY).await?;
    let mut request = client.present_request();
    let mut asked = request.get();
    asked.set_inviter(&challenge.inviter.0);
    asked.set_key(&key.0);
    asked.set_nonce(&challenge.nonce);
    let answer = call(request).await?;
    read(|| Ok(answer.get()?.get_request()?.to_str()?.to_owned()))
}

/// Opens what was sealed to this node's TPM.
pub(super) async fn open(holder: &Holder, sealed: &str) -> Result<String, Fault> {
    let client: attestation::Client = holder.root(ENTRY).await?;
    let mut request = client.open_request();
    request.get().set_sealed(sealed);
    let answer = call(request).await?;
    read(|| Ok(answer.get()?.get_plain()?.to_str()?.to_owned()))
}

/// The last appraisal.
pub async fn status(holder: &Holder) -> Result<Verdict, Fault> {
    let client: attestation::Client = holder.root(ENTRY).await?;
    let answer = call(client.status_request()).await?;
    read(|| verdict_of(answer.get()?.get_verdict()?))
}

/// A new appraisal.
pub async fn now(holder: &Holder) -> Result<Verdict, Fault> {
    let client: attestation::Client = holder.root(ENTRY).await?;
    let answer = call(client.attest_request()).await?;
    read(|| verdict_of(answer.get()?.get_verdict()?))
}

fn verdict_of(verdict: verdict::Reader<'_>) -> capnp::Result<Verdict> {
    let pcrs: Vec<u8> = verdict.get_pcrs()?.iter().collect();
    let standing = match verdict.get_standing()? {
        Standing::Fresh => "fresh",
        Standing::Stale => "stale",
        Standing::Expired => "expired",
        Standing::Failed => "failed",
    };
    let checked = |one: distos_schemas::attestation_capnp::checked::Reader<'_>| {
        let (name, outcome) = (one.get_name()?.to_str()?, one.get_outcome()?.to_str()?);
        Ok(json!({ "name": name, "outcome": outcome, "why": one.get_why()?.to_str()? }))
    };
    let submods = verdict.get_submods()?.iter().map(|one| {
        let checks = one.get_checks()?.iter().map(checked).collect::<capnp::Result<Vec<_>>>()?;
        Ok(json!({
            "name": one.get_name()?.to_str()?, "kind": one.get_kind()?.to_str()?,
            "tier": one.get_tier()?.to_str()?, "reason": one.get_reason()?.to_str()?, "checks": checks,
        }))
    });
    let submods = submods.collect::<capnp::Result<Vec<_>>>()?;
    Ok(Verdict(json!({
        "node": hex::encode(verdict.get_node()?), "standing": standing, "epoch": verdict.get_epoch(),
        "expires_ms": verdict.get_expires_ms(), "policy": verdict.get_policy()?.to_str()?,
        "tier": verdict.get_tier()?.to_str()?, "submods": submods,
        "fresh_until_ms": verdict.get_fresh_until_ms(), "good": verdict.get_good(),
        "reason": verdict.get_reason()?.to_str()?, "tpm": verdict.get_tpm()?.to_str()?,
        "hardware": verdict.get_hardware(), "taken_ms": verdict.get_taken_ms(),
        "pcr_digest": hex::encode(verdict.get_pcr_digest()?), "pcrs": pcrs,
        "reset_count": verdict.get_reset_count(), "restart_count": verdict.get_restart_count(),
        "quote_micros": verdict.get_quote_micros(), "ak_name": hex::encode(verdict.get_ak_name()?),
    })))
}
