//! `status`, `drain` and `down`.

use std::fmt::Write;
use std::time::Duration;

use clap::Args;
use distos_abi::Fault;
use distos_schemas::kernel_capnp::{kernel_status, tenant, vat_status};
use distos_schemas::node_capnp::node;
use serde_json::{Value, json};

use super::holder::{Holder, call, now_ms, read};
use super::text::{self, row};
use super::{Context, Report, attest, job};

/// Arguments of `down`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  distos down          let running work end first\n  distos down --now    end it at once"
)]
pub struct DownArgs {
    /// Do not wait for running work
    #[arg(long)]
    now: bool,
}

/// How long the screen waits for the attestation service, which may be what is wrong.
const EVIDENCE_WAIT: Duration = Duration::from_secs(2);

/// How long it waits for the scheduler.
const DRAIN_WAIT: Duration = Duration::from_secs(2);

/// The short names of the protections in the table of `status`.
const PROTECTIONS: [(&str, &str); 7] = [
    ("own uid", "uid"),
    ("no_new_privs", "nnp"),
    ("seccomp", "seccomp"),
    ("landlock", "landlock"),
    ("namespaces", "ns"),
    ("rlimits", "rlimits"),
    ("keys locked", "keys"),
];

pub(super) async fn drain(context: &Context) -> Result<Report, Fault> {
    let holder = context.holder()?;
    let client: node::Client = holder.root("node").await?;
    call(client.drain_request()).await?;
    Ok(Report { json: json!({ "drained": true }), text: "drained: nothing runs".into() })
}

pub(super) async fn down(context: &Context, args: DownArgs) -> Result<Report, Fault> {
    let holder = context.holder()?;
    shut_down(&holder, args.now).await?;
    super::up::wait_for_end(context.node()).await?;
    Ok(Report { json: json!({ "down": true }), text: "the node is down".into() })
}

/// Asks the node to end. The connection ends with it, so a lost answer is the expected one.
pub(super) async fn shut_down(holder: &Holder, now: bool) -> Result<(), Fault> {
    let client: node::Client = holder.root("node").await?;
    let mut request = client.shutdown_request();
    request.get().set_now(now);
    match call(request).await {
        Ok(_) | Err(Fault::Unavailable { .. }) => Ok(()),
        Err(fault) => Err(fault),
    }
}

pub(super) async fn status(context: &Context) -> Result<Report, Fault> {
    let holder = context.holder()?;
    let client: node::Client = holder.root("node").await?;
    let answer = call(client.status_request()).await?;
    let status = read(|| kernel_json(answer.get()?.get_status()?))?;
    let tenants = tenants(&client).await.unwrap_or_default();
    let verdict = match tokio::time::timeout(EVIDENCE_WAIT, attest::status(&holder)).await {
        Ok(Ok(verdict)) => verdict.json(),
        Ok(Err(fault)) => json!({ "good": false, "reason": fault.to_string() }),
        Err(_) => json!({ "good": false, "reason": "the attestation service does not answer" }),
    };
    let drained_at_ms = match verdict["standing"] != "fresh" {
        // Whoever has no queue here is not told.
        true => match tokio::time::timeout(DRAIN_WAIT, job::drained_at_ms(&holder)).await {
            Ok(Ok(at_ms)) => at_ms,
            Ok(Err(_)) | Err(_) => None,
        },
        false => None,
    };
    let mut all = status;
    all["drained_at_ms"] = json!(drained_at_ms);
    all["tenants"] = Value::Array(tenants);
    all["attestation"] = verdict;
    let text = screen(&all, now_ms());
    Ok(Report { json: all, text })
}

/// The node's tenants, as JSON objects.
pub(super) async fn tenants(client: &node::Client) -> Result<Vec<Value>, Fault> {
    let answer = call(client.tenants_request()).await?;
    read(|| answer.get()?.get_tenants()?.iter().map(tenant_json).collect())
}

fn tenant_json(tenant: tenant::Reader<'_>) -> capnp::Result<Value> {
    Ok(json!({
        "id": tenant.get_id(), "name": tenant.get_name()?.to_str()?,
        "holder": hex::encode(tenant.get_holder()?),
        "slot_quota": tenant.get_slot_quota(), "slots_used": tenant.get_slots_used(),
    }))
}

fn kernel_json(status: kernel_status::Reader<'_>) -> capnp::Result<Value> {
    let vats: capnp::Result<Vec<Value>> = status.get_vats()?.iter().map(vat_json).collect();
    Ok(json!({
        "node": hex::encode(status.get_node()?),
        "image": status.get_image()?.to_str()?,
        "image_hash": hex::encode(status.get_image_hash()?),
        "image_signer": match status.get_image_signer()? {
            [] => Value::Null,
            signer => json!(hex::encode(signer)),
        },
        "epoch": status.get_epoch(),
        "slots_used": status.get_slots_used(), "slots_capacity": status.get_slots_capacity(),
        "journal_seq": status.get_journal_seq(), "journal_acked": status.get_journal_acked(),
        "journal_bytes": status.get_journal_bytes(),
        "draining": status.get_draining(),
        "vats": vats?,
    }))
}

fn vat_json(vat: vat_status::Reader<'_>) -> capnp::Result<Value> {
    let protections: capnp::Result<Vec<Value>> = vat
        .get_protections()?
        .iter()
        .map(|p| {
            Ok(json!({ "name": p.get_name()?.to_str()?, "enforced": p.get_enforced(), "detail": p.get_detail()?.to_str()? }))
        })
        .collect();
    Ok(json!({
        "name": vat.get_name()?.to_str()?, "program": vat.get_program()?.to_str()?,
        "pid": vat.get_pid(), "restarts": vat.get_restarts(), "up_ms": vat.get_up_ms(),
        "rss_bytes": vat.get_rss_bytes(), "protections": protections?,
        "socket": vat.get_socket()?.to_str()?,
    }))
}

/// The screen for a status as [`kernel_json`] makes it, with `tenants` and `attestation`.
fn screen(status: &Value, now_ms: u64) -> String {
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    let word = |key: &str| status[key].as_str().unwrap_or("?");
    let mut out = format!(
        "node {}…  boot {}{}\n",
        text::short(word("node")),
        number("epoch"),
        if status["draining"] == true { "  DRAINING" } else { "" }
    );
    let signer = match status["image_signer"].as_str() {
        Some(signer) => format!("signed by {}…", text::short(signer)),
        None => "unsigned".to_owned(),
    };
    let (image, hash) = (word("image"), text::short(word("image_hash")));
    let _ = writeln!(out, "image: {signer}   {image} {hash}…");
    let unread = number("journal_seq").saturating_sub(number("journal_acked"));
    let _ = writeln!(
        out,
        "slots {} of {}   journal {} records, {unread} not yet in the audit log, {}",
        number("slots_used"),
        number("slots_capacity"),
        number("journal_seq"),
        text::bytes(number("journal_bytes")),
    );
    let _ = writeln!(out, "evidence {}", evidence_line(&status["attestation"], now_ms));
    if let Some(at_ms) = status["drained_at_ms"].as_u64() {
        let _ = writeln!(out, "work {}", drain_line(at_ms, now_ms));
    }
    out.push('\n');
    let vats = status["vats"].as_array().map(Vec::as_slice).unwrap_or_default();
    out += &vat_table(vats);
    let tenants = status["tenants"].as_array().map(Vec::as_slice).unwrap_or_default();
    if tenants.is_empty() {
        out += "\n\nno tenants: add one with `distos tenant add NAME`";
    } else {
        let _ = write!(out, "\n\n{}", tenant_table(tenants));
    }
    out
}

/// What becomes of work on a node whose evidence has expired.
pub(super) fn drain_line(at_ms: u64, now_ms: u64) -> String {
    let left = text::span_ms(at_ms.saturating_sub(now_ms));
    format!(
        "is drained: nothing is placed, and what still runs in {left} is ended unless there is fresh evidence"
    )
}

/// One line about a verdict as `attest::Verdict::json` makes it.
pub(super) fn evidence_line(verdict: &Value, now_ms: u64) -> String {
    let until = verdict["fresh_until_ms"].as_u64().unwrap_or(0);
    let tpm = verdict["tpm"].as_str().unwrap_or_default();
    if verdict["standing"] == "failed" {
        return format!("FAILED: {}  {tpm}", verdict["reason"].as_str().unwrap_or_default());
    }
    if verdict["standing"] == "expired" && verdict["good"] == true {
        return format!("EXPIRED: {}  {tpm}", verdict["reason"].as_str().unwrap_or_default());
    }
    if verdict["good"] != true {
        return format!("NOT GOOD: {}  {tpm}", verdict["reason"].as_str().unwrap_or("no evidence"));
    }
    if until <= now_ms {
        let reason = verdict["reason"].as_str().filter(|r| !r.is_empty());
        return format!("STALE: {}  {tpm}", reason.unwrap_or("its time is over"));
    }
    format!("good, fresh for {}  {tpm}", text::span_ms(until - now_ms))
}

/// Which protections are in force, one line a vat, and below why some are not.
pub(super) fn vat_table(vats: &[Value]) -> String {
    let mut head = row(["service", "pid", "memory", "up", "restarts"]);
    head.extend(PROTECTIONS.iter().map(|(_, short)| (*short).to_owned()));
    let mut rows = vec![head];
    let mut reasons = Vec::new();
    for vat in vats {
        let name = vat["name"].as_str().unwrap_or("?");
        let pid = vat["pid"].as_u64().unwrap_or(0);
        let mut cells = vec![
            name.to_owned(),
            if pid == 0 { "down".into() } else { pid.to_string() },
            text::bytes(vat["rss_bytes"].as_u64().unwrap_or(0)),
            text::span_ms(vat["up_ms"].as_u64().unwrap_or(0)),
            vat["restarts"].to_string(),
        ];
        let (marks, missing) = protection_marks(name, &vat["protections"]);
        cells.extend(marks);
        reasons.extend(missing);
        rows.push(cells);
    }
    let mut out = text::table(&rows);
    reasons.sort();
    reasons.dedup();
    for reason in reasons {
        let _ = write!(out, "\n  ✗ {reason}");
    }
    out
}

/// ✓ or ✗ for each of [`PROTECTIONS`], and a line for each that is reported as not in force.
pub(super) fn protection_marks(vat: &str, protections: &Value) -> (Vec<String>, Vec<String>) {
    let reported = protections.as_array().map(Vec::as_slice).unwrap_or_default();
    let mark = |long: &str| match reported.iter().find(|p| p["name"] == long) {
        Some(p) if p["enforced"] == true => "✓".to_owned(),
        Some(_) => "✗".to_owned(),
        None => "?".to_owned(),
    };
    let marks = PROTECTIONS.iter().map(|(long, _)| mark(long)).collect();
    let missing = reported.iter().filter(|p| p["enforced"] != true).map(|p| {
        let (name, detail) = (p["name"].as_str(), p["detail"].as_str());
        format!("{vat}: {}: {}", name.unwrap_or("?"), detail.unwrap_or_default())
    });
    (marks, missing.collect())
}

/// The tenants, one a line.
pub(super) fn tenant_table(tenants: &[Value]) -> String {
    let mut rows = vec![row(["tenant", "id", "slots", "holder"])];
    for tenant in tenants {
        let slots = format!("{}/{}", tenant["slots_used"], tenant["slot_quota"]);
        let holder = tenant["holder"].as_str().unwrap_or_default();
        let name = tenant["name"].as_str().unwrap_or_default();
        rows.push(row([
            name,
            &tenant["id"].to_string(),
            &slots,
            &format!("{}…", text::short(holder)),
        ]));
    }
    text::table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_sees_what_is_wrong_on_one_screen() {
        let protections = json!([
            { "name": "own uid", "enforced": false, "detail": "not root" },
            { "name": "seccomp", "enforced": true, "detail": "" },
        ]);
        let status = json!({
            "node": "ab".repeat(32), "image": "single", "image_hash": "cd".repeat(32),
            "image_signer": null, "epoch": 2,
            "slots_used": 5, "slots_capacity": 100, "journal_seq": 9, "journal_acked": 7,
            "journal_bytes": 2048, "draining": true,
            "vats": [{ "name": "memory", "pid": 0, "rss_bytes": 0, "up_ms": 0, "restarts": 3, "protections": protections }],
            "tenants": [{ "name": "red", "id": 1, "slots_used": 1, "slot_quota": 2, "holder": "ef".repeat(32) }],
            "attestation": { "good": true, "fresh_until_ms": 1000, "tpm": "software TPM" },
        });
        let text = screen(&status, 2000);
        for part in [
            "DRAINING",
            "image: unsigned",
            "2 not yet",
            "STALE",
            "down",
            "✗ memory: own uid: not root",
            "red",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(text.lines().count() < 24);
        assert!(!text.contains("still runs"), "{text}");
        let mut drained = status.clone();
        drained["drained_at_ms"] = json!(95_000);
        let text = screen(&drained, 53_000);
        assert!(
            text.contains("work is drained: nothing is placed, and what still runs in 42 s"),
            "{text}"
        );
        let signed = json!({ "image": "single", "image_signer": "12".repeat(32) });
        assert!(screen(&signed, 0).contains("image: signed by 1212121212121212…"));
    }

    #[test]
    fn bad_evidence_and_old_evidence_are_told_apart() {
        let bad = json!({ "good": false, "reason": "PCR 10 differs", "fresh_until_ms": 9000 });
        assert!(evidence_line(&bad, 0).contains("NOT GOOD: PCR 10"));
        let good = json!({ "good": true, "fresh_until_ms": 9000, "tpm": "t" });
        assert!(evidence_line(&good, 0).contains("good, fresh for 9 s"));
    }
}
