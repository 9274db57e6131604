//! `gpu list` and `gpu evidence`.

use std::path::PathBuf;

use clap::Subcommand;
use distos_abi::Fault;
use distos_evidence::nvidia::machine::Answer;
use distos_schemas::gpu_capnp::{GpuState, gpu, gpu_evidence, gpus};
use serde_json::{Value, json};

use super::files;
use super::holder::{call, read};
use super::text::{self, row};
use super::{Context, Report, Stop};

/// Exit code of `gpu evidence` if a GPU has shown nothing.
const PARTIAL: u8 = 33;

/// Commands about GPUs.
#[derive(Subcommand)]
pub enum GpuCommand {
    /// The GPUs of this node and what state each is in
    #[command(after_help = "Example:\n  distos gpu list")]
    List,
    /// Have each GPU sign what it measured, with a nonce of its own
    #[command(after_help = "\
Examples:
  distos gpu evidence --out evidence.json
  distos gpu evidence --json | jq .gpus
What is written is what `distos attest verify --kind nvidia` reads. Nothing of it is verified here, and a nonce that this
command has chosen shows freshness to whoever ran it alone: give your own, one for each GPU, to show it to somebody else.

Exit code 0: every GPU has signed. 33: not every one has; those that have not are listed with the reason, and are not among the
evidence.")]
    Evidence {
        /// What to ask with, 32 bytes in hexadecimal: one for each GPU, in its order [default: random]
        #[arg(long, value_name = "HEX")]
        nonce: Vec<String>,
        /// Where to write the list of evidence
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// A report, or one with an exit code of its own.
pub(super) async fn command(
    context: &Context,
    command: GpuCommand,
) -> Result<Result<Report, Stop>, Fault> {
    let holder = context.holder()?;
    let client: gpus::Client = holder.root("gpus").await?;
    match command {
        GpuCommand::List => list(&client).await.map(Ok),
        GpuCommand::Evidence { nonce, out } => {
            let report = evidence(&client, &nonce, out).await?;
            Ok(match is_whole(&report.json) {
                true => Ok(report),
                false => Err(Stop::Verdict { report, code: PARTIAL }),
            })
        }
    }
}

/// Whether every GPU has signed something: whoever counts on the evidence of a machine must not miss one that has not.
fn is_whole(json: &Value) -> bool {
    json["gpus"].as_array().is_some_and(|gpus| gpus.iter().all(|gpu| gpu["fault"] == ""))
}

async fn list(client: &gpus::Client) -> Result<Report, Fault> {
    let answer = call(client.list_request()).await?;
    let json = read(|| {
        let answer = answer.get()?;
        let gpus: capnp::Result<Vec<Value>> = answer.get_gpus()?.iter().map(gpu_json).collect();
        Ok(json!({ "driver": answer.get_driver()?.to_str()?, "gpus": gpus? }))
    })?;
    Ok(Report { text: list_text(&json), json })
}

async fn evidence(
    client: &gpus::Client,
    given: &[String],
    out: Option<PathBuf>,
) -> Result<Report, Fault> {
    let nonces = if given.is_empty() {
        let there = call(client.list_request()).await?;
        let count = read(|| Ok(there.get()?.get_gpus()?.len()))?;
        (0..count).map(|_| random()).collect::<Result<Vec<_>, Fault>>()?
    } else {
        given.iter().map(|text| nonce_of(text)).collect::<Result<Vec<_>, Fault>>()?
    };
    let mut request = client.evidence_request();
    let mut list = request.get().init_nonces(nonces.len() as u32);
    for (at, nonce) in (0..).zip(&nonces) {
        list.set(at, nonce);
    }
    let answer = call(request).await?;
    let json = read(|| {
        let answer = answer.get()?;
        let gpus = answer.get_gpus()?.iter().zip(&nonces);
        let gpus: Vec<(Value, Option<Value>)> =
            gpus.map(|(gpu, nonce)| shown_json(gpu, *nonce)).collect::<capnp::Result<_>>()?;
        let (gpus, evidence): (Vec<Value>, Vec<Option<Value>>) = gpus.into_iter().unzip();
        let evidence: Vec<Value> = evidence.into_iter().flatten().collect();
        let driver = answer.get_driver()?.to_str()?;
        Ok(json!({ "driver": driver, "gpus": gpus, "evidence": evidence }))
    })?;
    if let Some(path) = &out {
        // `attest verify` takes no list of nothing.
        if json["evidence"].as_array().is_none_or(Vec::is_empty) {
            return Err(Fault::not_found(format!(
                "there is no evidence: {}",
                evidence_text(&json)
            )));
        }
        let list = format!("{}\n", json["evidence"]);
        files::write(path, list.as_bytes(), files::PUBLIC)?;
    }
    Ok(Report { text: evidence_text(&json), json })
}

fn random() -> Result<[u8; 32], Fault> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(Fault::internal)?;
    Ok(nonce)
}

fn nonce_of(text: &str) -> Result<[u8; 32], Fault> {
    let mut nonce = [0; 32];
    hex::decode_to_slice(text, &mut nonce).map_err(|_| {
        Fault::malformed(format!("--nonce '{text}' is not 32 bytes in hexadecimal"))
    })?;
    Ok(nonce)
}

/// What is said of one GPU's evidence, and the evidence, if there is any.
fn shown_json(
    gpu: gpu_evidence::Reader<'_>,
    nonce: [u8; 32],
) -> capnp::Result<(Value, Option<Value>)> {
    let answer = Answer {
        arch: gpu.get_arch()?.to_str()?,
        chain: gpu.get_chain()?,
        report: gpu.get_report()?,
        mode: gpu.get_mode()?.to_str()?,
        fault: gpu.get_fault()?.to_str()?,
        nonce,
    };
    let said = json!({
        "index": gpu.get_index(), "uuid": gpu.get_uuid()?.to_str()?, "arch": answer.arch,
        "mode": answer.mode, "fault": answer.fault, "nonce": hex::encode(nonce),
        "report_bytes": answer.report.len(),
    });
    Ok((said, answer.to_json()))
}

fn evidence_text(json: &Value) -> String {
    let driver = json["driver"].as_str().unwrap_or_default().to_owned();
    let gpus = json["gpus"].as_array().map(Vec::as_slice).unwrap_or_default();
    if gpus.is_empty() {
        return driver;
    }
    let mut rows = vec![row(["gpu", "architecture", "mode", "report", "nonce"])];
    for gpu in gpus {
        let said = |name: &str| gpu[name].as_str().filter(|said| !said.is_empty());
        let report = text::bytes(gpu["report_bytes"].as_u64().unwrap_or(0));
        rows.push(row([
            &gpu["index"].to_string(),
            said("arch").unwrap_or("-"),
            said("mode").unwrap_or("-"),
            said("fault").unwrap_or(&report),
            said("nonce").unwrap_or("-"),
        ]));
    }
    format!("{driver}\n{}", text::table(&rows))
}

fn gpu_json(gpu: gpu::Reader<'_>) -> capnp::Result<Value> {
    let state = match gpu.get_state()? {
        GpuState::Clean => "clean",
        GpuState::Leased => "leased",
        GpuState::Cleaning => "cleaning",
        GpuState::Quarantined => "quarantined",
    };
    Ok(json!({
        "index": gpu.get_index(), "name": gpu.get_name()?.to_str()?, "uuid": gpu.get_uuid()?.to_str()?,
        "memory_bytes": gpu.get_memory_bytes(), "state": state, "tenant": gpu.get_tenant(),
        "until_ms": gpu.get_until_ms(),
    }))
}

fn list_text(json: &Value) -> String {
    let driver = json["driver"].as_str().unwrap_or_default().to_owned();
    let gpus = json["gpus"].as_array().map(Vec::as_slice).unwrap_or_default();
    if gpus.is_empty() {
        return driver;
    }
    let mut rows = vec![row(["gpu", "name", "memory", "state", "tenant", "until"])];
    for gpu in gpus {
        let leased = gpu["state"] == "leased";
        let until = gpu["until_ms"].as_u64().filter(|_| leased).map(text::instant);
        rows.push(row([
            &gpu["index"].to_string(),
            gpu["name"].as_str().unwrap_or_default(),
            &text::bytes(gpu["memory_bytes"].as_u64().unwrap_or(0)),
            gpu["state"].as_str().unwrap_or_default(),
            &if leased { gpu["tenant"].to_string() } else { "-".into() },
            &until.unwrap_or_else(|| "-".into()),
        ]));
    }
    format!("{driver}\n{}", text::table(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_gpu_says_so_plainly() {
        let none = json!({ "driver": "no GPU: libnvidia-ml.so.1 is not there", "gpus": [] });
        assert_eq!(list_text(&none), "no GPU: libnvidia-ml.so.1 is not there");
        let one = json!({ "driver": "NVML 550", "gpus": [{ "index": 0, "name": "H100", "memory_bytes": 1, "state": "clean", "tenant": 0, "until_ms": 0 }] });
        assert!(list_text(&one).contains("H100"));
        assert_eq!(evidence_text(&none), "no GPU: libnvidia-ml.so.1 is not there");
    }

    #[test]
    fn a_gpu_that_signs_nothing_is_listed_with_the_reason_and_one_that_does_with_its_mode() {
        let gpu = |fault: &str, mode: &str| json!({ "index": 0, "arch": "HOPPER", "mode": mode, "fault": fault, "nonce": "00", "report_bytes": 4274 });
        let json = json!({ "driver": "NVML 550", "gpus": [gpu("it did not answer in time", ""), gpu("", "devtools")] });
        let text = evidence_text(&json);
        assert!(text.contains("it did not answer in time"), "{text}");
        assert!(text.contains("devtools") && text.contains("4.2 KiB"), "{text}");
    }

    #[test]
    fn evidence_is_whole_if_no_gpu_is_missing_in_it() {
        let of = |faults: &[&str]| {
            let gpus: Vec<Value> = faults.iter().map(|fault| json!({ "fault": fault })).collect();
            is_whole(&json!({ "gpus": gpus }))
        };
        assert!(of(&[]) && of(&["", ""]), "a machine without a GPU misses none");
        assert!(!of(&["", "it did not answer in time"]) && !of(&["off", "off"]));
        assert!(!is_whole(&json!({})));
    }

    #[test]
    fn a_nonce_that_no_gpu_can_be_asked_with_is_refused_before_it_is() {
        assert_eq!(nonce_of(&"0f".repeat(32)), Ok([15; 32]));
        for bad in ["", "00", &"0g".repeat(32), &"00".repeat(33)] {
            assert_eq!(nonce_of(bad).unwrap_err().code(), 16, "{bad}");
        }
    }
}
