//! `attest status`, `attest now` and `attest identity`.

use clap::Subcommand;
use distos_abi::{Fault, HolderKey};
use distos_evidence::credential::EndorsementKey;
use distos_evidence::enrolment::Origin;
use distos_evidence::evidence::AttestationKey;
use distos_evidence::joining::Challenge;
use distos_evidence::pki::Certificate;
use distos_schemas::attestation_capnp::{attestation, verdict};
use serde_json::{Value, json};

use super::holder::{Holder, call, now_ms, read};
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
    /// Verify evidence from anywhere, without a node
    Verify(super::verify::VerifyArgs),
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
        format!(
            "{}\nquoted   {} in {}\nPCRs     {} digest {}\nboots    {} resets, {} restarts\nkey name {}",
            node::evidence_line(v, now_ms),
            text::instant(taken),
            text::micros(v["quote_micros"].as_u64().unwrap_or(0)),
            v["pcrs"],
            v["pcr_digest"].as_str().unwrap_or_default(),
            v["reset_count"],
            v["restart_count"],
            v["ak_name"].as_str().unwrap_or_default(),
        )
    }
}

pub(super) async fn command(context: &Context, command: AttestCommand) -> Result<Report, Fault> {
    let holder = context.holder()?;
    let verdict = match command {
        AttestCommand::Status => status(&holder).await?,
        AttestCommand::Now => now(&holder).await?,
        AttestCommand::Identity => return identity(&holder).await,
        AttestCommand::Verify(_) => {
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
    Ok(Verdict(json!({
        "fresh_until_ms": verdict.get_fresh_until_ms(), "good": verdict.get_good(),
        "reason": verdict.get_reason()?.to_str()?, "tpm": verdict.get_tpm()?.to_str()?,
        "hardware": verdict.get_hardware(), "taken_ms": verdict.get_taken_ms(),
        "pcr_digest": hex::encode(verdict.get_pcr_digest()?), "pcrs": pcrs,
        "reset_count": verdict.get_reset_count(), "restart_count": verdict.get_restart_count(),
        "quote_micros": verdict.get_quote_micros(), "ak_name": hex::encode(verdict.get_ak_name()?),
    })))
}
